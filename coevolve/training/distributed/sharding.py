"""What differs where the parameters or the optimizer are sharded: reading and writing full state,
and taking it apart.

Optimizer state goes by parameter name and in full tensors, so that it fits any number of processes,
any ZeRO stage and FSDP2. DeepSpeed and FSDP2 change a module in place when they are given it;
`release` gives the plain module back, with full parameters on every process, so that between two
phases nobody needs to know how the last one was distributed.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from trl.models import unwrap_model_for_generation

MASTER = "master"
"""The float32 copy of a parameter that DeepSpeed steps where the parameter itself is of lower
precision.
"""


OWN = "own"
"""What a trainer goes on from beside the optimizer's entries and the role's weights, such as a
value head.
"""


def zero_stage(trainer: Any) -> int:
    """0 without DeepSpeed."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else plugin.zero_stage


def trained_parameters(trainer: Any) -> dict[str, torch.nn.Parameter]:
    """Those that this trainer's role changes, by name."""
    return {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}


@contextmanager
def whole_parameters(trainer: Any) -> Iterator[None]:
    """Inside, every parameter is there in full, also under ZeRO-3 and FSDP2. A collective call."""
    if zero_stage(trainer) == 3:
        import deepspeed

        context = deepspeed.zero.GatheredParameters(list(trainer.model.parameters()))
    else:
        context = _without_fsdp(trainer.model)
    with context:
        yield


@contextmanager
def bare_model(trainer: Any) -> Iterator[torch.nn.Module]:
    """The model without its wrapper and with all parameters on every process, for work that differs
    between them.
    """
    kwargs = trainer.args.gradient_checkpointing_kwargs
    with unwrap_model_for_generation(
        trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=kwargs
    ) as model:
        # TRL takes ZeRO-3's hooks off the submodules only; the root's compares a counter over all
        # processes and hangs.
        hooks = dict(model._forward_pre_hooks) if zero_stage(trainer) == 3 else {}
        for name in hooks:
            del model._forward_pre_hooks[name]
        try:
            with _without_fsdp(model):
                yield model
        finally:
            model._forward_pre_hooks.update(hooks)


def say_undivided(trainer: Any, model: torch.nn.Module) -> None:
    """Let a model beside the trained one pass under ZeRO-3, where TRL asks its output layer whether
    it is gathered.
    """
    if zero_stage(trainer) == 3:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for parameter in model.get_output_embeddings().parameters():
            parameter.ds_status = ZeroParamStatus.AVAILABLE


