"""The two roles, connector and estimator: adapters on one resident base model, or each in a model of its own.

Every user of a model goes through `acting`, which puts back whatever it switched: a reward that left another
adapter active, or dropout off, would train nothing and raise nothing.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from coevolve.errors import ArtifactError

Role = Literal["connector", "estimator"]
Tuning = Literal["lora", "full"]
CONNECTOR: Role = "connector"
ESTIMATOR: Role = "estimator"
ROLES: tuple[Role, ...] = (CONNECTOR, ESTIMATOR)

REFERENCE = "ref"
"""The frozen copy's name; TRL looks for a KL reference under it."""

Weights = Mapping[str, Tensor]


class Roles(Protocol):
    """Connector and estimator in memory.

    Attributes:
        tuning: of each role.
        has_base: whether the untouched base model of the estimator is there to act.
    """

    tuning: Mapping[Role, Tuning]
    has_base: bool

    def module(self, role: Role) -> torch.nn.Module:
        """The module to train for `role`: active, its weights requiring gradients, those of the other not."""

    def acting(self, role: Role | Literal["ref"] | None) -> AbstractContextManager[torch.nn.Module]:
        """The model in evaluation mode as `role`, or as the estimator's untouched base for None; undone on leaving."""

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
    """Named LoRA adapters on one frozen base, which may differ in rank, targets and dropout.

    Args:
        model: a PeftModel with an adapter named as each role.
        roles: both, or the one that the model is for.
    """

    has_base = True

    def __init__(self, model: PeftModel, roles: Sequence[Role] = ROLES):
        missing = [role for role in roles if role not in model.peft_config]
        if missing:
            raise ArtifactError(f"The model has adapters {sorted(model.peft_config)}; {missing[0]!r} is missing.")
        self.model = model
        self.tuning: dict[Role, Tuning] = dict.fromkeys(roles, "lora")

    @classmethod
    def create(cls, base: PreTrainedModel, configs: Mapping[Role, LoraConfig], *, seed: int) -> "AdapterRoles":
        """New adapters, which leave the base's function unchanged until they are trained."""
        first, *others = configs
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(base, configs[first], adapter_name=first)
            for role in others:
                model.add_adapter(role, configs[role])
        return cls(model.to(base.device), list(configs))

    @classmethod
    def load(cls, base: PreTrainedModel, folders: Mapping[Role, Path]) -> "AdapterRoles":
        """Adapters from PEFT directories (safetensors)."""
        first, *others = folders
        model = PeftModel.from_pretrained(base, folders[first], adapter_name=first)
        for role in others:
            model.load_adapter(folders[role], adapter_name=role)
        return cls(model.eval(), list(folders))

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
        own = get_peft_model_state_dict(self.model, adapter_name=role)
        require_fit(role, own, weights)
        set_peft_model_state_dict(self.model, dict(weights), adapter_name=role)

    def save(self, role: Role, folder: Path) -> None:
        # PEFT writes a named adapter into a folder of that name, so it is asked to write beside.
        if folder.name != role:
            raise ValueError(f"folder must be named {role!r}, found {folder.name!r}")
        self.model.save_pretrained(folder.parent, selected_adapters=[role], safe_serialization=True)
        (folder.parent / "README.md").unlink(missing_ok=True)
        (folder / "README.md").unlink(missing_ok=True)


