"""How the cost of scoring grows with N, context length, response length and the number of judged
models.

    python -m tests.benchmarks.growth

One size is varied at a time about the base case; all N x N pairs of each model are scored. For each
there is the exponent of a power law, fitted to the logarithms, between any two neighbours, and
where it departs from the first.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.scoring.logprob import score_pairs
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, measure, print_report

EXPECTED = {
    "n": "between 1 (contexts decide) and 2 (pairs decide)",
    "context": "at most 1 while responses cost something, 2 where attention decides",
    "response": "likewise",
    "models": "at most 1: contexts are computed once",
}


def sweep(settings: Settings) -> Work:
    """Seconds of each size, all in one process."""
    model, tokenizer = workload.load(settings["folder"])
    vocabulary = model.config.vocab_size

    def seconds(n: int, context: int, response: int, models: int) -> dict[str, float]:
        rng = np.random.default_rng(settings["seed"])
        contexts = workload.random_ids(n, context, vocabulary, rng)
        responses = workload.random_ids(n * models, response, vocabulary, rng)
        pairs = np.stack(np.mgrid[:n, : n * models], axis=-1).reshape(-1, 2)
        wall, cpu = time.perf_counter(), time.process_time()
        score_pairs(model, contexts, responses, pairs, pad_id=tokenizer.pad_token_id)
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def work() -> dict[str, Any]:
        middle = {name: settings[f"{name}_sizes"][0] for name in EXPECTED}
        seconds(**{**middle, "n": 1})
        return {
            name: [
                {"size": size, **seconds(**{**middle, name: size})}
                for size in settings[f"{name}_sizes"]
            ]
            for name in EXPECTED
        }

    return work


def fitted(points: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Exponents of cost ~ size^exponent."""
    size, cost = (
        np.log([point["size"] for point in points]),
        np.log([point["cpu_s"] for point in points]),
    )
    local = (np.diff(cost) / np.diff(size)).tolist()
    return {"exponent": float(np.polyfit(size, cost, 1)[0]), "between_neighbours": local}


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(
        __doc__,
        repeats=1,
        n_sizes=[4, 8, 16],
        context_sizes=[256, 512, 1024, 2048],
        response_sizes=[32, 64, 128, 256],
        models_sizes=[1, 2, 4],
    )
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        runs = [
            measure(sweep, settings, isolate=isolate).result for _ in range(settings["repeats"])
        ]
    growth = {}
    for name, expected in EXPECTED.items():
        points = [
            {
                key: float(np.median([run[name][place][key] for run in runs]))
                for key in ("size", "wall_s", "cpu_s")
            }
            for place in range(len(runs[0][name]))
        ]
        growth[name] = {"expected": expected, **fitted(points), "points": points}
    print_report("growth", settings, growth=growth)


if __name__ == "__main__":
    sys.exit(main())
