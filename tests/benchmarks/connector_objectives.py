"""What teaches the connector: its likelihood-type rewards, each with and without the length reward,
and reasonings drawn from the posterior instead of reinforcement learning.

    python -m tests.benchmarks.connector_objectives --steps 8

The quickstart's world and models, shortened to one round: the same cold start, as many completions
of the connector as `steps` updates of 256 have, then a refresh and as many updates of the
estimator. `none` leaves the connector as the cold start made it. For each there is the perplexity
over that of `without_reasoning` (trained for as many updates), in distribution with its paired
standard error and as geometric mean over the shifted splits, and what it took. A line is printed
for each as it ends, on the standard error.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.recipe import load_recipe
from coevolve.training.run import train
from tests.benchmarks.harness import Settings, Work, arguments, measure, print_report

ROOT = Path(__file__).parents[2]
COMPLETIONS, CANDIDATES = 256, 8
REWARDS = ("likelihood", "log_likelihood", "gain", "bound")
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    **{
        f"{name}{' + length' if length else ''}": {"reward": name, "length": length}
        for name in REWARDS
        for length in (0.1, 0.0)
    },
    "log_likelihood, tokens by change": {"reward": "log_likelihood", "weighting": "change"},
    "posterior, K from the connector": {"proposal": "connector"},
    "posterior, with the teacher's trace": {"proposal": "teacher"},
}


def overrides(settings: Settings, variant: dict[str, Any]) -> list[str]:
    """What the variant sets in the quickstart's recipe."""
    steps = settings["steps"]
    taught = ["connector_rl"] if "reward" in variant else []
    taught = ["posterior", "connector_sft"] if "proposal" in variant else taught
    values = {
        "seed": settings["seed"],
        "data.world.train": settings["train"],
        "data.world.test": settings["test"],
        "data.validation": settings["test"] // 2,
        "cold_start.connector.steps": settings["cold"],
        "cold_start.estimator.steps": max(settings["cold"] * 2 // 5, 1),
        "rounds.count": 1,
        "rounds.phases": [*taught, "refresh", "estimator_sft"],
        "connector_rl.steps": steps,
        "connector_rl.train_batch_size": COMPLETIONS,
        "connector_rl.rewards.length": variant.get("length", 0.0),
        "connector_rl.rewards.token_weighting": variant.get("weighting", "none"),
        "connector_rl.rewards.likelihood": 0.0,
        f"connector_rl.rewards.{variant.get('reward', 'likelihood')}": 1.0,
        "posterior.proposal": variant.get("proposal", "connector"),
        "posterior.samples": CANDIDATES,
        "posterior.examples": max(steps * COMPLETIONS // CANDIDATES, 1),
        "connector_sft": {"steps": steps, "learning_rate": 1e-3, "train_batch_size": 64},
        "refresh.examples": settings["train"] // 2,
        "estimator_sft.steps": settings["sft"],
        "baselines.without_corl": False,
        "remid.negatives": 50,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def co_evolution(settings: Settings) -> Work:
    recipe = load_recipe(ROOT / "recipes" / "quickstart", settings["overrides"])

    def work() -> dict[str, Any]:
        with (
            tempfile.TemporaryDirectory() as folder,
            open(Path(folder) / "log", "w") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            results = train(recipe, Path(folder) / "run")
        ratios = results["ratio"]["full/without_reasoning"]
        shifted = [np.log(ratios[split]["ratio"]) for split in ratios if split != "IDTest"]
        return {
            **ratios["IDTest"],
            "shifted_ratio": float(np.exp(np.mean(shifted))),
            "perplexity": results["perplexity"]["full"]["IDTest"],
            "kept": [gate["kept"] for gate in results["gates"]],
        }

    return work


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    sizes = {"steps": 8, "train": 1024, "test": 128, "cold": 250, "sft": 30}
    settings = vars(arguments(__doc__, variants=list(VARIANTS), **sizes).parse_args(argv))
    found: dict[str, Any] = {}
    for name in settings["variants"]:
        asked = {**settings, "overrides": overrides(settings, VARIANTS[name])}
        measured = measure(co_evolution, asked, isolate=isolate)
        found[name] = {"cpu_s": measured.cpu_s, "wall_s": measured.wall_s, **measured.result}
        row = "{ratio:.3f} ± {standard_error:.3f}  shifted {shifted_ratio:.3f}  {cpu_s:.0f} s"
        print(f"{name:36} {row.format(**found[name])}", file=sys.stderr, flush=True)
    print_report("connector_objectives", settings, variants=found)


if __name__ == "__main__":
    sys.exit(main())