class WholeRole:
    """One role that is all of a model, and trained whole. None is the name of a base model that is kept to judge."""

    has_base = False

    def __init__(self, role: Role | None, model: PreTrainedModel):
        self.role, self.model = role, model
        self.tuning: dict[Role, Tuning] = {role: "full"}
        self._reference: PreTrainedModel | None = None

    def module(self, role: Role) -> torch.nn.Module:
        return self.model

    @contextmanager
    def acting(self, role: Role | Literal["ref"] | None) -> Iterator[torch.nn.Module]:
        model = self._model(role)
        training = model.training
        try:
            yield model.eval()
        finally:
            model.train(training)

    @contextmanager
    def frozen(self, role: Role, weights: Weights) -> Iterator[torch.nn.Module]:
        self._reference = copy.deepcopy(self.model).requires_grad_(False)
        try:
            self.load_weights(REFERENCE, weights)
            yield self._reference
        finally:
            self._reference = None

    def weights(self, role: Role) -> dict[str, Tensor]:
        # Named parameters list a tied weight once, which is how safetensors wants it.
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.named_parameters()}

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        parameters = dict(self._model(role).named_parameters())
        require_fit(role, parameters, weights)
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)

    def save(self, role: Role, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def _model(self, role: Role | Literal["ref"] | None) -> PreTrainedModel:
        return self._reference if role == REFERENCE else self.model


class SeparateRoles:
    """Each role in a model of its own: trained whole, or under an adapter. The two may be of different base models.

    Args:
        models: for each role a model, or a PeftModel with an adapter of the role's name.
        base: who acts as the estimator's untouched base, where something (a judge) asks for it and the estimator has
            no adapter to be switched off: a model kept for it, or the connector's, if that is of the same base.
    """

    def __init__(
        self, models: Mapping[Role, PreTrainedModel | PeftModel], base: AdapterRoles | WholeRole | None = None
    ):
        self.parts: dict[Role, AdapterRoles | WholeRole] = {
            role: AdapterRoles(model, [role]) if isinstance(model, PeftModel) else WholeRole(role, model)
            for role, model in models.items()
        }
        self.tuning: dict[Role, Tuning] = {role: part.tuning[role] for role, part in self.parts.items()}
        self.base = self.parts[ESTIMATOR] if self.tuning[ESTIMATOR] == "lora" else base
        self.has_base = self.base is not None
        self._frozen: AdapterRoles | WholeRole | None = None

    @classmethod
    def create(cls, base: PreTrainedModel, *, keep_base: bool) -> "SeparateRoles":
        """Two copies of the base, both to be trained whole, and the base itself where it is kept."""
        models = {CONNECTOR: copy.deepcopy(base), ESTIMATOR: copy.deepcopy(base) if keep_base else base}
        return cls(models, WholeRole(None, base.requires_grad_(False)) if keep_base else None)

    def module(self, role: Role) -> torch.nn.Module:
        return self.parts[role].module(role)

    def acting(self, role: Role | Literal["ref"] | None) -> AbstractContextManager[torch.nn.Module]:
        if role is None and self.base is None:
            raise ArtifactError("The untouched base model was not kept in memory, and a judge asks for it.")
        part = self.base if role is None else self._part(role)
        return part.acting(role)

    @contextmanager
    def frozen(self, role: Role, weights: Weights) -> Iterator[torch.nn.Module | None]:
        self._frozen = self.parts[role]
        try:
            with self._frozen.frozen(role, weights) as model:
                yield model
        finally:
            self._frozen = None

    def weights(self, role: Role) -> dict[str, Tensor]:
        return self.parts[role].weights(role)

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        self._part(role).load_weights(role, weights)

    def save(self, role: Role, folder: Path) -> None:
        self.parts[role].save(role, folder)

    def _part(self, role: Role | Literal["ref"]) -> AdapterRoles | WholeRole:
        return self._frozen if role == REFERENCE else self.parts[role]


def lora_config(options: Mapping[str, Any]) -> LoraConfig:
    """A PEFT configuration from a recipe's `model.lora` values, under PEFT's names."""
    return LoraConfig(task_type="CAUSAL_LM", **options)


def existing_config(folder: Path) -> LoraConfig:
    """The configuration of an adapter in a PEFT directory, to train on."""
    config = LoraConfig.from_pretrained(folder)
    config.task_type, config.inference_mode = "CAUSAL_LM", False
    config.init_lora_weights = True  # its own weights follow
    config.base_model_name_or_path = None  # PEFT fills it in when it saves
    return config


def require_fit(role: str, own: Mapping[str, Tensor], weights: Weights) -> None:
    """Raise ArtifactError unless the weights have the names and shapes of those that they are to replace."""
    odd = sorted(set(own) ^ set(weights))
    if odd:
        raise ArtifactError(
            f"{role}: the weights do not fit the model; it has {len(own)} tensors and they are {len(weights)}, the "
            f"first odd one is {odd[0]!r}."
        )
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise ArtifactError(
                f"{role}: the weights do not fit the model; {name!r} is {tuple(tensor.shape)}, in the model "
                f"{tuple(own[name].shape)}."
            )
