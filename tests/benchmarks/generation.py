"""Sampling GRPO groups: our generation against transformers' continuous batching and its plain
`generate`.

    python -m tests.benchmarks.generation

Every side samples a group of continuations for each context, at temperature 1, until a full stop or
the limit. Rows end at different times and not at the same on each side, so that tokens per second
are compared. Continuous batching packs the rows of a moment into one and shares the blocks of
common prompts; its noise depends on what else is in the batch.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from coevolve.scoring.batching import pad
from coevolve.scoring.generate import Sampling, generate
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report


def inputs(settings: Settings, tokenizer: Any) -> tuple[list[list[int]], GenerationConfig]:
    """(contexts, how a group is sampled behind each)."""
    rng = np.random.default_rng(settings["seed"])
    sizes = workload.lengths(settings["contexts"], settings["context"], rng)
    texts = [workload.text_of(size, tokenizer, rng) for size in sizes]
    stop = tokenizer(".", add_special_tokens=False)["input_ids"][-1]
    sampling = GenerationConfig(
        num_return_sequences=settings["group"],
        max_new_tokens=settings["completion"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], sampling


def own(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    contexts, sampling = inputs(settings, tokenizer)

    def work() -> int:
        written = generate(
            model,
            [context for context in contexts for _ in range(settings["group"])],
            max_new_tokens=sampling.max_new_tokens,
            stop_ids=[sampling.eos_token_id],
            pad_id=sampling.pad_token_id,
            sampling=Sampling(settings["seed"]),
        )
        return sum(len(row.ids) + row.finished for row in written)

    return work


def continuous(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    contexts, sampling = inputs(settings, tokenizer)
    # Its masks are as large as its cache could become; this one holds all rows at once.
    longest = max(map(len, contexts)) + settings["completion"]
    rows = len(contexts) * settings["group"]
    batching = ContinuousBatchingConfig(
        seed=settings["seed"],
        num_blocks=rows * -(-longest // ContinuousBatchingConfig.page_size),
    )

    def work() -> int:
        written = model.generate_batch(contexts, sampling, batching)
        return sum(len(row.generated_tokens) for row in written.values())

    return work


def plain(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    contexts, sampling = inputs(settings, tokenizer)
    ids_BP, mask_BP = (
        tensor.to(model.device) for tensor in pad(contexts, tokenizer.pad_token_id, left=True)
    )

    def work() -> int:
        torch.manual_seed(settings["seed"])
        written_BT = model.generate(ids_BP, attention_mask=mask_BP, generation_config=sampling)
        stops_BT = written_BT[:, ids_BP.shape[1] :] == sampling.eos_token_id
        # What follows a row's first stop is padding.
        return int((stops_BT.cumsum(dim=1) - stops_BT.long() == 0).sum())

    return work


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, contexts=4, group=8, context=200, completion=64)
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        sides = {"own": own, "continuous": continuous, "plain": plain}
        measured = compare(sides, settings, repeats=settings["repeats"], isolate=isolate)
    rates = {
        side: [
            tokens / run["wall_s"]
            for tokens, run in zip(measured[side]["results"], measured[side]["runs"], strict=True)
        ]
        for side in sides
    }
    print_report(
        "generation",
        settings,
        tokens_per_s={side: median(rate) for side, rate in rates.items()},
        speedup={
            side: median(
                mine / theirs for mine, theirs in zip(rates["own"], rates[side], strict=True)
            )
            for side in ("continuous", "plain")
        },
        **measured,
    )


if __name__ == "__main__":
    sys.exit(main())
