"""Log-probabilities of matched and mismatched (context, response) pairs."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from coevolve.errors import DataError
from coevolve.information.log_probs import (
    UNITS,
    LogProbs,
    Normalisation,
    check_normalisation,
    checked,
)


@dataclass(frozen=True)
class Contrast:
    """Log-probabilities, in nats per response, of N matched pairs (i, i) and P mismatched ones (i,
    j).

    Attributes:
        matched: (N,) log q(y_i | x_i).
        mismatched: (P,) log q(y_j | x_i) for the pairs.
        pairs: (P, 2) integers (context i, response j), i != j; contexts from N up have no response.
        tokens: (N,) tokens of each response.
        normalisation: of estimates; `per_token` divides each response's term by its own tokens.
        marginal: (N,) log m(y_i) by a model of the responses alone, for the form that needs it.
    """

    matched: np.ndarray
    mismatched: np.ndarray
    pairs: np.ndarray
    tokens: np.ndarray
    normalisation: Normalisation
    marginal: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_normalisation(self.normalisation)
        if (
            self.matched.ndim != 1
            or not self.matched.size
            or self.tokens.shape != self.matched.shape
        ):
            raise DataError(
                f"matched log-probabilities have shape {self.matched.shape} and tokens "
                f"{self.tokens.shape}; accepted is one of each for every example, and at least one "
                "example."
            )
        if self.mismatched.ndim != 1 or self.pairs.shape != (self.mismatched.size, 2):
            raise DataError(
                f"pairs have shape {self.pairs.shape}; accepted is ({self.mismatched.size}, 2), "
                "one (context, response) for each mismatched log-probability."
            )
        if self.pairs.size and (
            self.pairs.min() < 0 or self.pairs[:, 1].max() >= self.matched.size
        ):
            raise DataError(f"pairs hold an index outside 0 to {self.matched.size - 1}.")
        if np.any(self.pairs[:, 0] == self.pairs[:, 1]):
            raise DataError("pairs hold a matched pair (i, i); accepted is i != j.")

    @classmethod
    def from_pairs(
        cls,
        matched: LogProbs,
        mismatched: LogProbs,
        pairs: np.ndarray,
        normalisation: Normalisation,
        marginal: np.ndarray | None = None,
    ) -> "Contrast":
        """From the scores of the matched pairs, (N,), and of the mismatched ones, (P,). DataError:
        a response has different numbers of tokens in different pairs.
        """
        own, tokens = checked(matched)
        other, other_tokens = checked(mismatched)
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        contrast = cls(own, other, pairs, tokens, normalisation, marginal)
        if not np.array_equal(other_tokens, tokens[contrast.pairs[:, 1]]):
            raise DataError("a response has other numbers of tokens in a mismatched pair.")
        return contrast

    @classmethod
    def from_matrix(
        cls, matrix: LogProbs, normalisation: Normalisation, marginal: np.ndarray | None = None
    ) -> "Contrast":
        """From the scores of all pairs, (N, N): row the context, column the response."""
        values, tokens = checked(matrix)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise DataError(f"matrix has shape {values.shape}; accepted is (N, N).")
        pairs = np.argwhere(~np.eye(len(values), dtype=bool))
        own, own_tokens, other = np.diagonal(values), np.diagonal(tokens), values[tuple(pairs.T)]
        return cls(own, other, pairs, own_tokens, normalisation, marginal)

    def first_pairs(self, count: int) -> "Contrast":
        """With the first `count` of its mismatched pairs only."""
        return replace(self, mismatched=self.mismatched[:count], pairs=self.pairs[:count])

    @property
    def examples(self) -> int:
        """N."""
        return self.matched.size

    @property
    def unit(self) -> str:
        """`nats per token` or `nats per response`."""
        return UNITS[self.normalisation]

    @property
    def divisors(self) -> np.ndarray:
        """(N,) what the terms of a response are divided by: its tokens, or 1 (`per_response`)."""
        return self.tokens if self.normalisation == "per_token" else np.ones(self.examples)

    @cached_property
    def by_response(self) -> "ByResponse":
        """The mismatched pairs response by response; DataError if one is in none."""
        order = np.argsort(self.pairs[:, 1], kind="stable")
        counts = np.bincount(self.pairs[:, 1], minlength=self.examples)
        if np.any(counts == 0):
            raise DataError(
                f"{int(np.sum(counts == 0))} of {self.examples} responses are in no mismatched "
                "pair. Score all pairs, or a number of them per context."
            )
        return ByResponse(order, counts)


@dataclass(frozen=True)
class ByResponse:
    """Sums and maxima over the mismatched pairs of each response: `order`, (P,), holds the
    positions of the pairs, those of one response side by side, `counts`, (N,), how many each has,
    at least 1.
    """

    order: np.ndarray
    counts: np.ndarray

    def sum(self, values: np.ndarray) -> np.ndarray:
        """(P,) in the order of the pairs -> (N,)."""
        return np.add.reduceat(values[self.order], self._starts)

    def max(self, values: np.ndarray) -> np.ndarray:
        """(P,) in the order of the pairs -> (N,)."""
        return np.maximum.reduceat(values[self.order], self._starts)

    @property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]])
