"""Have a language model judge role-playing models' responses, for `coevolve remid --judge`.

Each answer is on disk when it arrives; the same command again asks only for what the file lacks.
"""

import argparse
import os
import sys
from contextlib import closing

from coevolve.cli.chat_model import add_chat_arguments, load_chat
from coevolve.cli.paths import adders
from coevolve.cli.respond import add_choice_arguments, chosen_examples
from coevolve.cli.scoring import add_data_argument, named_files
from coevolve.outputs import JUDGED

ATTEMPTS = 3
EXAMPLE = """\
example:
  coevolve judge --data dialogues.json --responses mine=mine.jsonl big=big.jsonl --repeats 3 \\
      --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-32B --out judged.jsonl
  coevolve remid --estimator runs/mine/estimator --data dialogues.json \\
      --responses mine=mine.jsonl big=big.jsonl --judge judged.jsonl --out results"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    add, reads, writes = adders(parser)
    add_data_argument(parser)
    what = "JSONL of {sample_ID, response}"
    reads("--responses", what, required=True, nargs="+", metavar="NAME=FILE")
    writes("--out", "to begin or to go on with", kind=JUDGED, required=True, metavar="FILE")
    what = "YAML: criteria, scale and words (default: four criteria from 1 to 5)"
    reads("--rubric", what, metavar="FILE")
    add("--repeats", "judgements of each response (default 1)", type=int, default=1, metavar="N")
    what = "all models' responses to a sample in one question (default: each by itself)"
    add("--side-by-side", what, action="store_true")
    add_choice_arguments(parser)
    add_chat_arguments(parser, required=True)


def run(options: argparse.Namespace) -> None:
    from coevolve.data.responses import read_partial_responses
    from coevolve.progress import from_totals, make_console, task
    from coevolve.prompts.rubric import Rubric
    from coevolve.recipe.load import read_section
    from coevolve.respond.judge import judge_responses

    rubric = read_section(options.rubric, Rubric) if options.rubric else Rubric()
    examples, everything = chosen_examples(options)
    files, console = named_files(options.responses), make_console(sys.stderr)
    responses = {
        name: read_partial_responses(path, everything).by_id for name, path in files.items()
    }
    for name, by_id in responses.items():
        lacking = sum(example.sample_id not in by_id for example in examples)
        if lacking:
            console.print(f"{name}: {lacking} of {len(examples)} samples have no response to judge")
    patience = max(3, options.concurrency or 0)
    judge = load_chat(options, os.environ, ledger=options.out, attempts=ATTEMPTS, patience=patience)
    with closing(judge), task(console, f"judged by {options.model}", len(examples)) as advance:
        report = from_totals(advance)
        judged = judge_responses(
            examples,
            responses,
            judge,
            options.out,
            rubric=rubric,
            repeats=options.repeats,
            side_by_side=options.side_by_side,
            seed=options.seed or 0,
            progress=lambda done, total, note: report(done * len(examples) // total),
        )
    console.print(
        f"{options.out}: {len(judged.answers)} answers ({judged.found} were there before)"
    )
    if judged.bad:
        count = f"{len(judged.bad)} of {judged.asked} questions have no usable answer"
        console.print(f"{count} after {ATTEMPTS} attempts, and are asked again next time. First:")
        console.print(f"  {judged.bad[0]}")
    _show(judged.means(), judged.agreement(), options.repeats)


def _show(
    means: dict[str, dict[str, float]], alphas: dict[str, float | None], repeats: int
) -> None:
    from coevolve.progress import make_console
    from coevolve.remid.grid import Block, Grid, grid_table

    names = list(alphas)
    rows = [[model, *(f"{of[name]:.2f}" for name in names)] for model, of in means.items()]
    cells = ["-" if alphas[name] is None else f"{alphas[name]:.2f}" for name in names]
    blocks = [Block("", rows), Block("", [["agreement", *cells]])]
    caption = "Mean scores. Agreement between repeats is Krippendorff's alpha (interval data): "
    caption += "1 is perfect, 0 chance." if repeats > 1 else "it needs --repeats 2 or more."
    make_console(sys.stdout).print(grid_table(Grid(["model", *names], blocks, [caption])))
