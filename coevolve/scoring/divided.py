"""A frozen base whose layers lie in parts on several processes, each gathered for as long as it
runs.

    process 0   [ embeddings | first half of each layer  | head ]  + one whole layer: the one that
    runs process 1   [ embeddings | second half of each layer | head ]  + the same

A layer is needed in its forward pass and, for its input's gradient, in its backward pass. It is
asked for before either, and then takes the place of the one before it. Its parameters stay what
they are, views of a buffer whose memory comes and goes, so adapters and optimizers need not know.
Numbers are those of the whole model, to the bit.

To gather is a collective call, and processes write and score different texts. So they take turns:
in each, every process says which layer it needs, if any, and the lowest is gathered, everywhere.
Who needs another one waits; who has nothing to do takes part until nobody needs anything (`serve`).
A pass that begins late catches up, as what it needs is lower, and from there both go together. No
process makes empty passes for the sake of others (as FSDP2 would have it, whose order of passes is
one for all), and who fails, or is asked to stop, goes on taking part while the others finish.
"""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from coevolve.libraries.torch import tensors_in

READY, NOTHING = -1, 1 << 40
"""What a process says in a turn, beside a layer's number: it has its parts; it needs no layer."""

ALIGNED = 16
"""Bytes by which a parameter's place in its layer, and each process's part of it, divide."""

M_MMAP_THRESHOLD = -3
"""Of glibc: blocks from this size on are mapped, and given back when they are freed."""

YEAR = timedelta(days=365)
"""For a turn: another process may have work of its own for hours."""

LONGEST_PAUSE = 0.1
"""Seconds between two looks whether the others have come to a turn."""

Read = Callable[[str, int, int], Tensor]
"""From a parameter's name in the model, and two places in it flattened,
to what lies between them.
"""


class Parts:
    """This process's parts of divided bases. To be made by all processes at once.

    Args:
        undisturbed: inside, no signal ends a turn that others are in.
        leave: what is raised where another process could not read its parts.
    """

    def __init__(
        self,
        device: torch.device,
        undisturbed: Callable[[], AbstractContextManager[None]],
        leave: type[BaseException],
    ):
        self.device, self.rank, self.count = device, dist.get_rank(), dist.get_world_size()
        self._undisturbed, self._leave = undisturbed, leave
        # On the CPU, so that no turn waits for what a GPU is at.
        self._turns = dist.new_group(backend="gloo", timeout=YEAR)
        self._layers: WeakValueDictionary[int, _Layer] = WeakValueDictionary()
        if device.type == "cpu":
            _give_back_freed_memory()
        self._made = 0
        self._room: int | None = None
        self._here: int | None = None

    def divide(self, model: Any, read: Read) -> None:
        """Put a model on the device, this process's part of its layers and all else whole, as
        `read` gives it; parameters may be on `meta` before. A collective call.
        """
        for module, named in divisible(model):
            layer = _Layer(self, self._made, model, named, read)
            module.register_forward_pre_hook(layer.before)
            module.register_forward_hook(layer.after)
            self._layers[self._made] = layer
            self._made += 1
        divided = set(self.names(model))
        empty = [name for name, x in model.named_parameters() if x.is_meta]
        for name, parameter in list(model.named_parameters()):
            if name not in divided:
                value = read(name, 0, parameter.numel()) if parameter.is_meta else parameter.data
                _put(model, name, parameter, value.to(self.device))
        for name, buffer in list(model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer.to(self.device))
        if empty:
            model.tie_weights()
        # Who failed above takes part from now on in what the others do, and needs nothing.
        if self._turn(READY)[1] != READY:
            raise self._leave

    def names(self, model: torch.nn.Module) -> list[str]:
        """Of the parameters of a model that are divided."""
        held = {id(x) for layer in self._layers.values() for x in layer.parameters}
        return [name for name, parameter in model.named_parameters() if id(parameter) in held]

    def need(self, number: int) -> None:
        """Return when this layer is here, whole."""
        while self._here != number:
            # Before the turn, so that who has no memory for it fails alone.
            self._make_room(number)
            self._turn(number)

    def serve(self) -> None:
        """Take part until no process needs a layer. All have to come here."""
        while self._turn(NOTHING)[0] != NOTHING:
            pass

    def _turn(self, wanted: int) -> tuple[int, int]:
        """The lowest and the highest of what all processes want; the lowest is here by then."""
        with self._undisturbed():
            ends = torch.tensor([wanted, -wanted])
            work = dist.all_reduce(ends, dist.ReduceOp.MIN, self._turns, async_op=True)
            pause = 0.0
            while not work.is_completed():  # in Python, where a signal is heard
                time.sleep(pause)
                pause = min(2 * pause + 1e-6, LONGEST_PAUSE)
            work.wait()
            lowest, highest = int(ends[0]), -int(ends[1])
            if READY < lowest < NOTHING:
                self._make_room(lowest)
                self._layers[lowest].gather()
                self._here = lowest
        return lowest, highest

    def _make_room(self, number: int) -> None:
        if self._room == number:
            return
        before = None if self._room is None else self._layers.get(self._room)
        if before is not None:
            before.resize(0)
        self._here, self._room = None, None
        self._layers[number].resize(self._layers[number].size)
        self._room = number


