"""The two roles, connector and estimator: adapters on one resident base model, or each in a model
of its own.

Every user of a model goes through `acting`, which puts back whatever it switched: a reward that
left another adapter active, or dropout off, would train nothing and raise nothing.
"""

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft import __version__ as peft_version
from peft import get_peft_model_state_dict as adapter_state
from peft import set_peft_model_state_dict as load_adapter_state
from torch import Tensor
from transformers import PreTrainedModel

from coevolve.errors import ArtifactError
from coevolve.files import write_json
from coevolve.scoring.foreign import explained
from coevolve.scoring.origins import CONFIG, read_config, read_weights, require_plain

Role = Literal["connector", "estimator"]
Tuning = Literal["lora", "full", "none"]
CONNECTOR: Role = "connector"
ESTIMATOR: Role = "estimator"
ROLES: tuple[Role, ...] = (CONNECTOR, ESTIMATOR)

REFERENCE: Literal["ref"] = "ref"
"""The frozen copy's name; TRL looks for a KL reference under it."""

Weights = Mapping[str, Tensor]

OF_ITS_BASE = "Give a folder that PEFT's save_pretrained wrote, and the base model that it was for"


class Roles(Protocol):
    """Connector and estimator in memory; `has_base`: the untouched base can act as well."""

    tuning: Mapping[Role, Tuning]
    has_base: bool

    def module(self, role: Role) -> torch.nn.Module:
        """The module to train for `role`: active, its weights alone requiring gradients."""

    def acting(self, role: Role | Literal["ref"] | None) -> AbstractContextManager[torch.nn.Module]:
        """The model in evaluation mode as `role`, or the untouched base for None; then undone."""

    def frozen(
        self, role: Role, weights: Weights
    ) -> AbstractContextManager[torch.nn.Module | None]:
        """A frozen copy of `role` with these weights acts as `ref` until leaving. Yields the copy
        where it is a model of its own, None where it is an adapter.
        """

    def weights(self, role: Role) -> dict[str, Tensor]:
        """A copy on the CPU of what training changes for `role`."""

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        """Put back what `weights` returned."""

    def save(self, role: Role, folder: Path) -> None:
        """Write `role` as a plain PEFT or transformers directory."""


class AdapterRoles:
    """Named LoRA adapters on one frozen base, which may differ in rank, targets and dropout."""

    has_base = True

    def __init__(self, model: PeftModel, roles: Sequence[Role] = ROLES):
        missing = [role for role in roles if role not in model.peft_config]
        if missing:
            found = sorted(model.peft_config)
            raise ArtifactError(f"The model has adapters {found}; {missing[0]!r} is missing.")
        self.model = model
        self.tuning: Mapping[Role, Tuning] = dict.fromkeys(roles, "lora")

    @classmethod
    def create(
        cls, base: PreTrainedModel, configs: Mapping[Role, LoraConfig], *, seed: int
    ) -> "AdapterRoles":
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
        """Adapters from PEFT directories, tensor by tensor; ArtifactError unless all is whole."""
        for folder in folders.values():
            require_plain(read_config(folder), folder / CONFIG)
        # PEFT's own loading leaves a tensor that is not in the file as it was drawn.
        load = partial(existing_config, inference_mode=True)
        configs = {role: load(folder) for role, folder in folders.items()}
        roles = cls.create(base, configs, seed=0)
        for role, folder in folders.items():
            roles.load_weights(role, read_weights(folder))
        roles.model.eval()
        return roles

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
        state = adapter_state(self.model, adapter_name=role)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        own = adapter_state(self.model, adapter_name=role)
        _require_fit(role, own, weights)
        load_adapter_state(self.model, dict(weights), adapter_name=role)

    def save(self, role: Role, folder: Path) -> None:
        # PEFT writes a named adapter into a folder of that name, so it is asked to write beside.
        if folder.name != role:
            raise ValueError(f"folder must be named {role!r}, found {folder.name!r}")
        beside = str(folder.parent)
        self.model.save_pretrained(beside, selected_adapters=[role], safe_serialization=True)
        (folder.parent / "README.md").unlink(missing_ok=True)
        (folder / "README.md").unlink(missing_ok=True)
        # The order of a set differs from process to process, and the file's hash with it.
        sets = {
            k: sorted(x) for k, x in vars(self.model.peft_config[role]).items() if type(x) is set
        }
        write_json(folder / CONFIG, {**read_config(folder), **sets})


class WholeRole:
    """One role that is all of a model, trained whole; None names a base that is kept to judge."""

    has_base = False

    def __init__(self, role: Role | None, model: PreTrainedModel, tuning: Tuning = "full"):
        self.role, self.model = role, model
        self._use_cache = getattr(model.config, "use_cache", None)
        self.tuning: Mapping[Role, Tuning] = {} if role is None else {role: tuning}
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
        named = self.model.named_parameters()
        return {name: tensor.detach().cpu().clone() for name, tensor in named}

    def load_weights(self, role: Role | Literal["ref"], weights: Weights) -> None:
        parameters = dict(self._model(role).named_parameters())
        _require_fit(role, parameters, weights)
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)

    def save(self, role: Role, folder: Path) -> None:
        if self._use_cache is not None:  # a trainer turns it off, so a resumed run's may be on
            self.model.config.use_cache = self._use_cache
        self.model.save_pretrained(folder)

    def _model(self, role: Role | Literal["ref"] | None) -> PreTrainedModel:
        if role != REFERENCE:
            return self.model
        assert self._reference is not None  # `ref` acts within `frozen`
        return self._reference


