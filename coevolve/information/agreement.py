"""How well lists of numbers agree: correlations of values and of ranks, and raters with each other.

`pearson` and `spearman` are not scipy.stats', which takes a second to import.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Agreement:
    """A correlation and the ends of its interval; None where a list does not vary. `undefined` is
    the number of resamples that the interval leaves out, for in them one does not.
    """

    value: float | None
    low: float | None
    high: float | None
    undefined: int


def agreements(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Agreement]:
    """Pearson, Spearman and Kendall (tau-b) correlations of two lists, (N,), N from 2.

    Intervals are percentiles of a bootstrap over the N pairs (Efron, 1979). It takes the pairs for
    independent: of few, or of such that have something in common, it is rather too narrow.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size < 2:
        raise DataError(f"found shapes {a.shape}, {b.shape}; accepted are two lists of one length.")
    draws = np.random.default_rng(seed).integers(a.size, size=(resamples, a.size))
    if not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return dict.fromkeys(_statistics(), Agreement(None, None, None, resamples))
    usable = [draw for draw in draws if np.ptp(a[draw]) > 0 and np.ptp(b[draw]) > 0]
    found = {}
    for name, statistic in _statistics().items():
        low, high = None, None
        if usable:
            resampled = [statistic(a[draw], b[draw]) for draw in usable]
            low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2]).tolist()
        found[name] = Agreement(float(statistic(a, b)), low, high, resamples - len(usable))
    return found


def _statistics() -> dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]]:
    from scipy import stats  # here, so that the measures load with NumPy alone

    return {
        "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
        "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
        "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
    }


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
