"""How sure an estimate over pairs is: the entries of a matrix share contexts and responses and are
not independent.

Examples are what is drawn, so an estimate's error follows from its influence
(`coevolve.information.influence`): the effect of each example as context and as response at once.
`standard_error` is the variance of a two-sample U-statistic whose samples are paired. It is of
first order: it leaves out a term that vanishes like 1 / N^2 (all pairs), and the fit of what is
fitted by maximising, whose effect is of second order as well.

Of few examples it is too small, and at times far too small: where every response of a small subset
is as telling as can be, or tells nothing, nothing varies, and the error is 0, though the next
example may be another. So intervals and tests (`Sure`) take Student's t, with the degrees of
freedom of Welch (1947), and as many more examples as UNSEEN, each off by as much as responses say
on average, the model's or the golden ones: v = error^2 + UNSEEN (reach / N)^2 (in the manner of
Agresti and Coull, 1998, who add four to a count). With hundreds of examples that is a few per cent
of the width. How often they hold what they should is measured: `coevolve/remid/README.md`.

Differences are paired by construction: a model and golden, or two models, share examples, so their
influences are subtracted; two subsets share none, so their errors add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from coevolve.errors import DataError
from coevolve.information.influence import Influence

Name = TypeVar("Name")

LEVEL = 0.95
LEAST = 8
"""Examples of a subset below which nothing is said of how sure its numbers are."""
UNSEEN = 4
"""Chosen by the coverage that it gives, of 1, 2, 4 and 9: below it intervals are too narrow."""


@dataclass(frozen=True)
class Drawn:
    """What a number owes to the examples of one subset: `shares`, whose squares add up to the
    squared standard error; how many `examples` there are; and `reach`, the most that one more may
    add to their sum.
    """

    shares: np.ndarray
    examples: int
    reach: float


@dataclass(frozen=True)
class Sure:
    """A number and how sure it is; `drawn` by the subset that its examples are of."""

    value: float
    drawn: Mapping[int, Drawn]

    @classmethod
    def of(cls, value: float, influence: Influence, reach: float, subset: int = 0) -> "Sure":
        """Of an estimate over one subset."""
        gathered = influence.of_examples()
        gathered = gathered - gathered.mean()
        size = np.sqrt(np.sum(gathered**2))
        # What varies by pairs only is nobody's in particular.
        ways = gathered / size if size > 0 else np.full(gathered.size, gathered.size**-0.5)
        shares = standard_error(influence) * ways
        return cls(value, {subset: Drawn(shares, influence.matched.size, reach)})

    @classmethod
    def combined(cls, weights: Sequence[float], parts: Sequence["Sure"]) -> "Sure":
        """The weighted sum; what is drawn from the same subset is the same examples."""
        drawn = {}
        for subset in dict.fromkeys(subset for part in parts for subset in part.drawn):
            here = [
                (w, x.drawn[subset])
                for w, x in zip(weights, parts, strict=True)
                if subset in x.drawn
            ]
            shares = np.zeros(max(one.shares.size for _, one in here))
            for w, one in here:  # of fewer further contexts some are shorter
                shares[: one.shares.size] += w * one.shares
            ways = (sum(max(sign * w, 0) * one.reach for w, one in here) for sign in (1, -1))
            drawn[subset] = Drawn(shares, here[0][1].examples, max(ways))
        return cls(float(np.dot(weights, [part.value for part in parts])), drawn)

    @classmethod
    def mean(cls, parts: Sequence["Sure"]) -> "Sure":
        return cls.combined([1 / len(parts)] * len(parts), parts)

    @property
    def tells(self) -> bool:
        """Whether every subset has examples enough for anything to be said of how sure it is."""
        return all(one.examples >= LEAST for one in self.drawn.values())

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(sum(np.sum(one.shares**2) for one in self.drawn.values())))

    @cached_property
    def _spread(self) -> tuple[float, float]:
        """(standard deviation of Student's t, its degrees of freedom)."""
        variances = [
            np.sum(one.shares**2) + UNSEEN * (one.reach / one.examples) ** 2
            for one in self.drawn.values()
        ]
        total = sum(variances)
        of_each = zip(variances, self.drawn.values(), strict=True)
        wavering = sum(v**2 / (one.examples - 1) for v, one in of_each)
        return float(np.sqrt(total)), float(total**2 / wavering) if total else 1.0

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """(low, high), which holds the expected value `level` of the time, or more often."""
        from scipy.special import stdtrit  # here, so that the measures load with NumPy alone

        deviation, freedom = self._spread
        half = deviation * float(stdtrit(freedom, (1 + level) / 2))
        return self.value - half, self.value + half

    def chance_above(self, threshold: float = 0.0) -> float:
        """How sure one can be that the true value is above it; 1 less this is the p-value of "at
        most the threshold", one-sided.
        """
        from scipy.special import stdtr

        deviation, freedom = self._spread
        if deviation == 0:
            return float(self.value > threshold)
        return float(stdtr(freedom, (self.value - threshold) / deviation))

    @property
    def p(self) -> float:
        """The p-value of "the true value is 0", two-sided."""
        above = self.chance_above()
        return 1.0 if self.value == 0 else min(1.0, 2 * min(above, 1 - above))


def standard_error(influence: Influence) -> float:
    """Standard error of an estimate over N examples and P of their pairs, in its unit.

    The variance of a sum over pairs is the sum of the products of all entries that share an example
    (Aronow, Samii, Assenova: Cluster-Robust Variance Estimation for Dyadic Data, 2015), here with
    the matched pairs among the entries:

        N^2 Var(T) = sum_i h_i^2 - sum of what it counts twice,

    h_i being the Hajek projection. Counted twice is what two entries share at both ends: each
    mismatched pair with itself and with its reverse. This matters where pairs are few; for all
    pairs the first sum decides.
    """
    count = influence.matched.size
    if count < 2:
        raise DataError(f"found {count} example; a standard error needs 2 or more.")
    gathered = np.sum(influence.of_examples() ** 2)
    variance = (gathered - _shared_at_both_ends(influence)) / count**2
    # Few noisy pairs can make the estimate negative; half of the doubly counted one is then a floor
    # that is safe.
    variance = max(variance, gathered / (2 * count**2))
    return float(np.sqrt(variance * count / (count - 1)))


def _shared_at_both_ends(influence: Influence) -> float:
    """Sum of v_ij^2 + v_ij v_ji over the mismatched pairs."""
    values, count = influence.mismatched, influence.units
    keys = influence.pairs[:, 0] * count + influence.pairs[:, 1]
    reverse = influence.pairs[:, 1] * count + influence.pairs[:, 0]
    order = np.argsort(keys)
    place = np.minimum(np.searchsorted(keys, reverse, sorter=order), max(values.size - 1, 0))
    found = order[place] if values.size else order
    reversed_values = np.where(keys[found] == reverse, values[found], 0.0)
    return float(np.sum(values * (values + reversed_values)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of tests made together, each to be compared with the level (Holm, 1979).

    Below the level after the adjustment means: with this probability at most, any of those declared
    is wrong.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if np.any(~((p >= 0) & (p <= 1))):
        raise DataError(f"p-values are {list(p_values)}; accepted are numbers from 0 to 1.")
    # SciPy has no Holm, and statsmodels would be a large dependency for three lines.
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def holm_by_name(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """The same of tests that have names."""
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))
