"""torch: the parts of a module, put in place or taken off without its noticing."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coevolve.libraries.hooks import hooks, require

_MODULE = "torch.nn:Module"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")

MODULE = (
    *hooks(_MODULE, "a head is run behind a decoder's output that is there already", "_modules"),
    *hooks(_MODULE, "a module that was divided gets whole parameters again", "_parameters"),
    *hooks(_MODULE, "a divided model runs on one process alone", *_HOOKS),
)
"""What every module has."""


DDP = hooks(
    "torch.nn.parallel:DistributedDataParallel",
    "what processes hold in parts is not sent around",
    "_set_params_and_buffers_to_ignore_for_model(module, params_and_buffers_to_ignore)",
)

_DISPATCH = "torch.utils._python_dispatch:TorchDispatchMode"
DISPATCH = hooks(_DISPATCH, "memory is counted without a device that has it", "__torch_dispatch__")
"""What sees every operation."""


class CountedMemory(TorchDispatchMode):
    """Counts what tensors made inside hold, in bytes; none has to be real (device `meta`).

    Attributes:
        held: now.
        peak: at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._known.add(storage)  # what was there before, of which views are made
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage not in self._known:
                self._count(storage)
        return made

    def _count(self, storage: Any) -> None:
        self._known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._free, size).atexit = False
        self.held += size
        self.peak = max(self.peak, self.held)

    def _free(self, size: int) -> None:
        self.held -= size


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Those in tuples, dictionaries and whatever models give, however nested."""
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))


def _storages(values: Any) -> Iterator[Any]:
    return (x.untyped_storage() for x in tensors_in(values))


def check() -> None:
    """Raise LibraryError unless modules are as they were."""
    require(MODULE, torch.nn.Module())


@contextmanager
def staying(module: torch.nn.Module, parts: list[str]) -> Iterator[None]:
    """Inside, a module is moved nowhere, and DDP, which may wrap it, leaves the parameters of these
    names alone: what is not gathered cannot be copied.
    """
    require(DDP)
    DDP[0].find()(module, parts)
    module.__dict__["to"] = lambda *args, **kwargs: module
    try:
        yield
    finally:
        del module.__dict__["to"], module.__dict__["_ddp_params_and_buffers_to_ignore"]


@contextmanager
def hooks_as_before(module: torch.nn.Module) -> Iterator[None]:
    """Inside, forward hooks may be added, as each start of checkpointing does; after it they are
    gone.
    """
    check()
    before = [(part._forward_hooks, set(part._forward_hooks)) for part in module.modules()]
    try:
        yield
    finally:
        for hooks, kept in before:
            for key in set(hooks) - kept:
                del hooks[key]


def with_part(module: torch.nn.Module, name: str, part: torch.nn.Module) -> torch.nn.Module:
    """A shallow copy of a module with another part; the module itself stays as it is.

    Neither hooks nor a wrapper's `forward` or `__new__` take part: they are for whole passes.
    """
    view = object.__new__(type(module))
    view.__dict__.update(module.__dict__)
    view.__dict__.pop("forward", None)
    view._modules = {**module._modules, name: part}
    return view


def renew_parameters(model: torch.nn.Module, whole: Callable[[torch.nn.Parameter], Tensor]) -> None:
    """Put a new parameter with the value of `whole` in each one's place; tied ones stay tied."""
    fresh: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if parameter not in fresh:  # by identity
                trained = parameter.requires_grad
                fresh[parameter] = torch.nn.Parameter(whole(parameter), requires_grad=trained)
            module._parameters[name] = fresh[parameter]
    for module in model.modules():
        module._parameters = dict(module._parameters)  # DeepSpeed's is one of its own kind


@contextmanager
def without_hooks(modules: Iterable[torch.nn.Module], *, before: bool = False) -> Iterator[None]:
    """Inside, calls and `state_dict` of the modules run no hooks; if `before`, no pre-hooks."""
    kinds = _HOOKS[:1] if before else _HOOKS
    places = [getattr(module, kind) for module in modules for kind in kinds]
    hooks = [dict(place) for place in places]
    for place in places:
        place.clear()
    try:
        yield
    finally:
        for place, content in zip(places, hooks, strict=True):
            place.update(content)