def optimizer_state(trainer: Any) -> dict[str, Tensor]:
    """`KEY|NAME` -> full tensor on the CPU, for every key of the optimizer and every trained
    parameter.

    Empty before the first step. A collective call under DeepSpeed and FSDP2.
    """
    if zero_stage(trainer):
        return _deepspeed_state(trainer)
    names = {id(value): name for name, value in trained_parameters(trainer).items()}
    optimizer = trainer.optimizer.optimizer
    return {
        f"{key}|{names[id(parameter)]}": _full(torch.as_tensor(value)).cpu()
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer_state(trainer: Any, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave, in this or another run of the same model, however it is
    sharded.
    """
    if zero_stage(trainer):
        return _load_deepspeed_state(trainer, state)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key_and_name, value in state.items():
        key, _, name = key_and_name.partition("|")
        if key not in (MASTER, OWN):
            by_name.setdefault(name, {})[key] = value.clone()
    optimizer = trainer.optimizer.optimizer
    names = {id(value): name for name, value in trained_parameters(trainer).items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loaded = optimizer.state_dict()
    loaded["state"] = {
        place: {
            key: _divided_like(parameter, value)
            for key, value in by_name[names[id(parameter)]].items()
        }
        for place, parameter in enumerate(parameters)
        if names[id(parameter)] in by_name
    }
    optimizer.load_state_dict(loaded)


def before_deepspeed_step(trainer: Any, check: Callable[[float], None]) -> None:
    """Let `check` see, before each step of DeepSpeed's engine, a number that is finite if the
    gradient is.

    accelerate has the engine step in its backward pass, so there is no other moment between the
    two.
    """
    engine = trainer.deepspeed
    step = engine.step

    def checked(*args: Any, **kwargs: Any) -> Any:
        check(math.nan if engine.optimizer.has_overflow() else 0.0)
        return step(*args, **kwargs)

    engine.step = checked


def set_schedule(trainer: Any, step: int) -> None:
    """Set the learning rates to those of `step`; a schedule is a function of the step and of
    nothing else.
    """
    scheduler = trainer.lr_scheduler
    scheduler.last_epoch = step - 1
    with warnings.catch_warnings():
        # It would have the optimizer take a step first.
        warnings.filterwarnings(
            "ignore", message=r".*`lr_scheduler.step\(\)` before `optimizer.step\(\)`"
        )
        scheduler.step()


def release(trainer: Any) -> None:
    """Take off the module what the trainer's backend put on it. A collective call under ZeRO-3 and
    FSDP2.
    """
    if zero_stage(trainer):
        _release_deepspeed(trainer)
    elif _fsdp_modules(trainer.model):
        _release_fsdp(trainer.model)
    trainer.accelerator.free_memory()


def _renew_parameters(
    model: torch.nn.Module, whole: Callable[[torch.nn.Parameter], Tensor]
) -> None:
    """Put a new parameter in the place of each, with the value that `whole` gives; a tied weight
    stays tied.
    """
    fresh: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if parameter not in fresh:  # by identity
                fresh[parameter] = torch.nn.Parameter(
                    whole(parameter), requires_grad=parameter.requires_grad
                )
            module._parameters[name] = fresh[parameter]


def _fsdp_modules(model: torch.nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def _without_fsdp(model: torch.nn.Module) -> Iterator[None]:
    """Inside, a model under FSDP2 is a plain one with full parameters; does nothing to any other.

    Entering is a collective call. The hooks must go even though they would gather nothing then:
    FSDP2 notes the order of all forward passes to prefetch by it in the next backward pass, and the
    processes' orders would differ; and `state_dict` would divide the parameters again.
    """
    divided = _fsdp_modules(model)
    for module in divided:
        module.unshard()
    hooked = model.modules() if divided else ()
    places = [getattr(module, kind) for module in hooked for kind in _FSDP_HOOKS]
    hooks = [dict(place) for place in places]
    for place in places:
        place.clear()
    try:
        yield
    finally:
        for place, content in zip(places, hooks, strict=True):
            place.update(content)
        for module in divided:
            module.reshard()


_FSDP_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")


def _full(tensor: Tensor) -> Tensor:
    """A copy without gradient, of all of it where this process has a part. A collective call under
    FSDP2.
    """
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def _divided_like(parameter: torch.nn.Parameter, value: Tensor) -> Tensor:
    """The optimizer's entry for a parameter, divided as FSDP2 divides the parameter; scalars belong
    to all.
    """
    if not isinstance(parameter, DTensor) or value.dim() == 0:
        return value
    value = value.to(parameter.device)
    # Every process has the same value: nobody needs to send it.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _release_fsdp(model: torch.nn.Module) -> None:
    """Undo `fully_shard`, for which torch has no call. A collective call."""
    divided = _fsdp_modules(model)
    for module in divided:
        module.reshard()
    _renew_parameters(model, _full)
    for module in divided:
        state = module._get_fsdp_state()
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in state._fsdp_param_groups:
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
            handles += [parameter._post_load_hook_handle for parameter in group.fsdp_params]
        for handle in handles:
            handle.remove()
    for module in divided:
        _module_state_mapping.pop(module)
        # Left, they keep the parts of the parameters in memory, and the next `fully_shard` refuses
        # the module.
        del module.__dict__[STATE_KEY], module.__dict__[REGISTRY_KEY]
        module.__class__ = type(module).__mro__[FSDPModule._orig_cls_mro_index]
    for module in model.modules():
        for name in _FSDP_ATTRIBUTES:
            module.__dict__.pop(name, None)
    # transformers wraps it in calls of the root's hooks.
    model.__dict__.pop("generate", None)


_FSDP_ATTRIBUTES = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


def _deepspeed_state(trainer: Any) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    steps = {
        float(entries["step"])
        for entries in _inner_optimizer(trainer).state.values()
        if "step" in entries
    }
    if steps and zero_stage(trainer) < 3:
        _link_moments(trainer)
    state = {}
    for name, parameter in trained_parameters(trainer).items():
        state[f"{MASTER}|{name}"] = safe_get_full_fp32_param(parameter).cpu().clone()
        if steps:
            state[f"step|{name}"] = torch.tensor(max(steps))
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{key}|{name}"] = safe_get_full_optimizer_state(parameter, key).cpu().clone()
    return state if steps else {}


def _load_deepspeed_state(trainer: Any, state: dict[str, Tensor]) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    _create_moments(
        trainer, next(float(value) for key, value in state.items() if key.startswith("step|"))
    )
    sharded = zero_stage(trainer) == 3
    for name, parameter in trained_parameters(trainer).items():
        for key in (MASTER, "exp_avg", "exp_avg_sq"):
            value = state.get(f"{key}|{name}")
            if value is None:
                continue  # no master copy in a state that was written without DeepSpeed
            if sharded:
                part = _own_part(parameter, value)
                if key == MASTER:
                    safe_set_local_fp32_param(parameter, part)
                else:
                    safe_set_local_optimizer_state(parameter, part, key)
            elif key == MASTER:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)


def _inner_optimizer(trainer: Any) -> torch.optim.Optimizer:
    return trainer.deepspeed.optimizer.optimizer


def _create_moments(trainer: Any, step: float) -> None:
    """Give torch's optimizer the entries that it would create at its first step, so that they can
    be filled.
    """
    zero = trainer.deepspeed.optimizer
    stage = zero_stage(trainer)
    flat_groups = (
        zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    )
    for flat in flat_groups:
        zero.optimizer.state[flat] = {
            "step": torch.tensor(step, dtype=torch.float32, device=flat.device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    if stage < 3:
        _link_moments(trainer)


def _link_moments(trainer: Any) -> None:
    """Let each parameter know its part of the moments.

    DeepSpeed does it once, after the step of the first parameter group, when the later ones have no
    moments yet.
    """
    zero = trainer.deepspeed.optimizer
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _own_part(parameter: torch.nn.Parameter, full: Tensor) -> Tensor:
    """This process's share of a tensor under ZeRO-3, padded with zeros as DeepSpeed's shares are."""
    size = parameter.ds_tensor.ds_numel
    first = size * parameter.ds_zero_partition_rank
    flat = torch.zeros(size * parameter.ds_zero_partition_world_size, dtype=full.dtype)
    flat[: full.numel()] = full.flatten()
    return flat[first : first + size]


def _release_deepspeed(trainer: Any) -> None:
    import deepspeed
    from deepspeed.runtime.zero import parameter_offload
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    model, engine, sharded = trainer.model, trainer.deepspeed, zero_stage(trainer) == 3
    if sharded:
        engine.optimizer.parameter_offload.partition_all_parameters()  # nothing stays half gathered

    def whole(parameter: torch.nn.Parameter) -> Tensor:
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            return parameter.detach().clone()

    _renew_parameters(model, whole)
    if sharded:
        for module in model.modules():
            module._parameters = dict(module._parameters)  # it was a ZeROOrderedDict
            for name in [
                name for name in vars(module) if name.startswith("ds_") or name in _ZERO3_ATTRIBUTES
            ]:
                del module.__dict__[name]
    engine.__dict__.pop("step", None)
    # `destroy` leaves these two on the module, and with them the engine in memory; its finalizer
    # would call it again.
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    engine.destroy()
    engine.destroy = lambda: None
    parameter_offload.FWD_MODULE_STACK.clear()
    # While it is set, `generate` waits for all processes at every token, and `from_pretrained`
    # shards what it loads.
    unset_hf_deepspeed_config()


_ZERO3_ATTRIBUTES = ("_original_parameters", "_external_params", "pre_bwd_fn", "post_bwd_fn")
