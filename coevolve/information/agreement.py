"""How well lists of numbers agree: correlations of values and of ranks, and raters with each other.

Not scipy.stats', which takes a second to import, and which this package does without.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coevolve.errors import DataError


def pearson(a: ArrayLike, b: ArrayLike) -> float | None:
    """Correlation of two lists of equal length; None where one of them does not vary."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size < 2:
        raise DataError(f"found shapes {a.shape}, {b.shape}; accepted are two lists of one length.")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Correlation of the ranks, ties sharing their mean rank (Spearman, 1904), as `pearson`."""
    return pearson(ranks(a), ranks(b))


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank of each value from 1 up; equal values share the mean of their ranks."""
    _, place, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """How raters agree, 1 being perfect and 0 chance (Krippendorff, 2004, interval data).

    1 - D_o / D_e: the mean squared difference of two ratings of one unit, over that of any two.
    Each unit has its ratings; one with a single rating says nothing. None where no unit has two, or
    all ratings are the same.
    """
    rated = [np.asarray(ratings, dtype=np.float64) for ratings in units if len(ratings) > 1]
    if not rated or np.ptp(together := np.concatenate(rated)) == 0:
        return None
    observed = sum(2 * len(x) * x.var() * len(x) / (len(x) - 1) for x in rated) / together.size
    return float(1 - observed / (2 * together.var(ddof=1)))
