"""Peak memory of a co-evolving run, against TRL's GRPOTrainer alone with one adapter on the same
base and batch.

    python -m tests.benchmarks.coevolution_memory

The run trains the connector with the estimator's likelihood as reward, and then the estimator on
what was written: both are adapters on one base, in one process. The peer's reward costs nothing.
One group a step in both.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coevolve.scoring.roles import ESTIMATOR
from tests.benchmarks import steps, workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report, ratios


def own(settings: Settings) -> Work:
    from coevolve.training.engines import run_sft
    from coevolve.training.phases import estimator_rows

    resident = steps.estimator(settings)
    rows = steps.examples(settings, resident.renderer.tokenizer)

    def work() -> dict[str, Any]:
        figures = steps.own_steps(settings, resident, rows, steps.resident_reward(resident, rows))
        written = resident.reason(rows[: settings["group"]], seed=settings["seed"])
        texts = [steps.reasoning(text, resident.renderer) for text in written]
        rows_of_sft = estimator_rows(resident, rows[: settings["group"]], texts)
        run_sft(
            steps.plan(settings, resident, ESTIMATOR, steps.Clock()),
            rows_of_sft,
            steps.sft(settings),
        )
        return figures

    return work


def peer(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"])
    rows = steps.examples(settings, tokenizer)

    def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(set(ids))) for ids in completion_ids]

    return lambda: steps.trl_steps(settings, model, steps.renderer(tokenizer), rows, length)


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(
        __doc__, repeats=1, steps=1, group=8, context=300, completion=48, response=50
    )
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        measured = compare(
            {"own": own, "peer": peer}, settings, repeats=settings["repeats"], isolate=isolate
        )
    ratio = ratios(measured)
    print_report(
        "coevolution_memory",
        settings,
        memory_ratio=ratio.get("cuda_peak_bytes", ratio["peak_bytes"]),
        goal={"memory_ratio": 1.15},
        **measured,
    )


if __name__ == "__main__":
    sys.exit(main())
