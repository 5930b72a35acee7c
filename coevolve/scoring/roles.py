"""The two roles, connector and estimator, as adapters on one resident base model or as two small models.

Every user of a model goes through `acting`, which puts back whatever it switched: a reward that left another
adapter active, or dropout off, would train nothing and raise nothing.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from coevolve.errors import ArtifactError

Role = Literal["connector", "estimator"]
CONNECTOR: Role = "connector"
ESTIMATOR: Role = "estimator"
ROLES: tuple[Role, ...] = (CONNECTOR, ESTIMATOR)

REFERENCE = "ref"
"""The frozen copy's name; TRL looks for a KL reference under it."""

Weights = Mapping[str, Tensor]


class Roles(Protocol):
    """Connector and estimator in memory."""

    tuning: Literal["lora", "full"]

    def module(self, role: Role) -> torch.nn.Module:
        """The module to train for `role`: active, its weights requiring gradients, those of the other not."""

    def acting(self, role: Role | Literal["ref"] | None) -> AbstractContextManager[torch.nn.Module]:
        """The model in evaluation mode as `role`, or as the untouched base for None; undone on leaving."""

    def frozen(self, role: Role, weights: Weights) -> AbstractContextManager[torch.nn.Module | None]:
        """A frozen copy of `role` with the weights given, to act as `ref` until leaving.

        Yields the copy where it is a model of its own, None where it is an adapter.
        """

    def weights(self, role: Role) -> dict[str, Tensor]:
        """A copy on the CPU of what training changes for `role`."""

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        """Put back what `weights` returned."""

    def save(self, role: Role, folder: Path) -> None:
        """Write `role` as a plain PEFT or transformers directory."""


class AdapterRoles:
    """Two named LoRA adapters on one frozen base.

    Args:
        model: a PeftModel with adapters `connector` and `estimator`.
    """

    tuning = "lora"

    def __init__(self, model: PeftModel):
        missing = [role for role in ROLES if role not in model.peft_config]
        if missing:
            raise ArtifactError(f"The model has adapters {sorted(model.peft_config)}; {missing[0]!r} is missing.")
        self.model = model

    @classmethod
    def create(cls, base: PreTrainedModel, configs: Mapping[Role, LoraConfig], *, seed: int) -> "AdapterRoles":
        """New adapters, which leave the base's function unchanged until they are trained."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(base, configs[CONNECTOR], adapter_name=CONNECTOR)
            model.add_adapter(ESTIMATOR, configs[ESTIMATOR])
        return cls(model.to(base.device))

    @classmethod
    def load(cls, base: PreTrainedModel, folders: Mapping[Role, Path]) -> "AdapterRoles":
        """Adapters from PEFT directories (safetensors)."""
        model = PeftModel.from_pretrained(base, folders[CONNECTOR], adapter_name=CONNECTOR)
        model.load_adapter(folders[ESTIMATOR], adapter_name=ESTIMATOR)
        return cls(model.eval())

    def module(self, role: Role) -> torch.nn.Module:
        self.model.set_adapter(role)
        return self.model

    @contextmanager
    def acting(self, role: Role | Literal["ref"] | None) -> Iterator[torch.nn.Module]:
        training, active = self.model.training, self.model.active_adapter
        try:
            self.model.eval()
            if role is None:
                with self.model.disable_adapter():
                    yield self.model
            else:
                self.model.set_adapter(role)
                yield self.model
        finally:
            self.model.set_adapter(active)
            self.model.train(training)

    @contextmanager
    def frozen(self, role: Role, weights: Weights) -> Iterator[None]:
        active = self.model.active_adapter
        self.model.add_adapter(REFERENCE, self.model.peft_config[role])
        try:
            self.load_weights(REFERENCE, weights)
            self.model.set_adapter(active)
            yield None
        finally:
            self.model.delete_adapter(REFERENCE)
            self.model.set_adapter(active)

    def weights(self, role: Role) -> dict[str, Tensor]:
        state = get_peft_model_state_dict(self.model, adapter_name=role)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        result = set_peft_model_state_dict(self.model, dict(weights), adapter_name=role)
        if result.unexpected_keys:
            raise ArtifactError(f"{role}: weights for unknown modules, the first is {result.unexpected_keys[0]!r}.")

    def save(self, role: Role, folder: Path) -> None:
        # PEFT writes a named adapter into a folder of that name, so it is asked to write beside.
        if folder.name != role:
            raise ValueError(f"folder must be named {role!r}, found {folder.name!r}")
        self.model.save_pretrained(folder.parent, selected_adapters=[role], safe_serialization=True)
        (folder.parent / "README.md").unlink(missing_ok=True)
        (folder / "README.md").unlink(missing_ok=True)


class SeparateRoles:
    """Two models, both trained in full.

    Args:
        models: one for each role.
        base: a frozen third one, kept only where something (a judge) asks for the untouched base.
    """

    tuning = "full"

    def __init__(self, models: Mapping[Role, PreTrainedModel], base: PreTrainedModel | None = None):
        self.models = dict(models)
        self.base = base

    @classmethod
    def create(cls, base: PreTrainedModel, *, keep_base: bool) -> "SeparateRoles":
        """Two copies of the base, and the base itself where it is kept."""
        models = {CONNECTOR: copy.deepcopy(base), ESTIMATOR: copy.deepcopy(base) if keep_base else base}
        return cls(models, base.requires_grad_(False) if keep_base else None)

    def module(self, role: Role) -> torch.nn.Module:
        return self.models[role]

    @contextmanager
    def acting(self, role: Role | Literal["ref"] | None) -> Iterator[torch.nn.Module]:
        model = self.base if role is None else self.models[role]
        if model is None:
            raise ArtifactError("The untouched base model was not kept in memory, and a judge asks for it.")
        training = model.training
        try:
            yield model.eval()
        finally:
            model.train(training)

    @contextmanager
    def frozen(self, role: Role, weights: Weights) -> Iterator[torch.nn.Module]:
        self.models[REFERENCE] = copy.deepcopy(self.models[role]).requires_grad_(False)
        try:
            self.load_weights(REFERENCE, weights)
            yield self.models[REFERENCE]
        finally:
            del self.models[REFERENCE]

    def weights(self, role: Role) -> dict[str, Tensor]:
        # Named parameters list a tied weight once, which is how safetensors wants it.
        return {name: tensor.detach().cpu().clone() for name, tensor in self.models[role].named_parameters()}

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        parameters = dict(self.models[role].named_parameters())
        if set(parameters) != set(weights):
            odd = sorted(set(parameters) ^ set(weights))[0]
            raise ArtifactError(f"{role}: the weights do not fit the model, the first odd one is {odd!r}.")
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)

    def save(self, role: Role, folder: Path) -> None:
        self.models[role].save_pretrained(folder)


def lora_config(options: Mapping[str, Any]) -> LoraConfig:
    """A PEFT configuration from a recipe's `model.lora` values, under PEFT's names."""
    return LoraConfig(task_type="CAUSAL_LM", **options)
