"""The standard error of CLUB from all pairs, against 1,000 random ones, and as many as the same
time buys.

    python -m tests.benchmarks.club_error

A response repeats a piece of its own context, so that a pretrained model finds it likelier there
than elsewhere. Both estimates are over the same N examples; the errors are those that `coevolve
remid` reports (dyadic, over examples). The peer's time is that of a sample of pairs, each run in
full in batches of 4 as the paper's public code does, scaled to its pairs and the N matched ones.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.information.club import club
from coevolve.information.contrast import Contrast
from coevolve.information.uncertainty import standard_error
from coevolve.scoring.logprob import score_pairs
from coevolve.scoring.scores import Scores
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report

PUBLIC_PAIRS, PUBLIC_BATCH, DRAWS = 1000, 4, 200


def inputs(settings: Settings, tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
    """(contexts of words, responses that repeat a piece of their own context)."""
    rng = np.random.default_rng(settings["seed"])
    texts = [
        workload.text_of(length, tokenizer, rng)
        for length in workload.lengths(settings["n"], settings["context"], rng)
    ]
    contexts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    starts = [int(rng.integers(0, max(1, len(ids) - settings["response"]))) for ids in contexts]
    return contexts, [
        ids[start : start + settings["response"]]
        for ids, start in zip(contexts, starts, strict=True)
    ]


def own(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    contexts, responses = inputs(settings, tokenizer)
    pairs = np.stack(np.mgrid[: len(contexts), : len(responses)], axis=-1).reshape(-1, 2)

    def work() -> dict[str, Any]:
        values = score_pairs(model, contexts, responses, pairs, pad_id=tokenizer.pad_token_id)
        return {
            "sums": [float(value.sum()) for value in values],
            "tokens": [len(response) for response in responses],
        }

    return work


def peer(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    contexts, responses = inputs(settings, tokenizer)
    rng = np.random.default_rng(settings["seed"] + 1)
    pairs = rng.integers(0, settings["n"], size=(settings["peer_pairs"], 2))

    def work() -> None:
        for start in range(0, len(pairs), PUBLIC_BATCH):
            batch = pairs[start : start + PUBLIC_BATCH]
            workload.plain_log_probs(
                model,
                [contexts[i] for i, _ in batch],
                [responses[j] for _, j in batch],
                tokenizer.pad_token_id,
            )

    return work


def mean_error(contrast: Contrast, pairs: int, rng: np.random.Generator) -> float:
    """The standard error with so many random mismatched pairs, averaged (as variance) over draws of
    them.
    """
    variances = []
    for _ in range(DRAWS):
        chosen = rng.permutation(len(contrast.pairs))[:pairs]
        drawn = Contrast(
            contrast.matched,
            contrast.mismatched[chosen],
            contrast.pairs[chosen],
            contrast.tokens,
            contrast.normalisation,
        )
        variances.append(standard_error(club(drawn)[1]) ** 2)
    return float(np.sqrt(np.mean(variances)))


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, repeats=1, n=48, context=200, response=20, peer_pairs=24)
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        measured = compare(
            {"own": own, "peer": peer}, settings, repeats=settings["repeats"], isolate=isolate
        )
    scores, n = measured["own"].pop("results")[-1], settings["n"]
    matrix = Scores(np.array(scores["sums"]).reshape(n, n), np.array(scores["tokens"]))
    contrast = Contrast.from_matrix(matrix, "per_token")
    public = min(PUBLIC_PAIRS, len(contrast.pairs))
    per_pair = measured["peer"]["cpu_s"] / settings["peer_pairs"]
    bought = int(np.clip(measured["own"]["cpu_s"] / per_pair - n, 2, len(contrast.pairs)))
    rng = np.random.default_rng(settings["seed"] + 2)
    estimate, influence = club(contrast)
    errors = {
        "all_pairs": standard_error(influence),
        "random_pairs": mean_error(contrast, public, rng),
        "random_pairs_at_equal_time": mean_error(contrast, bought, rng),
    }
    print_report(
        "club_error",
        settings,
        club_nats_per_token=estimate,
        standard_error=errors,
        error_ratio={
            name: errors["all_pairs"] / errors[name] for name in errors if name != "all_pairs"
        },
        pairs={"all": len(contrast.pairs), "random": public, "random_at_equal_time": bought},
        cpu_s={"all_pairs": measured["own"]["cpu_s"], "random_pairs": per_pair * (public + n)},
        **measured,
    )


if __name__ == "__main__":
    sys.exit(main())
