"""Score responses: JSONL of examples and responses in, log-probability sums and token counts out.

Without --responses, golden responses are scored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import coevolve.cli.scoring as door
from coevolve.cli.paths import adders
from coevolve.outputs import SCORES, write_output

if TYPE_CHECKING:
    from coevolve.data.example import Example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, _, writes = adders(parser)
    door.add_estimator_arguments(parser)
    door.add_data_argument(parser)
    door.add_responses_arguments(parser, of_models=False)
    door.add_reasoning_arguments(parser)
    add("--seed", "of sampled reasonings; without --reasoning they are sampled with it", type=int)
    writes("--out", "JSONL to write", kind=SCORES, required=True, metavar="FILE")


def run(options: argparse.Namespace) -> None:
    from coevolve.data.corpus import read_examples
    from coevolve.files import jsonl_text
    from coevolve.progress import make_console, task
    from coevolve.remid.results import ScoreLine
    from coevolve.remid.score import score_examples

    if options.seed is not None and options.reasoning is None:
        options.reasoning = "sampled"
    every = read_examples(options.data)
    given = _responses(options, every)
    examples = [example for example in every if example.sample_id in given]
    reasoning = door.chosen_reasoning(options, examples, every)
    alone = [(str(options.data), [example]) for example in examples]
    door.look_at_examples(options, alone, [given], reasoning)
    estimator = door.load_estimator(options)
    console = make_console(sys.stderr)
    work = "reasoning and scoring" if reasoning.is_written else "scoring"
    total = reasoning.steps * len(examples)
    with task(console, f"{work} of {len(examples)} examples", total) as advance:
        scores, written = score_examples(estimator, examples, [*given.values()], reasoning, advance)
    origin = {"estimator_identity": estimator.manifest["identity"]}
    of_form = {"reasoning_sha256": reasoning.sha256, "weight": reasoning.weight}
    origin |= {name: value for name, value in of_form.items() if value is not None}
    lines = [
        ScoreLine(
            sample_ID=example.sample_id,
            log_prob=float(scores.sum[index]),
            tokens=int(scores.tokens[index]),
            reasoning=written[0][index]
            if reasoning.name != f"{reasoning.kind}_{reasoning.samples}"
            else [text for of_all in written if (text := of_all[index]) is not None],
            **origin,
        )
        for index, example in enumerate(examples)
    ]
    write_output(Path(options.out), SCORES, jsonl_text(line.values() for line in lines))
    door.report_cache(console, estimator)
    console.print(f"{len(examples)} scores (nats per response) written to {options.out}")
    console.print(f"reasoning: {reasoning}")
    if len(examples) < len(every):
        left = len(every) - len(examples)
        console.print(f"{left} of {len(every)} examples left out, without a usable response")


def _responses(options: argparse.Namespace, examples: "Sequence[Example]") -> dict[str, str]:
    """sample_ID -> response, in the order of the examples."""
    from coevolve.data.responses import read_partial_responses, read_responses
    from coevolve.errors import DataError

    if options.responses and options.missing == "drop":
        return dict(read_partial_responses(options.responses, examples).by_id)
    ids = [example.sample_id for example in examples]
    if options.responses:
        return dict(zip(ids, read_responses(options.responses, examples), strict=True))
    golden = {x.sample_id: x.golden_response for x in examples if x.golden_response is not None}
    lacking = [sample_id for sample_id in ids if sample_id not in golden]
    if lacking and (options.missing == "error" or not golden):
        raise DataError(
            f"{options.data}: sample_ID {lacking[0]!r} has no agent_golden_response "
            f"({len(lacking)} have none). Add it, or give --responses FILE."
        )
    return golden
