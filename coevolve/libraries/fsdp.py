"""FSDP2: parameters whole for a while, and a module without its traces, as torch has no call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from coevolve.libraries.hooks import hooks, require
from coevolve.libraries.torch import renew_parameters, without_hooks

_INSIDE = "torch.distributed.fsdp._fully_shard"
_LEAVES = "nothing of FSDP2 stays on a module when its phase ends"
_HANDLES = ("_pre_forward_hook_handle", "_post_forward_hook_handle")
_SAVE, _LOAD = (f"_module_to_pre_{kind}_state_dict_hook_handle" for kind in ("save", "load"))

TORCH = (
    *hooks("torch.distributed._composable.contract", _LEAVES, "STATE_KEY", "REGISTRY_KEY"),
    *hooks("torch.distributed._composable_state", _LEAVES, "_module_state_mapping"),
)
MODULE = hooks(
    "torch.distributed.fsdp:FSDPModule", _LEAVES, "_get_fsdp_state()", "_orig_cls_mro_index"
)
STATE = hooks(f"{_INSIDE}._fsdp_state:FSDPState", _LEAVES, *_HANDLES, "_fsdp_param_groups")
GROUP = hooks(f"{_INSIDE}._fsdp_param_group:FSDPParamGroup", _LEAVES, _SAVE, _LOAD, "fsdp_params")
PARAMETER = hooks(f"{_INSIDE}._fsdp_param:FSDPParam", _LEAVES, "_post_load_hook_handle")

_ON_MODULES = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""What accelerate and transformers leave on modules."""


def divided_modules(model: torch.nn.Module) -> list[FSDPModule]:
    """Those whose parameters FSDP2 divides; none without it."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def check(model: torch.nn.Module) -> None:
    """Raise LibraryError unless all that is reached in a divided model is there."""
    for module in divided_modules(model):
        require(TORCH)
        require(MODULE, module)
        state = module._get_fsdp_state()
        require(STATE, state)
        for group in state._fsdp_param_groups:
            require(GROUP, group)
            for parameter in group.fsdp_params:
                require(PARAMETER, parameter)


@contextmanager
def whole(model: torch.nn.Module) -> Iterator[None]:
    """Inside, a model under FSDP2 is a plain one with full parameters. Entering is a collective
    call.

    The hooks must go even though they would gather nothing then: FSDP2 notes the order of all
    forward passes to prefetch by it in the next backward pass, and the processes' orders would
    differ; and `state_dict` would divide the parameters again.
    """
    divided = divided_modules(model)
    for module in divided:
        module.unshard()
    try:
        with without_hooks(model.modules() if divided else ()):
            yield
    finally:
        for module in divided:
            module.reshard()


def full(tensor: Tensor) -> Tensor:
    """A copy without gradient, of all of it where this process has a part. A collective call."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def divided_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The optimizer's entry, divided as FSDP2 divides its parameter; scalars belong to all."""
    if not isinstance(parameter, DTensor) or value.dim() == 0:
        return value
    value = value.to(parameter.device)
    # Every process has the same value: nobody needs to send it.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def release(model: torch.nn.Module) -> None:
    """Undo `fully_shard`. A collective call."""
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping

    divided: list[Any] = divided_modules(model)
    for module in divided:
        module.reshard()
    renew_parameters(model, full)
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
        for name in _ON_MODULES:
            module.__dict__.pop(name, None)
    # transformers wraps it in calls of the root's hooks.
    model.__dict__.pop("generate", None)
