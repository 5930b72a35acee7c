"""Score responses: JSONL of examples and responses in, log-probability sums and token counts out.

Without --responses, golden responses are scored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coevolve.cli.loading import add_estimator_arguments, load_estimator, look_first, report_cache
from coevolve.cli.paths import add_input, add_output
from coevolve.cli.responses import add_missing_argument
from coevolve.outputs import SCORES, write_output

if TYPE_CHECKING:
    from coevolve.data.example import Example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_estimator_arguments(parser)
    add_input(
        parser,
        "--data",
        required=True,
        metavar="FILE",
        help="examples, in any layout that train reads",
    )
    add_input(
        parser,
        "--responses",
        metavar="FILE",
        help="JSONL of {sample_ID, response}; default: golden responses",
    )
    add_missing_argument(parser)
    reasoning = parser.add_mutually_exclusive_group()
    reasoning.add_argument(
        "--seed", type=int, help="sample the reasoning with this seed instead of decoding greedily"
    )
    add_input(
        reasoning,
        "--reasoning",
        metavar="FILE",
        help="reasonings that were written before: JSONL of {sample_ID, reasoning}, or a JSON object of them (the "
        "public code's SThought_dict.json)",
    )
    add_output(parser, "--out", kind=SCORES, required=True, metavar="FILE", help="JSONL to write")


def run(options: argparse.Namespace) -> None:
    from coevolve.data.corpus import read_examples
    from coevolve.files import jsonl_text
    from coevolve.progress import make_console, task

    every = read_examples(options.data)
    given = _responses(options, every)
    examples = [example for example in every if example.sample_id in given]
    responses = list(given.values())
    reasoning, origin = _reasoning(options, examples, every)
    look_first(
        options,
        lambda: [(str(options.data), [x]) for x in examples],
        [given],
        writes_reasoning=reasoning is None,
    )
    estimator = load_estimator(options)
    console = make_console(sys.stderr)
    origin["estimator_identity"] = estimator.manifest["identity"]
    work, steps = ("reasoning and scoring", 2) if reasoning is None else ("scoring", 1)
    with task(console, f"{work} of {len(examples)} examples", steps * len(examples)) as advance:
        if reasoning is None:
            reasoning = estimator.reason(examples, seed=options.seed, progress=advance)
        scores = estimator.log_prob(examples, responses, reasoning, progress=advance)
    rows = [
        {
            "sample_ID": example.sample_id,
            "log_prob": float(total),
            "tokens": int(tokens),
            "reasoning": text,
        }
        | origin
        for example, total, tokens, text in zip(
            examples, scores.sum, scores.tokens, reasoning, strict=True
        )
    ]
    write_output(Path(options.out), SCORES, jsonl_text(rows))
    report_cache(console, estimator)
    console.print(f"{len(examples)} scores (nats per response) written to {options.out}")
    if len(examples) < len(every):
        console.print(
            f"{len(every) - len(examples)} of {len(every)} examples left out, without a usable response"
        )


def _reasoning(
    options: argparse.Namespace, examples: "Sequence[Example]", every: "Sequence[Example]"
) -> tuple[list[str] | None, dict[str, str]]:
    """The reasonings that were given, if any, and what results are to say of their file."""
    from coevolve.data.reasonings import read_reasonings
    from coevolve.files import sha256_file

    if options.reasoning is None:
        return None, {}
    texts = read_reasonings(options.reasoning, examples, every)
    return list(texts.values()), {"reasoning_sha256": sha256_file(options.reasoning)}


def _responses(options: argparse.Namespace, examples: "Sequence[Example]") -> dict[str, str]:
    """sample_ID -> response, in the order of the examples."""
    from coevolve.data.responses import read_partial_responses, read_responses
    from coevolve.errors import DataError

    if options.responses and options.missing == "drop":
        return dict(read_partial_responses(options.responses, examples).by_id)
    ids = [example.sample_id for example in examples]
    if options.responses:
        return dict(zip(ids, read_responses(options.responses, examples), strict=True))
    golden = {
        example.sample_id: example.golden_response
        for example in examples
        if example.golden_response is not None
    }
    lacking = [sample_id for sample_id in ids if sample_id not in golden]
    if lacking and (options.missing == "error" or not golden):
        raise DataError(
            f"{options.data}: sample_ID {lacking[0]!r} has no agent_golden_response ({len(lacking)} have none). "
            "Add it, or give --responses FILE."
        )
    return golden
