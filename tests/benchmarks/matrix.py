"""All N x N pairs of contexts and responses: coevolve against lm-evaluation-harness.

    python -m tests.benchmarks.matrix --n 12
    python -m tests.benchmarks.matrix --n 48 --peer-pairs 48

The peer is HFLM's `_loglikelihood_tokens`, which runs each pair in full. With `--peer-pairs` it
gets a random sample of the pairs, and its time is scaled by their number; its memory is the
sample's. Both score the same token ids, and the largest difference between the two is in the
report. The fraction of the matmul rate is of the operations that exact scores need (not of those
that were done), over what the next process reaches on the model's own matrix products.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from coevolve.scoring.logprob import score_pairs
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report, ratios

MATMUL_ROWS, MATMUL_FLOPS = 1024, 4e12


def inputs(
    settings: Settings, vocabulary: int
) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """(contexts, responses, all pairs (Q, 2))."""
    rng = np.random.default_rng(settings["seed"])
    n = settings["n"]
    contexts = workload.random_ids(n, settings["context"], vocabulary, rng)
    responses = workload.random_ids(n, settings["response"], vocabulary, rng)
    return contexts, responses, np.stack(np.mgrid[:n, :n], axis=-1).reshape(-1, 2)


def peer_pairs(settings: Settings, pairs: np.ndarray) -> np.ndarray:
    """Indices of the pairs that the peer scores."""
    count = settings["peer_pairs"] or len(pairs)
    return np.sort(np.random.default_rng(settings["seed"] + 1).permutation(len(pairs))[:count])


def own(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    contexts, responses, pairs = inputs(settings, model.config.vocab_size)

    def work() -> dict[str, Any]:
        values = score_pairs(model, contexts, responses, pairs, pad_id=tokenizer.pad_token_id)
        return {"sums": [float(value.sum()) for value in values]}

    return work


def peer(settings: Settings) -> Work:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = workload.load(settings["folder"])
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings["peer_batch"])
    contexts, responses, pairs = inputs(settings, model.config.vocab_size)
    requests = [
        (("", ""), contexts[i], responses[j]) for i, j in pairs[peer_pairs(settings, pairs)]
    ]

    def work() -> dict[str, Any]:
        return {
            "sums": [
                value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)
            ]
        }

    return work


def needed(settings: Settings, config: PretrainedConfig) -> float:
    """Operations that exact scores of all pairs cannot do without."""
    contexts, responses, _ = inputs(settings, config.vocab_size)
    return workload.flops_needed(
        config, [len(c) for c in contexts], [[len(r) for r in responses]] * len(contexts)
    )


def matmul(settings: Settings) -> Work:
    """As many operations as the scores need, or a share of them that takes seconds, in nothing but
    matrix products.
    """
    model, _ = workload.load(settings["folder"])
    flops = needed(settings, model.config)
    products = workload.matmul_work(
        model.config, MATMUL_ROWS, dtype=model.dtype, device=str(model.device)
    )
    products(0.0)

    def work() -> dict[str, float]:
        return {"needed": flops, "done": products(min(flops, MATMUL_FLOPS))}

    return work


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, n=12, context=800, response=50, peer_pairs=0, peer_batch=8)
    with tempfile.TemporaryDirectory() as scratch:
        settings = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        sides = {"own": own, "matmul": matmul, "peer": peer}
        measured = compare(sides, settings, repeats=settings["repeats"], isolate=isolate)
    scores, theirs = (
        np.array(measured[side].pop("results")[-1]["sums"]) for side in ("own", "peer")
    )
    sampled = peer_pairs(settings, np.zeros((len(scores), 2)))
    share = len(sampled) / len(scores)
    ratio, flops = ratios(measured), measured["matmul"].pop("results")[-1]
    products = ratios(measured, "matmul", "own")
    print_report(
        "matrix",
        settings,
        pairs=len(scores),
        peer_pairs=len(sampled),
        speedup={name: 1 / ratio[name] / share for name in ("wall_s", "cpu_s")},
        memory_ratio=ratio.get("cuda_peak_bytes", ratio["peak_bytes"]),
        goal={"speedup": 10 if settings["n"] < 48 else 15, "memory_ratio": 1 / 3},
        largest_difference_nats=float(np.abs(scores[sampled] - theirs).max()),
        roofline={
            "flops": flops["needed"],
            "formula": workload.FLOPS_FORMULA,
            "matmul": f"one layer's matrix products, {MATMUL_ROWS} rows",
            "matmul_flops_per_s": flops["done"] / measured["matmul"]["wall_s"],
            "fraction_of_matmul_rate": products["wall_s"] * flops["needed"] / flops["done"],
            "goal": 0.75,
        },
        **measured,
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
