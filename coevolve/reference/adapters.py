"""LoRA adapters as files: read, checked against a base model, and added up exactly.

An adapter adds s B A to a linear layer's weight, s = alpha / r (alpha / sqrt(r) for rank-stabilised
LoRA). The sum of two is one of rank r1 + r2, with no approximation:

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]

so that an adapter which was trained on top of a merged one can stay an adapter of the one base
model. Shapes: A (r, inputs), B (outputs, r).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from coevolve.errors import ArtifactError
from coevolve.files import write_json
from coevolve.scoring.foreign import explained
from coevolve.scoring.models import SAVED
from coevolve.scoring.origins import (
    CONFIG,
    ON_A_FROZEN_BASE,
    WEIGHTS,
    read_config,
    read_weights,
    require_values,
)

# A value other than these changes what the two matrices mean, or what else belongs to the adapter.
PLAIN: Mapping[str, Sequence[Any]] = {
    **ON_A_FROZEN_BASE,
    "use_dora": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
}
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of linear layers.

    Attributes:
        source: where it came from, for errors.
        config: PEFT's own.
        matrices: (A, B) by the module's name in the base model.
    """

    source: str
    config: Mapping[str, Any]
    matrices: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        """The factor on B A."""
        rank = self.config["r"]
        return self.config["lora_alpha"] / (rank**0.5 if self.config.get("use_rslora") else rank)


def read_adapter(folder: Path) -> Adapter:
    """An adapter from a PEFT directory; ArtifactError unless a plain LoRA of linear layers."""
    config, tensors = read_config(folder), read_weights(folder)
    _check_config(config, folder / CONFIG)
    return Adapter(str(folder), config, _paired(tensors, config["r"], folder / WEIGHTS))


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """A PEFT directory that `PeftModel.from_pretrained` loads."""
    folder.mkdir(parents=True)
    tensors = {}
    for module, (a, b) in adapter.matrices.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, dict(adapter.config))


def add_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that does what all of them do together, in float32, its rank the sum of theirs.

    A module that one of them leaves alone gets zeros from it. They must be of one base model
    (`check_fit`).
    """
    shapes = {
        module: (a.shape[1], b.shape[0])
        for adapter in adapters
        for module, (a, b) in adapter.matrices.items()
    }
    matrices = {}
    for module, (inputs, outputs) in shapes.items():
        parts = []
        for adapter in adapters:
            rank = adapter.config["r"]
            zeros = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
            a, b = adapter.matrices.get(module, zeros)
            parts.append((a.float(), adapter.scale * b.float()))
        a_rows, b_columns = zip(*parts, strict=True)
        matrices[module] = torch.cat(a_rows, dim=0), torch.cat(b_columns, dim=1)
    rank = sum(adapter.config["r"] for adapter in adapters)
    config = {
        **adapters[0].config,
        "r": rank,
        "lora_alpha": rank,  # a factor of 1: each adapter's own is in its B
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": list(shapes),
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    }
    return Adapter(" + ".join(adapter.source for adapter in adapters), config, matrices)


def check_fit(adapters: Iterable[Adapter], base: str, *, trust_remote_code: bool = False) -> None:
    """Raise ArtifactError unless the base has every module of the adapters, in its shape."""
    with explained(f"The model {base!r} cannot be loaded", SAVED), torch.device("meta"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    modules = dict(model.named_modules())
    for adapter in adapters:
        for name, (a, b) in adapter.matrices.items():
            weight = getattr(modules.get(name), "weight", None)
            if weight is None:
                raise ArtifactError(
                    f"{adapter.source}: the base model {base} has no module {name!r}."
                )
            # GPT-2's layers hold the transpose of what a Linear holds.
            shape = tuple(weight.shape)[:: -1 if adapter.config.get("fan_in_fan_out") else 1]
            if shape != (b.shape[0], a.shape[1]):
                raise ArtifactError(
                    f"{adapter.source}: module {name!r} is {b.shape[0]} x {a.shape[1]}, in the "
                    f"base model {base} {' x '.join(map(str, shape))}. Give the base model that "
                    "the adapter was trained on."
                )


def _check_config(config: Any, path: Path) -> None:
    require_values(config, PLAIN, path, "only plain LoRA adapters add up")
    for field, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        value = config.get(field)
        if type(value) not in kinds or value <= 0:
            raise ArtifactError(f"{path}: {field} is {value!r}; accepted is a positive number.")


def _paired(
    tensors: Mapping[str, Tensor], rank: int, path: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by module."""
    by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ArtifactError(
                f"{path}: tensor {key!r} is none of a linear layer's LoRA matrices; only they add "
                "up."
            )
        if tensor.dim() != 2 or tensor.shape["AB".index(match["matrix"])] != rank:
            raise ArtifactError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, the rank is {rank}."
            )
        by_module.setdefault(match["module"], {})[match["matrix"]] = tensor
    if not by_module:
        raise ArtifactError(f"{path}: holds no tensor.")
    for module, found in by_module.items():
        if len(found) != 2:
            raise ArtifactError(f"{path}: {module} has one of two matrices. Copy the file again.")
    return {module: (found["A"], found["B"]) for module, found in by_module.items()}
