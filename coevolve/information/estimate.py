"""Estimates of mutual information by name: what goes in, what comes out, and which forms there are.

A form is a function from a `Contrast` to a number. A new one (leave-one-out, InfoNCE, Barber-Agakov, ...) is a
function in a file of its own plus a line in `FORMS`; an interval resamples a Contrast's examples and pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from coevolve.errors import DataError, RecipeError
from coevolve.information.club import check_square, club
from coevolve.information.log_probs import UNITS, LogProbs, Normalisation, normalise


@dataclass(frozen=True)
class Contrast:
    """Log-probabilities of matched and mismatched (context, response) pairs in one normalisation.

    Attributes:
        positive: (N,) log q(y_i | x_i).
        negative: (P,) log q(y_j | x_i) for the pairs.
        pairs: (P, 2) integers (context i, response j), i != j.
        normalisation: of `positive` and `negative`.
    """

    positive: np.ndarray
    negative: np.ndarray
    pairs: np.ndarray
    normalisation: Normalisation

    def __post_init__(self) -> None:
        if self.pairs.shape != (self.negative.size, 2):
            raise DataError(
                f"pairs have shape {self.pairs.shape}; accepted is ({self.negative.size}, 2), one (context, response) "
                "for each negative log-probability."
            )
        if self.pairs.size and (self.pairs.min() < 0 or self.pairs.max() >= self.positive.size):
            raise DataError(f"pairs hold an index outside 0 to {self.positive.size - 1}, the examples given.")
        if np.any(self.pairs[:, 0] == self.pairs[:, 1]):
            raise DataError("pairs hold a matched pair (i, i); accepted are mismatched ones, i != j.")

    @classmethod
    def from_pairs(
        cls, positive: LogProbs, negative: LogProbs, pairs: np.ndarray, normalisation: Normalisation
    ) -> "Contrast":
        """From the scores of the matched pairs, (N,), and of the mismatched ones, (P,).

        Raises:
            RecipeError: an unknown normalisation.
            DataError: log-probabilities that are not finite, or shapes that do not fit.
        """
        return cls(
            normalise(positive, normalisation), normalise(negative, normalisation), np.asarray(pairs), normalisation
        )

    @classmethod
    def from_matrix(cls, matrix: LogProbs, normalisation: Normalisation) -> "Contrast":
        """From the scores of all pairs, (N, N): row the context, column the response. Raises as `from_pairs`."""
        values = normalise(matrix, normalisation)
        pairs = np.argwhere(~np.eye(check_square(values), dtype=bool))
        return cls(np.diagonal(values), values[pairs[:, 0], pairs[:, 1]], pairs, normalisation)


@dataclass(frozen=True)
class Estimate:
    """A number that says what it is.

    Attributes:
        value: the estimate.
        unit: `nats per token` or `nats per response`.
        form: the name of the estimator, a key of `FORMS`.
    """

    value: float
    unit: str
    form: str


def _club(contrast: Contrast) -> float:
    return club(contrast.positive, contrast.negative)


FORMS: Mapping[str, Callable[[Contrast], float]] = MappingProxyType({"club": _club})


def mutual_information(contrast: Contrast, form: str = "club") -> Estimate:
    """Mutual information of contexts and responses by the named form.

    Raises:
        RecipeError: an unknown form.
        DataError: no matched or no mismatched pair.
    """
    check_form(form)
    return Estimate(FORMS[form](contrast), UNITS[contrast.normalisation], form)


def check_form(form: str) -> None:
    """Raise RecipeError unless `form` names an estimator."""
    if form not in FORMS:
        raise RecipeError(f"form is {form!r}; accepted are {', '.join(map(repr, FORMS))}.")
