"""DeepSpeed: full optimizer state out and in, a look at gradients, a module without its traces."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from coevolve.libraries.hooks import hooks, require, warn_of_untested
from coevolve.libraries.torch import renew_parameters

MASTER = "master"
"""The float32 copy of a parameter of lower precision, which DeepSpeed steps."""

MOMENTS = ("exp_avg", "exp_avg_sq")

_LEAVES = "nothing of the engine stays on the module or in memory"
_FINITE = "no step is taken on a gradient that is no number"
_MOMENTS = "torch's optimizer goes on with the moments of an earlier run"
_BESIDE = "a whole model may pass beside the divided one"
_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
_ZERO2 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
_ZERO3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
_PARTS = "deepspeed.runtime.zero.partition_parameters"
_OFFLOAD = "deepspeed.runtime.zero.parameter_offload"

_HANDLES = ("module_forward_pre_hook", "module_forward_post_hook")
_SHARE = ("ds_tensor", "ds_zero_partition_rank", "ds_zero_partition_world_size")

ENGINE = (
    *hooks(_ENGINE, _FINITE, "step"),
    *hooks(_ENGINE, _MOMENTS, "optimizer"),
    *hooks(_ENGINE, _LEAVES, *_HANDLES, "destroy()"),
)
ZERO2 = (
    *hooks(_ZERO2, _FINITE, "has_overflow"),
    *hooks(_ZERO2, _MOMENTS, "optimizer", "single_partition_of_fp32_groups"),
    *hooks(_ZERO2, _MOMENTS, "_hp_optimizer_states_linked"),
    *hooks(_ZERO2, _MOMENTS, "_lazy_init_hp_params_optimizer_state()"),
)
ZERO3 = (
    *hooks(_ZERO3, _FINITE, "has_overflow"),
    *hooks(_ZERO3, _MOMENTS, "optimizer", "fp32_partitioned_groups_flat"),
    *hooks(_ZERO3, "nothing stays half gathered when a phase ends", "parameter_offload"),
)
"""Of the optimizer, by stage."""
OFFLOAD = (
    *hooks(f"{_OFFLOAD}:DeepSpeedZeRoOffload", _LEAVES, "partition_all_parameters()"),
    *hooks(_OFFLOAD, "no module is taken for one of another phase", "FWD_MODULE_STACK"),
    *hooks(_PARTS, _BESIDE, "ZeroParamStatus"),
)
PARAMETER = (*hooks(_PARTS, _MOMENTS, *_SHARE), *hooks(_PARTS, _BESIDE, "ds_status"))
"""What ZeRO-3 puts on a parameter."""

_ON_MODULES = ("_original_parameters", "_external_params", "pre_bwd_fn", "post_bwd_fn")
"""What ZeRO-3 leaves on modules, beside names that begin with `ds_`."""


class Zero:
    """DeepSpeed's engine around a trainer's model, in stage 2 or 3."""

    def __init__(self, engine: Any, model: torch.nn.Module, stage: int):
        self.engine, self.model, self.stage = engine, model, stage

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def check(self) -> None:
        """Raise LibraryError unless all that is reached is there. Before the first step."""
        warn_of_untested("deepspeed")
        require(ENGINE, self.engine)
        require(ZERO3 if self.stage == 3 else ZERO2, self.engine.optimizer)
        if self.stage == 3:
            require(OFFLOAD)
            require(PARAMETER, next(self.model.parameters()))

    def before_step(self, check: Callable[[float], None]) -> None:
        """Let `check` see, before each step, a number that is finite if the gradient is: accelerate
        has the engine step in its backward pass, so there is no other moment between the two.
        """
        engine, step = self.engine, self.engine.step

        def checked(*args: Any, **kwargs: Any) -> Any:
            check(math.nan if engine.optimizer.has_overflow() else 0.0)
            return step(*args, **kwargs)

        engine.step = checked

    def state(self) -> dict[str, Tensor]:
        """As `sharding.optimizer_state`. A collective call."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        entries = self.engine.optimizer.optimizer.state.values()
        steps = {float(entry["step"]) for entry in entries if "step" in entry}
        if steps and self.stage < 3:
            self._link_moments()
        state = {}
        for name, parameter in self.trained.items():
            state[f"{MASTER}|{name}"] = safe_get_full_fp32_param(parameter).cpu().clone()
            if steps:
                state[f"step|{name}"] = torch.tensor(max(steps))
                for key in MOMENTS:
                    full = safe_get_full_optimizer_state(parameter, key)
                    state[f"{key}|{name}"] = full.cpu().clone()
        return state if steps else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        from deepspeed import utils

        kind = "local" if self.stage == 3 else "full"
        set_master = getattr(utils, f"safe_set_{kind}_fp32_param")
        set_moment = getattr(utils, f"safe_set_{kind}_optimizer_state")
        steps = [float(value) for key, value in state.items() if key.startswith("step|")]
        self._create_moments(steps[0])
        for name, parameter in self.trained.items():
            for key in (MASTER, *MOMENTS):
                value = state.get(f"{key}|{name}")
                if value is None:
                    continue  # no master copy in a state that was written without DeepSpeed
                part = _own_part(parameter, value) if self.stage == 3 else value
                if key == MASTER:
                    set_master(parameter, part)
                else:
                    set_moment(parameter, part, key)

    def whole(self, parameters: Iterable[torch.nn.Parameter]) -> AbstractContextManager[None]:
        """Inside, these are there in full. A collective call."""
        from deepspeed import zero

        return zero.GatheredParameters(list(parameters), enabled=self.stage == 3)

    def say_undivided(self, model: Any) -> None:
        """Let another model pass where TRL asks its output layer whether it is gathered."""
        if self.stage == 3:
            from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

            for parameter in model.get_output_embeddings().parameters():
                parameter.ds_status = ZeroParamStatus.AVAILABLE

    def release(self) -> None:
        """Give the plain module back, with full parameters on every process. A collective call."""
        from deepspeed.runtime.zero import parameter_offload
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        engine = self.engine
        if self.stage == 3:
            engine.optimizer.parameter_offload.partition_all_parameters()

        def copy(parameter: torch.nn.Parameter) -> Tensor:
            with self.whole([parameter]):
                return parameter.detach().clone()

        renew_parameters(self.model, copy)
        for module in self.model.modules() if self.stage == 3 else ():
            for name in list(vars(module)):
                if name.startswith("ds_") or name in _ON_MODULES:
                    del module.__dict__[name]
        engine.__dict__.pop("step", None)
        # `destroy` leaves these on the module, and the engine in memory; its finalizer calls again.
        engine.module_forward_pre_hook.remove()
        engine.module_forward_post_hook.remove()
        engine.destroy()
        engine.destroy = lambda: None
        parameter_offload.FWD_MODULE_STACK.clear()
        # While set, `generate` waits for all processes at every token, `from_pretrained` shards.
        unset_hf_deepspeed_config()

    def _create_moments(self, step: float) -> None:
        """Give torch's optimizer the entries of its first step, so that they can be filled."""
        zero = self.engine.optimizer
        stage3 = self.stage == 3
        name = "fp32_partitioned_groups_flat" if stage3 else "single_partition_of_fp32_groups"
        for flat in getattr(zero, name):
            zero.optimizer.state[flat] = {
                "step": torch.tensor(step, dtype=torch.float32, device=flat.device),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        if self.stage < 3:
            self._link_moments()

    def _link_moments(self) -> None:
        """Let each parameter know its part of the moments. DeepSpeed does it once, after the step
        of the first parameter group, when the later ones have no moments yet.
        """
        zero = self.engine.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _own_part(parameter: Any, full: Tensor) -> Tensor:
    """This process's share of a tensor under ZeRO-3, padded with zeros as DeepSpeed's are."""
    size = parameter.ds_tensor.ds_numel
    first = size * parameter.ds_zero_partition_rank
    flat = torch.zeros(size * parameter.ds_zero_partition_world_size, dtype=full.dtype)
    flat[: full.numel()] = full.flatten()
    return flat[first : first + size]
