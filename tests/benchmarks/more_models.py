"""What one more judged model costs, beside the first.

    python -m tests.benchmarks.more_models --n 48 --negatives 0

Both are scored on the same contexts in one evaluation: the first pays for the contexts, for golden
and for itself, one more for its own responses. With `--negatives` each context also sees so many
responses of other examples from each model (the pairs of R-EMID); with N - 1 of them it is the full
matrix, where the responses are most of the work.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.scoring.logprob import score_pairs
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report


def scoring(settings: Settings, models: int) -> Work:
    """An evaluation of golden and so many models."""
    model, tokenizer = workload.load(settings["folder"])
    rng = np.random.default_rng(settings["seed"])
    n, vocabulary = settings["n"], model.config.vocab_size
    contexts = workload.random_ids(n, settings["context"], vocabulary, rng)
    responses = [
        workload.random_ids(n, settings["response"], vocabulary, rng) for _ in range(1 + models)
    ]
    # The own response, and those of the examples that follow.
    offsets = np.arange(1 + settings["negatives"])
    own = np.stack(
        np.broadcast_arrays(np.arange(n)[:, None], (np.arange(n)[:, None] + offsets) % n), axis=-1
    )
    pairs = np.concatenate(
        [own.reshape(-1, 2) + np.array([0, n * source]) for source in range(1 + models)]
    )
    flat = [response for one in responses for response in one]

    def work() -> int:
        return len(score_pairs(model, contexts, flat, pairs, pad_id=tokenizer.pad_token_id))

    return work


def first(settings: Settings) -> Work:
    return scoring(settings, 1)


def both(settings: Settings) -> Work:
    return scoring(settings, 2)


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, n=48, context=800, response=50, negatives=0)
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        if not settings["negatives"] < settings["n"]:
            parser.error(
                f"--negatives {settings['negatives']}: at most n - 1 = {settings['n'] - 1}"
            )
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        measured = compare(
            {"first": first, "both": both}, settings, repeats=settings["repeats"], isolate=isolate
        )
    extra = {
        name: measured["both"][name] / measured["first"][name] - 1 for name in ("wall_s", "cpu_s")
    }
    tokens = settings["context"] + 2 * (1 + settings["negatives"]) * settings["response"]
    print_report(
        "more_models",
        settings,
        cost_of_one_more=extra,
        goal={"cost_of_one_more": 0.15},
        share_of_tokens=(1 + settings["negatives"]) * settings["response"] / tokens,
        **measured,
    )


if __name__ == "__main__":
    sys.exit(main())