class _Layer:
    """A layer's parameters one after the other in a buffer,
    of which this process keeps its part.
    """

    def __init__(
        self,
        parts: Parts,
        number: int,
        model: torch.nn.Module,
        named: Sequence[tuple[str, Tensor]],
        read: Read,
    ):
        self.parts, self.number = parts, number
        starts, end = [], 0
        for _, parameter in named:
            starts.append(-(-end // ALIGNED) * ALIGNED)
            end = starts[-1] + parameter.numel() * parameter.element_size()
        own = -(-end // (ALIGNED * parts.count)) * ALIGNED
        self.size, first = own * parts.count, own * parts.rank
        self.part = torch.zeros(own, dtype=torch.uint8, device=parts.device)
        self.whole = torch.empty(self.size, dtype=torch.uint8, device=parts.device)
        self.parameters = []
        for (name, parameter), start in zip(named, starts, strict=True):
            width = parameter.element_size()
            stop = start + parameter.numel() * width
            low, high = max(start, first), min(stop, first + own)
            if low < high:
                values = read(name, (low - start) // width, (high - start) // width)
                self.part[low - first : high - first] = values.contiguous().view(torch.uint8)
            view = self.whole[start:stop].view(parameter.dtype).view(parameter.shape)
            self.parameters.append(_put(model, name, parameter, view))
        self.resize(0)

    def gather(self) -> None:
        """Fill the buffer from all processes' parts. A collective call."""
        dist.all_gather_into_tensor(self.whole, self.part)

    def resize(self, size: int) -> None:
        """Give the buffer memory, or take it away; then its parameters cannot be read."""
        self.whole.untyped_storage().resize_(size)

    def before(self, module: torch.nn.Module, args: Any) -> None:
        """Of a forward pass, also of one that checkpointing makes again."""
        self.parts.need(self.number)

    def after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Of a forward pass: the backward pass begins with a gradient of its output."""
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(lambda _: self.parts.need(self.number))


def divisible(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, list[tuple[str, Tensor]]]]:
    """A model's layers, with those of their parameters, by their names in the model, that nothing
    else has. Embeddings and head are no part of them: they are run in many ways, and are 3 % of a
    model of 70 billion parameters.
    """
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    if not lists:
        return
    largest = max(lists, key=lambda part: sum(x.numel() for x in part.parameters()))
    layers = list(largest.children())
    uses = Counter(id(x) for layer in layers for x in layer.parameters())
    places = Counter(id(x) for part in model.modules() for x in part.parameters(recurse=False))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer in layers:
        own = [x for x in layer.parameters() if uses[id(x)] == places[id(x)] == 1]
        if own:
            yield layer, [(names[id(x)], x) for x in own]


def _give_back_freed_memory() -> None:
    """Have glibc, where that is in use, return large blocks to the system when they are freed: it
    would learn to keep those of up to 32 MB, buffers of layers among them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _put(model: torch.nn.Module, name: str, parameter: Any, value: Tensor) -> Tensor:
    """The parameter of that name with this value, frozen; a new one in the place of an
    empty one.
    """
    if parameter.is_meta:
        owner, _, leaf = name.rpartition(".")
        value = value.view(parameter.shape)
        parameter = torch.nn.Parameter(value.new_empty(0), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, parameter)
    # As `data`, for autograd not to take each gathering for a change of the parameter.
    parameter.data = value
    parameter.requires_grad_(False)
    return parameter
