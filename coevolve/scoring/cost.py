"""What a forward pass costs, by counting, and the layout of rows that costs least.

The unit is the floating-point operation of a large matrix product. A pass over B rows of W tokens,
each behind P cached ones, costs

    linear layers     2 x parameters x B x W; padding counts like any token
    attention         4 x layers x heads x head size x B x W x (P + W); what the mask hides is
                      computed all the same
    cache             bytes of the keys and values that are copied for B rows of P + W, times the
                      machine's balance
    the pass itself   reading all weights once, and starting the layers' kernels

A machine's balance is how many operations it does in the time in which it moves one byte.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from coevolve.scoring.batching import batches_by_tokens

WORTH = 50
"""A pass is long enough at so many times the cost of the pass itself; more takes memory."""


@dataclass(frozen=True)
class Machine:
    """Rough figures, to tell cheap from dear: operations while a byte is moved, a layer started."""

    balance: float
    start: float

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        """Measured on a CPU core (50 GFLOP/s, 8 GB/s, 0.1 ms); an H100's data sheet elsewhere."""
        return cls(6.0, 6e6) if device.type == "cpu" else cls(200.0, 2e10)


@dataclass(frozen=True)
class Cost:
    """The cost of a model's passes, in operations: of the linear layers for a `token`, of
    `attention` for a token and one position that it may see, of a cached position `copied` for a
    row, and of a `run`, whatever its size.
    """

    token: float
    attention: float
    copied: float
    run: float

    @classmethod
    def of(
        cls, decoder: torch.nn.Module, config: Any, device: torch.device, dtype: torch.dtype
    ) -> "Cost":
        """Counted from a decoder's parameters, its embeddings left out, and its configuration."""
        machine = Machine.of(device)
        tables = [x.weight for x in decoder.modules() if isinstance(x, torch.nn.Embedding)]
        embeddings = set(map(id, tables))
        weights = [x for x in decoder.parameters() if id(x) not in embeddings]
        attention = copies = 0
        for layer in _layer_configs(config):
            heads = _number(layer, "num_attention_heads")
            size = _number(layer, "head_dim") or _number(layer, "hidden_size") // max(heads, 1)
            groups = _number(layer, "num_key_value_heads") or heads
            attention += heads * size
            # Joined with the new ones; then repeated for the query heads that share them.
            copies += (2 * groups + (0 if groups == heads else heads)) * size
        held = sum(weight.numel() * weight.element_size() for weight in weights)
        return cls(
            token=2.0 * sum(weight.numel() for weight in weights),
            attention=4.0 * attention,
            copied=2.0 * copies * dtype.itemsize * machine.balance,
            run=machine.balance * held + machine.start * len(_layer_configs(config)),
        )

    @property
    def enough(self) -> int:
        """New tokens in a pass from which on a longer pass gains nothing worth its memory."""
        return max(math.ceil(WORTH * self.run / self.token), 1)

    def of_pass(self, rows: int, width: int, cached: int) -> float:
        """Of `rows` rows of `width` tokens behind `cached` ones."""
        seen = cached + width
        row = self.token * width + self.attention * width * seen + self.copied * seen
        return self.run + rows * row

    def of_rows(self, widths: Sequence[int], cached: int, budget: int) -> float:
        """Of rows of these widths, put into passes by `batches`."""
        passes = self.batches(widths, cached, budget)
        return sum(self.of_pass(len(batch), widths[batch[0]], cached) for batch in passes)

    def batches(self, widths: Sequence[int], cached: int, budget: int) -> list[list[int]]:
        """Indices of the rows of each pass, longest first; a row alone may exceed the budget."""
        return batches_by_tokens(widths, budget, cached=cached, enough=self.enough)


def _layer_configs(config: Any) -> Sequence[Any]:
    """Of each layer; where they differ, the model's own configuration refuses to tell."""
    if getattr(config, "is_heterogeneous", False):
        return config.per_layer_config
    return [config] * _number(config, "num_hidden_layers")


def _number(config: Any, name: str) -> int:
    """0 where a layer has nothing of the kind, or has it otherwise: costs tell cheap from dear."""
    value = getattr(config, name, 0)
    return value if isinstance(value, int) else 0


def arrange(
    lengths: Sequence[int],
    groups: Sequence[int],
    cached: int,
    cost: Cost,
    budget: int,
    *,
    pack: bool,
) -> list[list[int]]:
    """Segments of these lengths put into rows: one each, or several of a group side by side, in
    whatever width costs least. Only segments of one prefix (`groups`) can share a row.

    `budget` is of a pass, the `cached` tokens of the longest prefix included.
    """
    apart = [[index] for index in range(len(lengths))]
    if not pack or len(lengths) < 2:
        return apart
    longest = max(lengths)
    widest = min(budget - cached, cost.enough, 2 * sum(lengths))
    # A dearer width does not end the search: rows of one or two segments have much padding.
    widths = [longest << doubled for doubled in range(max(widest // longest, 1).bit_length())]
    layouts = [apart, *(_side_by_side(lengths, groups, width) for width in widths)]

    def price(rows: list[list[int]]) -> float:
        return cost.of_rows([sum(lengths[i] for i in row) for row in rows], cached, budget)

    return min(layouts, key=price)


def _side_by_side(lengths: Sequence[int], groups: Sequence[int], width: int) -> list[list[int]]:
    """Each group in as few rows of `width` as it needs, the longest into the emptiest row."""
    members: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        members.setdefault(groups[index], []).append(index)
    rows: list[list[int]] = []
    for found in members.values():
        count = -(-sum(lengths[i] for i in found) // width)
        own: list[list[int]] = [[] for _ in range(count)]
        emptiest = [(0, place) for place in range(count)]
        for index in found:
            filled, place = heapq.heappop(emptiest)
            own[place].append(index)
            heapq.heappush(emptiest, (filled + lengths[index], place))
        rows += [row for row in own if row]
    return rows
