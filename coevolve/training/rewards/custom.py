"""A user's own rewards: found by import path, and held to what TRL asks of a reward, built-in ones
likewise.
"""

import importlib
import inspect
import math
import numbers
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from coevolve.errors import RecipeError, RewardError
from coevolve.recipe import Recipe

RewardFunction = Callable[..., Any]

GIVEN = (
    "prompts",
    "completions",
    "completion_ids",
    "index",
    "example",
    "golden_response",
    "reasoning",
    "trainer_state",
    "log_extra",
    "log_metric",
)
"""What a reward is called with, by keyword; `reasoning` only for the estimator."""

ACCEPTED = "accepted is a function (prompts, completions, completion_ids, **columns) that returns a list of numbers"


def check_rewards(recipe: Recipe) -> None:
    """Find the recipe's custom rewards, before anything is loaded or trained.

    Raises:
        RecipeError, RewardError: as `custom_reward`.
    """
    for name, settings in (
        ("connector_rl", recipe.connector_rl),
        ("estimator_rl", recipe.estimator_rl),
    ):
        used = recipe.rounds.count and any(phase.name == name for phase in recipe.rounds.phases)
        for path in settings.rewards.custom if settings and used else ():
            custom_reward(f"{name}.rewards", path)


def custom_reward(field: str, path: str) -> RewardFunction:
    """The function at an import path `package.module:function`.

    Args:
        field: of the recipe, for errors.

    Raises:
        RecipeError: there is no such module, or nothing of that name in it.
        RewardError: it cannot be called as TRL calls a reward.
    """
    where = f"{field}.custom {path!r}"
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise RecipeError(f"{where}: importing {module} {failure(error)}") from error
        raise RecipeError(
            f"{where}: there is no module {error.name!r}. Install it, or put its folder on PYTHONPATH."
        ) from None
    except Exception as error:
        raise RecipeError(f"{where}: importing {module} {failure(error)}") from error
    if not hasattr(found, name):
        raise RecipeError(f"{where}: the module {module} ({found.__file__}) has no {name!r}.")
    found = getattr(found, name)
    _check_signature(where, found)
    return found


def checked(field: str, values: Any, count: int) -> list[float | None]:
    """What a reward returned, as `count` finite numbers or None.

    Args:
        field: what to call the reward in an error.

    Raises:
        RewardError: it is no list, has another length, or holds what is no finite number; the place
            is named.
    """
    found = (
        list(values)
        if hasattr(values, "__iter__") and not isinstance(values, (str, bytes, Mapping))
        else None
    )
    if found is None:
        raise RewardError(
            f"{field} returned {type(values).__name__}; accepted is a list of {count} numbers, one for each completion."
        )
    if len(found) != count:
        raise RewardError(
            f"{field} returned {len(found)} values for {count} completions; accepted is one for each."
        )
    return [
        None if value is None else _number(field, place, value) for place, value in enumerate(found)
    ]


def failure(error: Exception) -> str:
    """What an exception of a user's code says, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"failed with {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})."


def _check_signature(where: str, found: Any) -> None:
    if not callable(found) or inspect.isclass(found):
        kind = "a class" if inspect.isclass(found) else type(found).__name__
        raise RewardError(f"{where} is {kind}; {ACCEPTED}.")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise RewardError(f"{where} is asynchronous; {ACCEPTED}, not a coroutine.")
    try:
        inspect.signature(found).bind(**dict.fromkeys(GIVEN))
    except TypeError as error:
        raise RewardError(
            f"{where} cannot be called with {', '.join(GIVEN)} ({error}); {ACCEPTED}."
        ) from None


def _number(field: str, place: int, value: Any) -> float:
    # A scalar of NumPy or torch is as good as a number.
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(plain, numbers.Real):
        raise RewardError(
            f"{field} gave {value!r} ({type(value).__name__}) for completion {place} of the batch; it must be a number."
        )
    if not math.isfinite(plain):
        raise RewardError(
            f"{field} gave {float(plain)} for completion {place} of the batch; it must be finite."
        )
    return float(plain)
