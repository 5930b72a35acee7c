"""R-EMI per subset and R-EMID of every shifted subset, for one or more models' responses."""

import argparse
import sys
from typing import TYPE_CHECKING

from coevolve.cli.loading import add_estimator_arguments, load_estimator

if TYPE_CHECKING:
    from coevolve.remid.evaluate import Measure
    from coevolve.remid.pairs import Negatives
    from coevolve.remid.score import Reasoning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_estimator_arguments(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="a corpus with IDTest and shifted test splits")
    parser.add_argument(
        "--responses",
        required=True,
        nargs="+",
        metavar="NAME=FILE",
        help="a model's responses to the test examples: JSONL of {sample_ID, response}",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="FORM[:NORMALISATION]",
        help="the main measure, and others to stand beside it; the normalisation is per_response unless it is given "
        "(default: calibrated club:per_token; the second, the published one, alone with a number of --negatives)",
    )
    pairs = parser.add_mutually_exclusive_group()
    pairs.add_argument(
        "--negatives", default="all", help="mismatched pairs per subset, a number (published: 1000) or all (default)"
    )
    pairs.add_argument("--negatives-per-context", type=int, metavar="K", help="so many for each context instead")
    reasoning = parser.add_mutually_exclusive_group()
    reasoning.add_argument(
        "--reasoning",
        default="greedy",
        metavar="greedy|sampled|marginal:K",
        help="how the reasoning is chosen; marginal:K is the log mean over K sampled ones (default greedy)",
    )
    reasoning.add_argument(
        "--without-reasoning", action="store_true", help="EMI and EMID of q2(y | x) instead of R-EMI and R-EMID"
    )
    parser.add_argument(
        "--show-small-subsets", action="store_true", help="list subsets of one example without numbers, as no error"
    )
    parser.add_argument("--seed", type=int, default=0, help="of pairs, sampled reasonings and bootstrap (default 0)")
    parser.add_argument("--out", required=True, metavar="DIR", help="for results.json, .csv, .tex, contributions.jsonl")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from coevolve.data.corpus import read_corpus
    from coevolve.data.responses import read_responses
    from coevolve.files import write_json, write_jsonl, write_text
    from coevolve.progress import from_totals, make_console, task
    from coevolve.remid.evaluate import Measure, contributions, score_corpus, summarise
    from coevolve.remid.score import evaluated_examples
    from coevolve.remid.table import remid_csv, remid_latex, remid_table

    corpus = read_corpus(options.data)
    examples = evaluated_examples(corpus)
    responses = {
        name: read_responses(path, examples) for name, path in map(_name_and_path, _without_repeats(options.responses))
    }
    measures = [_measure(text) for text in options.measures] if options.measures else None
    negatives = _chosen_negatives(options)
    reasoning = _reasoning(options)
    estimator = load_estimator(options)
    console = make_console(sys.stderr)
    with task(console, f"R-EMID of {len(responses)} models, {len(examples)} contexts", len(examples)) as advance:
        report = from_totals(advance)
        scored, left_out = score_corpus(
            estimator,
            corpus,
            responses,
            measures=measures,
            negatives=negatives,
            seed=options.seed,
            reasoning=reasoning,
            small_subsets="show" if options.show_small_subsets else "error",
            progress=lambda what, done, total: report(done),
        )
    results = summarise(
        scored, left_out=left_out, measures=measures, negatives=negatives, seed=options.seed, reasoning=reasoning
    )
    folder = Path(options.out)
    origin = {"estimator": str(options.estimator), "data_fingerprint": corpus.fingerprint}
    write_json(folder / "results.json", {**results, **origin})
    write_text(folder / "results.csv", remid_csv(results))
    write_text(folder / "results.tex", remid_latex(results))
    main = Measure(results["form"], results["normalisation"])
    write_jsonl(folder / "contributions.jsonl", contributions(scored, main))
    make_console(sys.stdout).print(remid_table(results))
    console.print(f"results: {folder / 'results.json'}, .csv, .tex; each example's share: contributions.jsonl")


def _name_and_path(argument: str) -> tuple[str, str]:
    from coevolve.errors import DataError

    name, equals, path = argument.partition("=")
    if not (name and equals and path):
        raise DataError(f"--responses {argument!r}: accepted is NAME=FILE.")
    return name, path


def _without_repeats(arguments: list[str]) -> list[str]:
    from coevolve.errors import DataError

    names = [argument.partition("=")[0] for argument in arguments]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DataError(f"--responses: the name {repeated[0]!r} is given {names.count(repeated[0])} times.")
    return arguments


def _measure(text: str) -> "Measure":
    from coevolve.remid.evaluate import Measure

    form, _, normalisation = text.partition(":")
    return Measure(form, normalisation or "per_response")


def _chosen_negatives(options: argparse.Namespace) -> "Negatives":
    from coevolve.remid.pairs import PerContext

    if options.negatives_per_context is not None:
        return PerContext(options.negatives_per_context)
    return _negatives(options.negatives)


def _negatives(text: str) -> int | str:
    from coevolve.errors import RecipeError

    if text == "all":
        return "all"
    if not text.isdigit() or int(text) < 1:
        raise RecipeError(f"--negatives {text!r}: accepted is a number from 1, or all.")
    return int(text)


def _reasoning(options: argparse.Namespace) -> "Reasoning":
    from coevolve.errors import RecipeError
    from coevolve.remid.score import Reasoning

    if options.without_reasoning:
        return Reasoning("none")
    kind, _, samples = options.reasoning.partition(":")
    if (kind == "marginal") != samples.isdigit() or kind not in ("greedy", "sampled", "marginal"):
        raise RecipeError(f"--reasoning {options.reasoning!r}: accepted are greedy, sampled, and marginal:K.")
    return Reasoning(kind, samples=int(samples) if samples else 1, seed=options.seed)
