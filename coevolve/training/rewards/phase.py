"""The rewards of one RL phase as TRL calls them, held to what TRL asks of a reward."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from coevolve.errors import RewardError
from coevolve.recipe.rl import ConnectorRewards, EstimatorRewards
from coevolve.recipe.rpm import RpmRewards
from coevolve.registry import Registry, users_code
from coevolve.training.distributed.processes import Processes
from coevolve.training.rewards.registry import Reward, custom_field

LogMetric = Callable[[str, float], None]
Ids = list[list[int]]


class Batch(Protocol):
    """N completions: which are `usable` (not cut off, empty or unparsable), and figures to log."""

    @property
    def usable(self) -> Sequence[bool]: ...

    @property
    def figures(self) -> Mapping[str, float]: ...

    def columns(self) -> dict[str, list[Any]]:
        """What a user's reward gets beside what TRL gives it."""


class PhaseRewards:
    """All rewards of one RL phase on batches that are read once, by `read(completion_ids, index)`.

    `field` is the recipe's, for errors. Raises as `Registry.custom`.
    """

    def __init__(
        self,
        field: str,
        settings: ConnectorRewards | EstimatorRewards | RpmRewards,
        named: Registry[Any],
        read: Callable[[Sequence[Sequence[int]], Sequence[int]], Batch],
        processes: Processes,
    ):
        self.field, self.settings, self.named, self.processes = field, settings, named, processes
        self._read_batch = read
        self._users = {
            path: self._of_user(path) for path, weight in settings.custom.items() if weight
        }
        self._latest: tuple[Ids, Batch] | None = None

    def functions(self) -> list[tuple[str, Callable[..., list[float]], float]]:
        """(name, function as TRL calls it, weight) of those with a weight; a user's by its
        function.
        """
        # In the recipe's order, in which TRL adds them up.
        asked: list[tuple[str, Callable[..., list[float]], float]] = []
        for name, weight in self.settings:
            if name in self.named and weight:
                ask = partial(self._ask, name, f"{self.field}.{name}", self.named[name], False)
                asked.append((name, ask, weight))
        for path, reward in self._users.items():
            name, field = path.rpartition(":")[2], custom_field(self.field, path)
            ask = partial(self._ask, name, field, reward, True)
            asked.append((name, ask, self.settings.custom[path]))
        return asked

    def _of_user(self, path: str) -> Reward:
        field = custom_field(self.field, path)
        function = self.named.custom(path, field)

        def values(batch: Batch, given: Mapping[str, Any]) -> Any:
            # It may take as long as it likes, and what it has returned so far is computed again.
            with users_code(field, RewardError), self.processes.stop.raising():
                return function(**given, **batch.columns())

        return Reward(values, lowest=lambda batch: math.inf, bounded=False)

    def _ask(
        self,
        name: str,
        field: str,
        reward: Reward,
        of_user: bool,
        *,
        completion_ids: Ids,
        index: list[int],
        log_metric: LogMetric,
        **columns: Any,
    ) -> list[float]:
        batch = self._read(completion_ids, index, log_metric)
        given = dict(columns, completion_ids=completion_ids, index=index, log_metric=log_metric)
        values = self.processes.together(
            lambda: checked(field, reward.values(batch, given), len(completion_ids)),
            heed_stop=False,
        )
        lowest = reward.lowest(batch)
        if not reward.bounded:  # a collective call: no process may have failed before it
            shares = self.processes.gather(values)
            lowest = min([lowest, *(x for share in shares for x in share if x is not None)])
        if of_user:
            lowest = lowest if math.isfinite(lowest) else 0.0
            values = [x if use else None for x, use in zip(values, batch.usable, strict=True)]
        lowest -= reward.below
        # TRL takes the mean over the processes; so it becomes their sum.
        log_metric(f"rewards/{name}/lowest", values.count(None) * self.processes.count)
        return [lowest if value is None else value for value in values]

    def _read(self, completion_ids: Ids, index: list[int], log_metric: LogMetric) -> Batch:
        # TRL asks one reward after the other about the same list.
        if self._latest is None or self._latest[0] is not completion_ids:
            self._latest = completion_ids, self._read_batch(completion_ids, index)
            for name, value in self._latest[1].figures.items():
                log_metric(name, value)
        return self._latest[1]


def checked(field: str, values: Any, count: int) -> list[float | None]:
    """What a reward returned, as `count` finite numbers or None; RewardError for anything else."""
    if not hasattr(values, "__iter__") or isinstance(values, (str, bytes, Mapping)):
        raise RewardError(
            f"{field} returned {type(values).__name__}; accepted is a list of {count} numbers."
        )
    returned = list(values)
    if len(returned) != count:
        found = f"{field} returned {len(returned)} values for {count} completions"
        raise RewardError(f"{found}; accepted is one for each.")
    return [
        None if value is None else _number(field, value, f"completion {index} of the batch")
        for index, value in enumerate(returned)
    ]


def _number(field: str, value: Any, completion: str) -> float:
    # A scalar of NumPy or torch is as good as a number.
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(plain, numbers.Real):
        found = f"{field} gave {value!r} ({type(value).__name__}) for {completion}"
        raise RewardError(f"{found}; it must be a number.")
    if not math.isfinite(plain):
        raise RewardError(f"{field} gave {float(plain)} for {completion}; it must be finite.")
    return float(plain)
