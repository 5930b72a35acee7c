"""The rows of SFT, made when they are asked for, and the order in which they are met."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
IGNORED = -100


@dataclass(frozen=True)
class SftRow:
    """Token ids of a prompt and of the response to learn."""

    prompt: Sequence[int]
    response: Sequence[int]

    def columns(self) -> dict[str, list[int]]:
        """The columns of TRL's pre-tokenised format; the loss is on the response only."""
        return {
            "input_ids": [*self.prompt, *self.response],
            "labels": [IGNORED] * len(self.prompt) + list(self.response),
        }


class Lazy(Sequence[T]):
    """Items are made when they are asked for: a phase of a few updates meets a few of them."""

    def __init__(self, count: int, make: Callable[[int], T]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(int(index))


class Rows(Lazy[SftRow]):
    """What SFT is over. A row may have several forms, of which each visit meets one: `form` gives
    it from the row's index and its place in the order of all visits, `make` the row from both.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int, int | None], SftRow],
        form: Callable[[int, int], int | None] = lambda index, place: 0,
    ):
        super().__init__(count, lambda index: make(index, 0))
        self.make, self.form = make, form

    def visited(self, order: Sequence[int], first: int) -> tuple[list[SftRow], list[int]]:
        """The rows met at the places from `first` on, each once, and which at each place."""
        met = [(index, self.form(index, place)) for place, index in enumerate(order, first)]
        numbers = {seen: number for number, seen in enumerate(dict.fromkeys(met))}
        return [self.make(*seen) for seen in numbers], [numbers[seen] for seen in met]


def order_of_rows(rows: int, count: int, seed: int) -> np.ndarray:
    """Indices of the first `count` rows: pass after pass over all, each shuffled anew."""
    passes = math.ceil(count / rows)
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[:count]