class SeparateRoles:
    """Each role in a model of its own, trained whole or under an adapter; bases may differ.

    `base` acts as the estimator's untouched base, where a judge asks for it and the estimator has
    no adapter to be switched off: a model kept for it, or the connector's, if that is of the same
    base. `untouched` are the roles whose model is a base model as it is.
    """

    def __init__(
        self,
        models: Mapping[Role, PreTrainedModel | PeftModel],
        base: AdapterRoles | WholeRole | None = None,
        *,
        untouched: Collection[Role] = (),
    ):
        self.parts: dict[Role, AdapterRoles | WholeRole] = {
            role: AdapterRoles(model, [role])
            if isinstance(model, PeftModel)
            else WholeRole(role, model, "none" if role in untouched else "full")
            for role, model in models.items()
        }
        tuning: Mapping[Role, Tuning] = {role: x.tuning[role] for role, x in self.parts.items()}
        self.tuning = tuning
        self.base = base if self.tuning[ESTIMATOR] == "full" else self.parts[ESTIMATOR]
        self.has_base = self.base is not None
        self._frozen: AdapterRoles | WholeRole | None = None

    @classmethod
    def create(cls, base: PreTrainedModel, *, keep_base: bool) -> "SeparateRoles":
        """Two copies of the base, to be trained whole, and the base itself where it is kept."""
        own = copy.deepcopy(base) if keep_base else base
        models = {CONNECTOR: copy.deepcopy(base), ESTIMATOR: own}
        return cls(models, WholeRole(None, base.requires_grad_(False)) if keep_base else None)

    @classmethod
    def untouched(cls, base: PreTrainedModel) -> "SeparateRoles":
        """Both roles by one base model, as it is."""
        return cls(dict.fromkeys(ROLES, base), untouched=ROLES)

    def module(self, role: Role) -> torch.nn.Module:
        return self.parts[role].module(role)

    def acting(self, role: Role | Literal["ref"] | None) -> AbstractContextManager[torch.nn.Module]:
        if role is not None:
            return self._part(role).acting(role)
        if self.base is None:
            raise ArtifactError(
                "The untouched base model was not kept in memory, and a judge asks for it."
            )
        return self.base.acting(role)

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
        if role != REFERENCE:
            return self.parts[role]
        assert self._frozen is not None  # `ref` acts within `frozen`
        return self._frozen


def lora_config(options: Mapping[str, Any]) -> LoraConfig:
    """A PEFT configuration from a recipe's `model.lora` values, under PEFT's names."""
    return LoraConfig(task_type="CAUSAL_LM", **options)


def put_on(model: PreTrainedModel | PeftModel, folder: Path, name: str = "default") -> PeftModel:
    """The model with a PEFT directory's adapter beside others; ArtifactError if it does not fit."""
    read_peft_config(folder)
    base = model.name_or_path
    what = f"The adapter {str(folder)!r} cannot be put on {base!r}"
    with explained(what, OF_ITS_BASE), warnings.catch_warnings():
        # PEFT would go on with tensors that the file lacks as they were drawn.
        warnings.filterwarnings("error", message=".*missing adapter keys")
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, folder, adapter_name=name)
        missing = model.load_adapter(folder, adapter_name=name).missing_keys
    if missing:
        raise ArtifactError(f"{folder}: lacks the tensor {missing[0]!r}. {OF_ITS_BASE}.")
    return model


def read_peft_config(folder: Path) -> PeftConfig:
    """A PEFT directory's configuration; ArtifactError also for a field that PEFT would drop."""
    found = read_config(folder)
    what = f"The adapter {str(folder)!r} cannot be loaded"
    with explained(what, f"Correct {CONFIG}, or copy it again"):
        known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[found["peft_type"]])}
        # A field of a newer PEFT that is off changes nothing.
        dropped = sorted(name for name, value in found.items() if value and name not in known)
        if dropped:
            value = found[dropped[0]]
            raise ArtifactError(
                f"{folder / CONFIG}: {dropped[0]} is {value!r}, which PEFT {peft_version} would "
                "leave out. Upgrade it."
            )
        return PeftConfig.from_pretrained(str(folder))


def existing_config(folder: Path, *, inference_mode: bool = False) -> LoraConfig:
    """The configuration of an adapter in a PEFT directory, to train on or (inference) to use."""
    config: Any = read_peft_config(folder)
    config.task_type, config.inference_mode = "CAUSAL_LM", inference_mode
    config.init_lora_weights = True  # its own weights follow
    config.base_model_name_or_path = None  # PEFT fills it in when it saves
    lora: LoraConfig = config
    return lora


def _require_fit(role: str, own: Mapping[str, Tensor], weights: Weights) -> None:
    """Raise ArtifactError unless the weights have the names and shapes of those to be replaced."""
    odd = sorted(set(own) ^ set(weights))
    if odd:
        counts = f"it has {len(own)} tensors and they are {len(weights)}"
        raise ArtifactError(
            f"{role}: the weights do not fit the model; {counts}, odd is {odd[0]!r}."
        )
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape or not tensor.is_floating_point():
            raise ArtifactError(
                f"{role}: the weights do not fit the model; {name!r} is {tuple(tensor.shape)} "
                f"({tensor.dtype}), in the model {tuple(own[name].shape)} ({own[name].dtype})."
            )
