"""Score responses: JSONL of examples and responses in, log-probability sums and token counts out.

Without --responses, each row's own `response` is scored, or its golden response where it has none.
"""

import argparse
import sys

from coevolve.cli.loading import add_estimator_arguments, load_estimator, report_cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_estimator_arguments(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="examples, in any layout that train reads")
    parser.add_argument("--responses", metavar="FILE", help="JSONL of {sample_ID, response}; default: golden responses")
    parser.add_argument("--seed", type=int, help="sample the reasoning with this seed instead of decoding greedily")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSONL to write")


def run(options: argparse.Namespace) -> None:
    from coevolve.data.corpus import read_examples
    from coevolve.data.responses import read_responses
    from coevolve.errors import DataError
    from coevolve.files import write_jsonl
    from coevolve.progress import make_console, task

    examples = read_examples(options.data)
    if options.responses:
        responses = read_responses(options.responses, examples)
    else:
        missing = [example.sample_id for example in examples if example.golden_response is None]
        if missing:
            raise DataError(
                f"{options.data}: sample_ID {missing[0]!r} has no agent_golden_response ({len(missing)} have none). "
                "Add it, or give --responses FILE."
            )
        responses = [example.golden_response for example in examples]
    estimator = load_estimator(options)
    console = make_console(sys.stderr)
    with task(console, f"reasoning and scoring of {len(examples)} examples", 2 * len(examples)) as advance:
        reasoning = estimator.reason(examples, seed=options.seed, progress=advance)
        scores = estimator.log_prob(examples, responses, reasoning, progress=advance)
    write_jsonl(
        options.out,
        [
            {"sample_ID": example.sample_id, "log_prob": float(total), "tokens": int(tokens), "reasoning": text}
            for example, total, tokens, text in zip(examples, scores.sum, scores.tokens, reasoning, strict=True)
        ],
    )
    report_cache(console, estimator)
    console.print(f"{len(examples)} scores (nats per response) written to {options.out}")
