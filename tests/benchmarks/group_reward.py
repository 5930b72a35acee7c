"""The reward of one GRPO group: one response scored behind several reasonings on one context.

    python -m tests.benchmarks.group_reward

The peer runs one full forward pass for each sample and takes the log-softmax of all its logits.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.scoring.logprob import score_rows
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report, ratios


def inputs(settings: Settings, vocabulary: int) -> tuple[list[list[int]], list[int]]:
    """(prompts that share the context and differ in the reasoning, the response)."""
    rng = np.random.default_rng(settings["seed"])
    context = rng.integers(0, vocabulary, size=settings["context"]).tolist()
    reasonings = workload.random_ids(settings["group"], settings["reasoning"], vocabulary, rng)
    return [context + own for own in reasonings], rng.integers(
        0, vocabulary, size=settings["response"]
    ).tolist()


def own(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    prompts, response = inputs(settings, model.config.vocab_size)

    def work() -> list[float]:
        values = score_rows(
            model, prompts, [response] * len(prompts), pad_id=tokenizer.pad_token_id
        )
        return [float(value.sum()) for value in values]

    return work


def peer(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    prompts, response = inputs(settings, model.config.vocab_size)
    pad_id = tokenizer.pad_token_id
    return lambda: [
        workload.plain_log_probs(model, [prompt], [response], pad_id)[0] for prompt in prompts
    ]


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, group=8, context=738, reasoning=60, response=50)
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        measured = compare(
            {"own": own, "peer": peer}, settings, repeats=settings["repeats"], isolate=isolate
        )
    scores, theirs = (np.array(measured[side].pop("results")[-1]) for side in ("own", "peer"))
    ratio = ratios(measured)
    print_report(
        "group_reward",
        settings,
        speedup={name: 1 / ratio[name] for name in ("wall_s", "cpu_s")},
        memory_ratio=ratio.get("cuda_peak_bytes", ratio["peak_bytes"]),
        goal={"speedup": 3.5},
        largest_difference_nats=float(np.abs(scores - theirs).max()),
        **measured,
    )


if __name__ == "__main__":
    sys.exit(main())
