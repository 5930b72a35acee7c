"""How sure an estimate over pairs is: the entries of a matrix share contexts and responses and are
not independent.

Examples are what is drawn, so an estimate's error follows from its influence
(`coevolve.information.influence`): the effect of each example as context and as response at once.
`standard_error` is the variance of a two-sample U-statistic whose samples are paired; `bootstrap`
redraws examples. Both are of first order: they leave out a term that vanishes like 1 / N^2 (all
pairs), and the fit of what is fitted by maximising, whose effect is of second order as well.

Differences are paired by construction: a model and golden, or two models, share examples, so their
influences are subtracted (or meet the same redrawn examples); two subsets share none, so their
errors add.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from coevolve.errors import DataError
from coevolve.information.influence import Influence

REPLICATES = 2000
LEVEL = 0.95


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
    values, count = influence.mismatched, influence.matched.size
    keys = influence.pairs[:, 0] * count + influence.pairs[:, 1]
    reverse = influence.pairs[:, 1] * count + influence.pairs[:, 0]
    order = np.argsort(keys)
    place = np.minimum(np.searchsorted(keys, reverse, sorter=order), max(values.size - 1, 0))
    found = order[place] if values.size else order
    reversed_values = np.where(keys[found] == reverse, values[found], 0.0)
    return float(np.sum(values * (values + reversed_values)))


def draw_examples(count: int, rng: np.random.Generator, replicates: int = REPLICATES) -> np.ndarray:
    """(replicates, N) times each example is drawn; one draw serves all that is to be paired."""
    return rng.multinomial(count, np.full(count, 1 / count), size=replicates)


def bootstrap(influence: Influence, draws: np.ndarray) -> np.ndarray:
    """(replicates,) deviations of the estimate from its expectation, for the examples drawn.

    The influences are scaled to `standard_error`, so that pairs, which two examples share, are not
    counted twice (drawing contexts and responses alike counts them up to three times: Owen, The
    Pigeonhole Bootstrap, 2007).
    """
    gathered = influence.of_examples()
    if draws.shape[-1] != gathered.size:
        raise DataError(f"draws are of {draws.shape[-1]} examples, not of {gathered.size}.")
    gathered = gathered - gathered.mean()
    spread = np.sqrt(np.mean(gathered**2) / gathered.size)
    scale = standard_error(influence) / spread if spread > 0 else 0.0
    moved: np.ndarray = draws @ gathered * (scale / gathered.size)
    return moved


def interval(value: float, deviations: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """(low, high): the percentile interval of the replicates `value` + `deviations`."""
    tail = 50 * (1 - level)
    low, high = np.percentile(value + deviations, [tail, 100 - tail])
    return float(low), float(high)


def chance_above(value: float, deviations: np.ndarray, threshold: float = 0.0) -> float:
    """Share of the replicates above the threshold."""
    return float(np.mean(value + deviations > threshold))


def p_value(value: float, deviations: np.ndarray) -> float:
    """One-sided, of "the true value is at most 0"."""
    return float((np.sum(value + deviations <= 0) + 1) / (deviations.size + 1))


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


def power(
    in_distribution: np.ndarray,
    shifted: np.ndarray,
    effect: float,
    examples: int,
    *,
    rng: np.random.Generator,
    level: float = 0.05,
    trials: int = 1000,
) -> float:
    """How often a loss of `effect` is told from 0 with so many examples in each of the two subsets,
    by simulation.

    For 80 % of the time, `examples` must be about 12.4 (deviation / effect)^2, the deviation being
    that of the influences. To tell an R-EMID of 0.05 nats per token from 0, simulation gives:

    | influences of | deviation, nats per token | examples in each subset |
    |---|---|---|
    | `calibrated`, a pretrained 135 M model on real dialogues | 0.13 to 0.20 | 90 to 200 |
    | CLUB, the same | 0.33 | 520 to 570 |
    | `calibrated`, models of a synthetic world that falter | 0.35 to 0.45 | 650 to 960 |
    | CLUB, the same; it shows a true loss 3 to 4 times as large | 0.9 to 1.6 | 4,000 to 12,000 |

    Args:
        in_distribution, shifted: influences of the examples of a scored run
        (`Influence.of_examples`), taken for the
            populations; their unit is that of `effect`.
        effect: the true loss.
        examples: drawn from each of the two.
        level: one-sided, of each test.

    Returns:
        Share of the trials in which value / standard error exceeds the normal quantile.
    """
    value, variance = np.full(trials, effect), np.zeros(trials)
    for population in (in_distribution, shifted):
        drawn = rng.choice(population - population.mean(), size=(trials, examples))
        value += drawn.mean(axis=1)
        variance += drawn.var(axis=1, ddof=1) / examples
    return float(np.mean(value > NormalDist().inv_cdf(1 - level) * np.sqrt(variance)))
