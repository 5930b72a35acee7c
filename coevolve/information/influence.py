"""What an estimate owes to each example, to first order: the basis of its errors."""

from dataclasses import dataclass

import numpy as np

from coevolve.errors import DataError


@dataclass(frozen=True)
class Influence:
    """First-order expansion of an estimate T over N examples and P pairs of them:

        T - E[T] = (1 / N) (sum_i matched_i + sum_(i, j) mismatched_ij).

    `matched`, (N,), has mean 0; `mismatched`, (P,), sum 0, and is empty where T uses no pairs. The
    contexts of `pairs` from N up are of no response, and are drawn too.
    """

    matched: np.ndarray
    mismatched: np.ndarray
    pairs: np.ndarray

    def of_examples(self) -> np.ndarray:
        """(N,) the Hajek projection (Hoeffding, 1948): T - E[T] is the mean of these, each example
        gathering its pairs as context and as response. (N + M,) with M further contexts: T - E[T]
        is then their sum over N.
        """
        gathered = np.zeros(self.units)
        gathered[: self.matched.size] = self.matched
        for end in self.pairs.T:
            gathered += np.bincount(end, weights=self.mismatched, minlength=self.units)
        return gathered

    @property
    def units(self) -> int:
        """N + M, all that is drawn."""
        return max(self.matched.size, int(self.pairs[:, 0].max(initial=-1)) + 1)

    def __sub__(self, other: "Influence") -> "Influence":
        """Of the difference of two estimates over the same pairs: what they share cancels."""
        if self.matched.shape != other.matched.shape or not np.array_equal(self.pairs, other.pairs):
            raise DataError("estimates over other examples or pairs have no paired difference.")
        mismatched = self.mismatched - other.mismatched
        return Influence(self.matched - other.matched, mismatched, self.pairs)
