"""The next batch of completions, written by a server while this one is trained on.

    server     [ batch 0 ][ batch 1 by policy 0 ][ batch 2 by policy 1 ] ...
    training              [ batch 0: policy 0->1 ][ batch 1: policy 1->2 ] ...

A batch is thus by the policy of one batch before. TRL weighs it by the ratio of the trained model's
probabilities to those that it was sampled by, so that it counts as what the policy says by now.
What is under way belongs to a checkpoint: asked for again, it would be by a newer policy.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coevolve.libraries.vllm import Poll, Written
from coevolve.training.distributed.processes import Processes
from coevolve.training.generation import UnderWay

IDS, LOG_PROBS, LENGTHS, STOPPED = NAMES = ("ids", "log_probs", "lengths", "stopped")
PREFIX = "ahead-"


class Ahead:
    """This process's share of the batch that is trained on and of the next, by their numbers."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._written: dict[int, list[Written]] = {}
        self._under_way: tuple[int, UnderWay] | None = None

    def of(
        self,
        batch: int,
        write: Callable[[], list[Written]],
        begin_next: Callable[[], UnderWay | None],
        poll: Poll,
    ) -> list[Written]:
        """The batch, which is written now if it was not begun; the next one is begun, if there is
        one. A collective call.
        """
        self.settle(poll)
        self._written = {at: rows for at, rows in self._written.items() if at >= batch}
        if batch not in self._written:
            self._written[batch] = write()
        if batch + 1 not in self._written:
            under_way = begin_next()
            self._under_way = None if under_way is None else (batch + 1, under_way)
        return self._written[batch]

    def settle(self, poll: Poll = lambda: None) -> None:
        """Wait for what is under way. A collective call."""
        if self._under_way is not None:
            batch, under_way = self._under_way
            self._written[batch] = self._processes.together(
                lambda: under_way.result(poll), heed_stop=False
            )
            self.leave()

    def leave(self) -> None:
        """Forget what is under way."""
        if self._under_way is not None:
            self._under_way[1].leave()
            self._under_way = None

    def state(self, first: int) -> dict[str, Tensor]:
        """What `load` takes, of the batches from the `first` on. A collective call."""
        self.settle()
        state: dict[str, Tensor] = {}
        for batch, written in self._written.items():
            if batch >= first:
                values = (
                    torch.tensor([token for one in written for token in one.ids]).long(),
                    torch.tensor(
                        [x for one in written for x in one.log_probs], dtype=torch.float64
                    ),
                    torch.tensor([len(one.ids) for one in written]),
                    torch.tensor([one.stopped for one in written]),
                )
                names = (f"{PREFIX}{batch}|{name}" for name in NAMES)
                state |= dict(zip(names, values, strict=True))
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what `state` gave, among other things."""
        mine: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            batch, _, name = key.removeprefix(PREFIX).partition("|")
            if key.startswith(PREFIX):
                mine.setdefault(int(batch), {})[name] = value
        for number, of in mine.items():
            lengths = of[LENGTHS].tolist()
            rows = zip(
                of[IDS].split(lengths), of[LOG_PROBS].split(lengths), of[STOPPED], strict=True
            )
            self._written[number] = [Written(*(part.tolist() for part in row)) for row in rows]
