"""The rewards that a recipe can name, as TRL calls them. (`coevolve.rewards` is something else: a
finished estimator as a reward for training other models.)

A name in the recipe's `rewards` stands for an entry of CONNECTOR_REWARDS or ESTIMATOR_REWARDS; TRL
logs each as `rewards/NAME/mean` and `/std`, before weighting. A completion that cannot be judged
(cut off, empty, unparsable) gets the entry's lowest value, below which no other of the batch lies,
and is counted in `rewards/NAME/lowest`. Weights are not negative, so the lowest value is also the
lowest contribution.

A user's own reward is a function with TRL's signature, named in `rewards.custom` by its import
path:

    # my_rewards.py
    def brevity(completions, **columns):
        return [-len(text.split()) / 100 for text in completions]

    # config.yaml
    rewards: {likelihood: 1.0, custom: {"my_rewards:brevity": 0.5}}

It gets the completions of one batch on this process, N texts (and `prompts` and `completion_ids`),
with lists of N: `example` (rows of the RPGBench layout), `golden_response`, for the estimator
`reasoning` (what it was shown), and what else TRL passes. It gives N finite numbers, or None where
it has nothing to say. It is asked about every completion; but one that cannot be judged gets the
lowest value that the function gave in the batch, and so does None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from coevolve.errors import RewardError
from coevolve.recipe.rl import ConnectorRewards, EstimatorRewards
from coevolve.training.distributed.processes import Processes
from coevolve.training.rewards import functions as rewards
from coevolve.training.rewards.custom import checked, custom_reward, failure

LogMetric = Callable[[str, float], None]
Values = Sequence[float | None]


class Batch(Protocol):
    """What rewards are computed from: N completions of a role.

    Attributes:
        usable: N flags; False where a completion is cut off, empty or unparsable.
        figures: what is to be logged of the batch as a whole.
    """

    usable: Sequence[bool]
    figures: Mapping[str, float]

    def columns(self) -> dict[str, list[Any]]:
        """What a user's reward gets beside what TRL gives it."""


@dataclass(frozen=True)
class Reward:
    """A reward that has a name.

    Attributes:
        values: one for each completion of a batch; None where it cannot be judged.
        lowest: what such a one gets.
        bounded: whether no value is below `lowest` anyway. Otherwise such a one gets the lowest of
            the batch, if that is lower.
    """

    values: Callable[[Any], Values]
    lowest: Callable[[Any], float] = lambda batch: 0.0
    bounded: bool = True


CONNECTOR_REWARDS: Mapping[str, Reward] = {
    "likelihood": Reward(lambda batch: _each(rewards.likelihood, batch.golden)),
    "log_likelihood": Reward(
        lambda batch: _each(rewards.log_likelihood, batch.golden),
        lowest=lambda batch: batch.log_uniform,
        bounded=False,
    ),
    "mean_probability": Reward(lambda batch: _each(rewards.mean_probability, batch.golden)),
    "gain": Reward(
        lambda batch: _each(rewards.gain, batch.golden, batch.unaided),
        lowest=lambda batch: batch.log_uniform,
        bounded=False,
    ),
    "format": Reward(
        lambda batch: _each(partial(rewards.reasoning_format, sections=batch.sections), batch.texts)
    ),
    "length": Reward(
        lambda batch: _each(
            partial(rewards.features_length, target_words=batch.target_words), batch.features
        )
    ),
}

ESTIMATOR_REWARDS: Mapping[str, Reward] = {
    "match": Reward(lambda batch: batch.match),
    "format": Reward(lambda batch: _each(rewards.response_format, batch.texts)),
    "reference_likelihood": Reward(lambda batch: _each(rewards.likelihood, batch.reference)),
    "kernel_score": Reward(
        lambda batch: batch.kernel_scores,
        lowest=lambda batch: rewards.lowest_kernel_score(batch.group),
    ),
}


