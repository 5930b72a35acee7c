"""What looking at a model when it is loaded costs, beside one plain pass over one long dialogue.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.self_check [--dtype bfloat16]

The look is to cost at most 2 s of CPU time with SmolLM2-135M on one thread.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from coevolve.scoring import models
from coevolve.scoring.models import load_model
from coevolve.scoring.selfcheck import checked
from coevolve.scoring.ways import ways_of
from tests.benchmarks import workload
from tests.benchmarks.harness import (
    Settings,
    Work,
    arguments,
    compare,
    print_report,
    ratios,
    synchronise,
)


def unchecked(settings: Settings) -> Any:
    with mock.patch.object(models, "checked", lambda model: model):
        return load_model(settings["folder"], dtype=settings["dtype"])


def own(settings: Settings) -> Work:
    model = unchecked(settings)

    def work() -> str:
        ways = ways_of(checked(model))
        return f"{ways.scores}, writes {ways.generates}"

    return work


def peer(settings: Settings) -> Work:
    """A plain pass over one context."""
    model = unchecked(settings)
    row = torch.randint(model.config.vocab_size, (1, settings["context"]))

    @torch.no_grad()
    def work() -> None:
        model(input_ids=row.to(model.device))
        synchronise()

    return work


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, context=800, dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        measured = compare(
            {"own": own, "peer": peer}, settings, repeats=settings["repeats"], isolate=isolate
        )
    print_report("self_check", settings, ratio=ratios(measured), **measured)


if __name__ == "__main__":
    main()
