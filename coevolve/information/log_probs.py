"""Log-probabilities as the information measures take them: sums with token counts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol, get_args

import numpy as np

from coevolve.errors import DataError, RecipeError

Normalisation = Literal["per_token", "per_response"]

UNITS: Mapping[str, str] = MappingProxyType(
    {"per_token": "nats per token", "per_response": "nats per response"}
)


class LogProbs(Protocol):
    """`coevolve.scoring.scores.Scores`, stated here so that the measures need NumPy alone."""

    @property
    def sum(self) -> np.ndarray:
        """Log-probability of each response, any shape; nats per response."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Number of scored tokens of each response, broadcastable to the shape of `sum`."""
        ...


def check_normalisation(normalisation: str) -> None:
    """Raise RecipeError unless `normalisation` is one of the two."""
    if normalisation not in get_args(Normalisation):
        raise RecipeError(
            f"normalisation is {normalisation!r}; accepted are 'per_token' (mean over the tokens, "
            "as published) and 'per_response' (sum over them)."
        )


def checked(log_probs: LogProbs) -> tuple[np.ndarray, np.ndarray]:
    """(finite sums, tokens from 1 up) as float64 arrays of one shape."""
    total = np.asarray(log_probs.sum, dtype=np.float64)
    try:
        tokens = np.broadcast_to(np.asarray(log_probs.tokens, dtype=np.float64), total.shape)
    except ValueError:
        found = f"tokens have shape {np.shape(log_probs.tokens)}, sums {total.shape}"
        raise DataError(f"{found}; accepted is one count per response.") from None
    _require(np.isfinite(total), total, "log-probability", "a finite number")
    _require(tokens >= 1, tokens, "token count", "at least 1, for the end of turn")
    return total, tokens


def _require(valid: np.ndarray, values: np.ndarray, name: str, accepted: str) -> None:
    if not np.all(valid):
        index = tuple(int(axis) for axis in np.argwhere(~valid)[0])
        raise DataError(
            f"{name} at index {index} is {values[index]}; accepted is {accepted}. "
            f"{int(np.sum(~valid))} of {valid.size} are like this."
        )
