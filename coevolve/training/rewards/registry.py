"""Where the rewards stand that a recipe can name, and a user's own. Built-in ones are decorated
functions of `functions` and what `batches` computes for a group.

A name in the recipe's `rewards` is one of CONNECTOR_REWARDS or ESTIMATOR_REWARDS; TRL logs each as
`rewards/NAME/mean` and `/std`, before weighting. A completion that cannot be judged (cut off,
empty, unparsable) gets the reward's lowest value, below which no other of the batch lies, and is
counted in `rewards/NAME/lowest`. Weights are not negative, so the lowest value is also the lowest
contribution.

A user's own reward is a function with TRL's signature, named by its import path:

    # my_rewards.py
    def brevity(completions, **columns):
        return [-len(text.split()) / 100 for text in completions]

    # config.yaml
    rewards: {likelihood: 1.0, "custom:my_rewards.py:brevity": 0.5}

It gets the completions of one batch on this process, N texts (and `prompts` and `completion_ids`),
with lists of N: `example` (rows of the RPGBench layout), `golden_response`, for the estimator
`reasoning` (what it was shown), and what else TRL passes. It gives N finite numbers, or None where
it has nothing to say. It is asked about every completion; but one that cannot be judged gets the
lowest value that the function gave in the batch, and so does None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from coevolve.errors import RewardError
from coevolve.recipe import Recipe
from coevolve.recipe.rpm import RpmRecipe
from coevolve.registry import Registry

Pure = TypeVar("Pure", bound=Callable[..., float])

Values = Sequence[float | None]
"""One for each completion of a batch; None where it cannot be judged."""

GIVEN = (
    *("prompts", "completions", "completion_ids", "index", "example", "golden_response"),
    *("reasoning", "trainer_state", "log_extra", "log_metric"),
)
"""What a user's reward is called with, by keyword; `reasoning` only for the estimator."""


@dataclass(frozen=True)
class Reward:
    """A reward that has a name: `values` of a batch and of what TRL gave beside it, None for what
    cannot be judged, which gets `lowest`, or unless `bounded` the batch's lowest if that is lower;
    `below` is taken away from either, so that there is something to learn where few can be judged.
    """

    values: Callable[[Any, Mapping[str, Any]], Any]
    lowest: Callable[[Any], float] = lambda batch: 0.0
    bounded: bool = True
    below: float = 0.0


def _registry() -> Registry[Any]:
    accepted = "a function (prompts, completions, completion_ids, **columns) that returns numbers"
    return Registry("reward", accepted=accepted, given=GIVEN, error=RewardError)


CONNECTOR_REWARDS, ESTIMATOR_REWARDS, RPM_REWARDS = _registry(), _registry(), _registry()


def check_rewards(recipe: Recipe) -> None:
    """Find the recipe's custom rewards before anything is loaded. Raises as `Registry.custom`."""
    sections = {"connector_rl": CONNECTOR_REWARDS, "estimator_rl": ESTIMATOR_REWARDS}
    if isinstance(recipe, RpmRecipe):
        grpo = recipe.rpm.grpo if recipe.rpm.method == "grpo" else None
        for path in grpo.rewards.custom if grpo else ():
            RPM_REWARDS.custom(path, custom_field("rpm.grpo.rewards", path))
        return
    for section, named in sections.items():
        settings = getattr(recipe, section)
        used = recipe.rounds.count and any(phase.name == section for phase in recipe.rounds.phases)
        for path in settings.rewards.custom if settings and used else ():
            named.custom(path, custom_field(f"{section}.rewards", path))


def custom_field(field: str, path: str) -> str:
    """What errors call a user's reward."""
    return f"{field}.custom {path!r}"


def _named(
    registry: Registry[Any],
    name: str,
    *of: str,
    given: Sequence[str] = (),
    lowest: Callable[[Any], float] = lambda batch: 0.0,
    bounded: bool = True,
) -> Callable[[Pure], Pure]:
    """A decorator that makes a reward of a function of one completion. Its arguments are rows of
    the batch's attributes `of` (None where a part is None) and, by keyword, those of `given`.
    """

    def add(function: Pure) -> Pure:
        def values(batch: Any, _: Mapping[str, Any]) -> Values:
            rows = zip(*(getattr(batch, column) for column in of), strict=True)
            options = {option: getattr(batch, option) for option in given}
            judged = (None if any(part is None for part in row) else row for row in rows)
            return [None if row is None else function(*row, **options) for row in judged]

        registry.register(name)(Reward(values, lowest, bounded))
        return function

    return add


of_connector, of_estimator = partial(_named, CONNECTOR_REWARDS), partial(_named, ESTIMATOR_REWARDS)