class Judging:
    """All rewards of one RL phase on batches that are read once.

    Args:
        field: the recipe's field, for errors: `connector_rl.rewards` or `estimator_rl.rewards`.
        settings: its value.
        named: the rewards that it may name.
        read: from (completion_ids, index) to a batch.

    Raises:
        RecipeError, RewardError: as `custom_reward`.
    """

    def __init__(
        self,
        field: str,
        settings: ConnectorRewards | EstimatorRewards,
        named: Mapping[str, Reward],
        read: Callable[[Sequence[Sequence[int]], Sequence[int]], Batch],
        processes: Processes,
    ):
        self.field, self.settings, self.named, self.processes = field, settings, named, processes
        self._read_batch = read
        self._custom = {
            path: custom_reward(field, path) for path, weight in settings.custom.items() if weight
        }
        self._latest: tuple[Sequence[Sequence[int]], Batch] | None = None

    def functions(self) -> list[tuple[str, Callable[..., list[float]], float]]:
        """(name, function as TRL calls it, weight) of the rewards whose weight is not 0."""
        weights = {name: getattr(self.settings, name) for name in self.named}
        named = [
            (name, partial(self._ask_named, name), weight)
            for name, weight in weights.items()
            if weight
        ]
        custom = self.settings.custom
        return named + [
            (column_of(path), partial(self._ask_custom, path), custom[path])
            for path in self._custom
        ]

    def _ask_named(
        self,
        name: str,
        *,
        completion_ids: list[list[int]],
        index: list[int],
        log_metric: LogMetric,
        **_: Any,
    ) -> list[float]:
        batch, reward = self._read(completion_ids, index, log_metric), self.named[name]
        values = self.processes.together(
            lambda: checked(f"{self.field}.{name}", reward.values(batch), len(completion_ids)),
            heed_stop=False,
        )
        lowest = reward.lowest(batch)
        if not reward.bounded:
            lowest = min([lowest, *self._of_all_processes(values)])
        return self._filled(name, values, lowest, log_metric)

    def _ask_custom(
        self,
        path: str,
        *,
        completion_ids: list[list[int]],
        index: list[int],
        log_metric: LogMetric,
        **columns: Any,
    ) -> list[float]:
        batch, field = (
            self._read(completion_ids, index, log_metric),
            f"{self.field}.custom {path!r}",
        )
        given = {
            **columns,
            "completion_ids": completion_ids,
            "index": index,
            "log_metric": log_metric,
        }

        def ask() -> list[float | None]:
            try:
                values = self._custom[path](**given, **batch.columns())
            except Exception as error:
                raise RewardError(f"{field} {failure(error)}") from error
            return checked(field, values, len(completion_ids))

        values = self.processes.together(ask, heed_stop=False)
        lowest = min(self._of_all_processes(values), default=0.0)
        usable = [value if use else None for value, use in zip(values, batch.usable, strict=True)]
        return self._filled(column_of(path), usable, lowest, log_metric)

    def _of_all_processes(self, values: Values) -> list[float]:
        """The numbers among the values. A collective call: no process may have failed before it."""
        return [
            value for share in self.processes.gather(values) for value in share if value is not None
        ]

    def _read(
        self, completion_ids: list[list[int]], index: list[int], log_metric: LogMetric
    ) -> Batch:
        # TRL asks one reward after the other about the same list.
        if self._latest is None or self._latest[0] is not completion_ids:
            self._latest = completion_ids, self._read_batch(completion_ids, index)
            for name, value in self._latest[1].figures.items():
                log_metric(name, value)
        return self._latest[1]

    def _filled(
        self, name: str, values: Values, lowest: float, log_metric: LogMetric
    ) -> list[float]:
        unjudged = sum(value is None for value in values)
        # TRL takes the mean over the processes; so it becomes their sum.
        log_metric(f"rewards/{name}/lowest", unjudged * self.processes.count)
        return [lowest if value is None else value for value in values]


def column_of(path: str) -> str:
    """The name under which a custom reward is logged: that of its function."""
    return path.rpartition(":")[2]


def _each(function: Callable[..., float], *columns: Sequence[Any]) -> list[float | None]:
    """The function of each row; None where a part of the row is."""
    rows = zip(*columns, strict=True)
    return [None if any(part is None for part in row) else function(*row) for row in rows]
