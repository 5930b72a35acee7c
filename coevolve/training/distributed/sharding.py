"""What differs where the parameters or the optimizer are sharded: reading and writing full state,
and taking it apart.

Optimizer state goes by parameter name and in full tensors, so that it fits any number of processes,
any ZeRO stage and FSDP2. DeepSpeed and FSDP2 change a module in place when they are given it;
`release` gives the plain module back, with full parameters on every process, so that between two
phases nobody needs to know how the last one was distributed.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from trl.models import unwrap_model_for_generation

from coevolve.libraries import fsdp
from coevolve.libraries.deepspeed import MASTER, Zero
from coevolve.libraries.torch import without_hooks

OWN = "own"
"""What a trainer goes on from beside optimizer entries and weights, such as a value head."""


def zero_stage(trainer: Any) -> int:
    """0 without DeepSpeed."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else plugin.zero_stage


def zero_of(trainer: Any) -> Zero | None:
    """DeepSpeed's engine, None without it."""
    stage = zero_stage(trainer)
    return Zero(trainer.model_wrapped, trainer.model, stage) if stage else None


def begin(trainer: Any, check: Callable[[float], None]) -> None:
    """Before the first step: check what backends are reached by; under DeepSpeed `check` is to see
    a number before each step that is finite if the gradient is.
    """
    zero = zero_of(trainer)
    if zero is None:
        fsdp.check(trainer.model)
    else:
        zero.check()
        zero.before_step(check)


def whole_parameters(trainer: Any) -> AbstractContextManager[None]:
    """Inside, every parameter is there in full, also under ZeRO-3 and FSDP2. A collective call."""
    zero = zero_of(trainer)
    return fsdp.whole(trainer.model) if zero is None else zero.whole(trainer.model.parameters())


@contextmanager
def bare_model(trainer: Any) -> Iterator[torch.nn.Module]:
    """The model without wrapper, parameters on every process, for work that differs by process."""
    kwargs = trainer.args.gradient_checkpointing_kwargs
    with unwrap_model_for_generation(
        trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=kwargs
    ) as model:
        # TRL takes ZeRO-3's hooks off the submodules only; the root's compares a counter over all
        # processes and hangs.
        divided = zero_stage(trainer) == 3
        with without_hooks([model], before=True) if divided else nullcontext(), fsdp.whole(model):
            yield model


def say_undivided(trainer: Any, model: torch.nn.Module) -> None:
    """Let a model beside the trained one pass under ZeRO-3."""
    zero = zero_of(trainer)
    if zero is not None:
        zero.say_undivided(model)


def optimizer_state(trainer: Any) -> dict[str, Tensor]:
    """`KEY|NAME` -> full tensor on the CPU; empty before the first step. A collective call."""
    zero = zero_of(trainer)
    if zero is not None:
        return zero.state()
    names = _names(trainer)
    return {
        f"{key}|{names[id(parameter)]}": fsdp.full(torch.as_tensor(value)).cpu()
        for parameter, entries in trainer.optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer_state(trainer: Any, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave, in this or another run, however it is sharded."""
    zero = zero_of(trainer)
    if zero is not None:
        return zero.load_state(state)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key_and_name, value in state.items():
        key, _, name = key_and_name.partition("|")
        if key not in (MASTER, OWN):
            by_name.setdefault(name, {})[key] = value.clone()
    optimizer, names = trainer.optimizer, _names(trainer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loaded = optimizer.state_dict()
    loaded["state"] = {
        place: {
            key: fsdp.divided_like(parameter, value)
            for key, value in by_name[names[id(parameter)]].items()
        }
        for place, parameter in enumerate(parameters)
        if names[id(parameter)] in by_name
    }
    optimizer.load_state_dict(loaded)


def set_schedule(trainer: Any, step: int) -> None:
    """Set the learning rates to those of `step`, of which alone they are a function."""
    trainer.lr_scheduler.last_epoch = step - 1
    with warnings.catch_warnings():
        # It would have the optimizer take a step first.
        warnings.filterwarnings("ignore", message=r".*`lr_scheduler.step\(\)` before")
        trainer.lr_scheduler.step()


def release(trainer: Any) -> None:
    """Take off the module what the trainer's backend put on it. A collective call."""
    zero = zero_of(trainer)
    if zero is not None:
        zero.release()
    elif fsdp.divided_modules(trainer.model):
        fsdp.release(trainer.model)
    trainer.accelerator.free_memory()


def _names(trainer: Any) -> dict[int, str]:
    """Of the parameters that this trainer's role changes, by their ids."""
    return {
        id(value): name for name, value in trainer.model.named_parameters() if value.requires_grad
    }
