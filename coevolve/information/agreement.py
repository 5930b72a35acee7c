"""How well one list of numbers agrees with another: correlations of values and of ranks.

Not scipy.stats', which takes a second to import, and which this package does without.
"""

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
