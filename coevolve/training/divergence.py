"""Stops training before an optimizer step on a loss or a gradient that is no number, and writes
down what it was on.

A NaN that reaches the weights makes every later figure a NaN, and nothing shows where it came from.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from coevolve.errors import DivergenceError
from coevolve.files import write_json
from coevolve.training.distributed.processes import Processes

FAILED = "failed"
"""The folder in a run's directory that holds such batches."""


class DivergenceGuard:
    """Looks at the loss of each part of a step, and at the gradient before the step is taken.

    Writes a batch that it stops at into `failed/` of the run's folder, a file for each process.
    """

    def __init__(self, folder: Path, name: str, processes: Processes, tokenizer: Any):
        self.folder, self.name = folder / FAILED, name
        self.processes, self.tokenizer = processes, tokenizer
        self._parts: list[tuple[Mapping[str, Any], Tensor]] = []

    def begin(self) -> None:
        """A step begins. One that was left halfway is forgotten."""
        self._parts = []

    def see(self, inputs: Mapping[str, Any], loss: Tensor) -> None:
        """A part of the step to come, with its loss. Kept until the step is taken."""
        self._parts.append((dict(inputs), loss.detach()))

    def check(self, step: int, gradient: float, samples: list[dict[str, Any]]) -> None:
        """Before an optimizer step, `step` of which were taken. A collective call.

        `gradient` is its norm, or any number that is finite if and only if the gradient is. Raises
        DivergenceError on every process, if the loss or the gradient of one is no number.
        """
        parts, self._parts = self._parts, []
        losses = [loss.item() for _, loss in parts]
        fine = all(math.isfinite(value) for value in (gradient, *losses))
        # Whoever asks the run to stop may wait for the end of this step.
        (stop,) = self.processes.agree(not fine, heed_stop=False)
        if not stop:
            return
        path = self.folder / f"{self.name}-step-{step}-process-{self.processes.rank}"
        texts = [text for inputs, _ in parts for text in self._texts(inputs)]
        found = {"loss": losses, "gradient_norm": gradient, "texts": texts, "samples": samples}
        tensors = {
            f"{number}|{name}": value.detach().cpu().contiguous().clone()
            for number, (inputs, _) in enumerate(parts)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path.with_name(f"{path.name}.safetensors"))
        write_json(path.with_name(f"{path.name}.json"), _as_json(found))
        shown = ", ".join(f"{value:g}" for value in losses)
        raise DivergenceError(
            f"{self.name}, step {step}: the loss is {shown} and the gradient norm {gradient:g}"
            + (" here, and no number on another process" if fine else "")
            + (
                f". The step was not taken. Its batch is in {path}.json (texts, rewards) and "
                f"{path}.safetensors (ids, advantages, ...). Try a lower learning_rate, a lower "
                "max_grad_norm, or model.dtype=float32; the same command goes on from the last "
                "checkpoint."
            )
        )

    def _texts(self, inputs: Mapping[str, Any]) -> list[dict[str, str]]:
        masks = {
            "prompt": "prompt_mask",
            "completion": "completion_mask",
            "input": "attention_mask",
        }
        columns = {
            name: [
                self.tokenizer.decode(row[kept != 0].tolist())
                for row, kept in zip(inputs[f"{name}_ids"], inputs[mask], strict=True)
            ]
            for name, mask in masks.items()
            if f"{name}_ids" in inputs and mask in inputs
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _as_json(value: Any) -> Any:
    """With numbers that JSON does not have as words."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
