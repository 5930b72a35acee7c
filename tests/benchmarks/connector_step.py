"""A GRPO step of the connector, its likelihood reward included: coevolve against TRL with a second
resident model.

    python -m tests.benchmarks.connector_step
    python -m tests.benchmarks.connector_step --peer reload

The peer `trl` is GRPOTrainer as it comes, with LoRA, and a reward that runs one padded batch
through another model in memory and takes the log-softmax of all logits. The peer `reload` is
coevolve's own step whose reward loads the scorer from disk at each call, as the paper's public code
does (which also starts a process for it; this peer does not). Time is the median step's, without
what comes before the first; memory is the process's peak, models included.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import steps, workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report, ratios


def own(settings: Settings) -> Work:
    resident = steps.estimator(settings)
    rows = steps.examples(settings, resident.renderer.tokenizer)
    return lambda: steps.own_steps(settings, resident, rows, steps.resident_reward(resident, rows))


def trl(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    judge, _ = workload.load(settings["folder"])
    render = steps.renderer(tokenizer)
    rows = steps.examples(settings, tokenizer)
    return lambda: steps.trl_steps(
        settings, model, render, rows, steps.plain_reward(judge, render, rows)
    )


def reload(settings: Settings) -> Work:
    resident = steps.estimator(settings)
    rows = steps.examples(settings, resident.renderer.tokenizer)

    def reward(**columns: Any) -> list[float]:
        return steps.resident_reward(steps.estimator(settings), rows)(**columns)

    return lambda: steps.own_steps(settings, resident, rows, reward)


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(
        __doc__, repeats=1, steps=2, group=8, context=300, completion=48, response=50
    )
    parser.add_argument("--peer", choices=("trl", "reload"), default="trl", help=" ")
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        peer = {"trl": trl, "reload": reload}[settings["peer"]]
        measured = compare(
            {"own": own, "peer": peer}, settings, repeats=settings["repeats"], isolate=isolate
        )
    step = {
        name: {
            side: statistics.median(
                value for run in measured[side]["results"] for value in run[name]
            )
            for side in ("own", "peer")
        }
        for name in ("wall_s", "cpu_s")
    }
    ratio = ratios(measured)
    print_report(
        "connector_step",
        settings,
        step_time_ratio={name: sides["own"] / sides["peer"] for name, sides in step.items()},
        memory_ratio=ratio.get("cuda_peak_bytes", ratio["peak_bytes"]),
        goal={"step_time_ratio": 0.6, "memory_ratio": 0.6} if settings["peer"] == "trl" else None,
        step=step,
        **measured,
    )


if __name__ == "__main__":
    sys.exit(main())
