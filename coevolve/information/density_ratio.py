"""Mutual information from how much likelier a response is in its own context than in the others.

All forms here estimate one functional of a conditional model q,

    I_q = E_{p(x, y)} log [ q(y | x) / E_{p(x')} q(y | x') ],

which is Barber and Agakov's bound (The IM Algorithm, NeurIPS 2003) with the posterior q(x | y) that
is proportional to p(x) q(y | x). So I_q <= I(X; Y) for *any* q, whoever wrote the responses, with
equality where q is their true conditional up to a factor of y; this is what CLUB lacks. The
marginal E q(y | x') is fitted to each distribution and to each model's responses by itself, for it
is nothing but the contexts of that distribution.

What differs is the estimate of log E q(y_j | x') from K other contexts k:

| form | estimate | bias, for a given q |
|---|---|---|
| `info_nce` | log mean over the K and the own context | I too small, at most log(K + 1) |
| `leave_one_out` | log mean over the K | I too large (L1Out: Poole, 2019; Cheng, 2020) |
| `barber_agakov` | without bias up to a truncation | I too small, by less; at most log K + 0.58 |
| `calibrated` | the same, after two numbers that forgive q are fitted | the same; + about 1 / N |

Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding, 2018. Poole, Ozair,
van den Oord, Alemi, Tucker: On Variational Bounds of Mutual Information, ICML 2019. Cheng et al.:
CLUB, ICML 2020. No lower bound can certify much more than log N nats from N examples (McAllester,
Stratos: Formal Limitations on the Measurement of Mutual Information, AISTATS 2020), so an estimate
near the ceiling says "at least". All forms here shrink or grow with K: compare only what has the
same K.

*Without bias.* With w_k = q(y | x_k) / c in [0, 1] and m its mean, -log m = sum_{s >= 1} (1 - m)^s
/ s, and (1 - m)^s has an unbiased estimate for each s <= K: the mean over all choices of s contexts
of the product of 1 - w. Their sum is

    integral over t in (0, 1) of [ prod_k (1 - t w_k) - (1 - t)^K ] / t,

and what is left out, sum_{s > K} (1 - m)^s / s, is positive and vanishes like exp(-K m). For w of 0
and 1 this is the entropy estimate of Zhang (Entropy Estimation in Turing's Perspective, Neural
Computation 2012), digamma(K + 1) - digamma(number of ones + 1). c is the largest q(y | x_k), the
own context's among them.

*Calibrated.* An estimator trained on golden responses is too sure about another model's. Its critic
g = (1 - a) q^b(y | x) / E q^b(y | x') + a has mean 1 over contexts for every y, so E log g bounds I
from below for any temperature b > 0 and any share 0 <= a <= 1 of responses that have nothing to do
with their context. Both are fitted by maximising the (lower) `info_nce` estimate of E log g; a = 1
gives 0, so the fit is never below "no information". This is the information about the context that
q can read in the responses (usable information, Xu et al., ICLR 2020). b is not fitted below FLOOR.
Where log q of a response varies by more than 100 to 150 nats between contexts, a lower b would give
more: there the critic is still too sure, and the bound lower than it need be.

Terms are in nats per response; a contrast `per_token` divides each by the response's own tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coevolve.information.contrast import Contrast
from coevolve.information.influence import Influence

NODES = 64  # of the integral; it is then exact to 1e-8 for up to 50,000 contexts
SUBSTITUTION = 4  # t = v^4 moves them to where the integrand varies, t of about 1 / K
FLOOR = 0.02  # of the temperatures that are tried
WORTH_TELLING = 0.002  # nats that a temperature a tenth below the floor would add
COARSE_TEMPERATURES = np.geomspace(FLOOR, 4.0, 17)
GOLDEN_SECTION = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Terms:
    """An estimate response by response.

    Attributes:
        of_response: (N,) nats; their mean is the estimate.
        of_context: (P,) first-order effect on the term of response j of having met context i, for
            each pair (i, j).
        of_own_context: (N,) the same of its own context, where that is among those averaged over.
        at_floor: as of `Calibration`.
    """

    of_response: np.ndarray
    of_context: np.ndarray
    of_own_context: np.ndarray | None = None
    at_floor: bool = False

    def estimate(self, contrast: Contrast) -> tuple[float, Influence]:
        """(mean of the terms, its influence), in the contrast's unit."""
        divisors = contrast.divisors
        terms = self.of_response / divisors
        value = float(terms.mean())
        own = terms - value
        if self.of_own_context is not None:
            own = own + self.of_own_context / divisors
        of_pairs = self.of_context / divisors[contrast.pairs[:, 1]]
        return value, Influence(own, of_pairs, contrast.pairs)


@dataclass(frozen=True)
class Calibration:
    """How the critic forgives the model: power b of q, and share a of responses that have nothing
    to do with their context; `at_floor` if b is the lowest that is tried, and a lower one would
    give more.
    """

    temperature: float
    unrelated: float
    at_floor: bool = False


def info_nce(contrast: Contrast) -> Terms:
    """log q(y_j | x_j) - log mean over its own and the other contexts."""
    groups, response = contrast.by_response, contrast.pairs[:, 1]
    log_own, own, other = _scaled(contrast)
    total, count = own + groups.sum(other), groups.counts + 1
    of_context = 1 / count[response] - other / total[response]
    return Terms(log_own - np.log(total / count), of_context, 1 / count - own / total)


def leave_one_out(contrast: Contrast) -> Terms:
    """log q(y_j | x_j) - log mean over the other contexts."""
    groups, response = contrast.by_response, contrast.pairs[:, 1]
    top = groups.max(contrast.mismatched)
    other = np.exp(contrast.mismatched - top[response])
    total = groups.sum(other)
    terms = contrast.matched - top - np.log(total / groups.counts)
    return Terms(terms, 1 / groups.counts[response] - other / total[response])


def barber_agakov(contrast: Contrast) -> Terms:
    """log q(y_j | x_j) - log E q(y_j | x'), the latter without bias."""
    return _unbiased(contrast, 1.0)


def calibrated(contrast: Contrast) -> Terms:
    """E log g for the calibrated critic."""
    calibration = calibrate(contrast)
    sure = _unbiased(contrast, calibration.temperature)
    related = _log(1 - calibration.unrelated) + sure.of_response
    terms = np.logaddexp(related, _log(calibration.unrelated))
    slope = np.exp(related - terms)
    of_context = slope[contrast.pairs[:, 1]] * sure.of_context
    return Terms(terms, of_context, at_floor=calibration.at_floor)


def calibrate(contrast: Contrast) -> Calibration:
    """The temperature and the share under which responses say most about their contexts."""
    groups = contrast.by_response

    def fit(log_temperature: float) -> tuple[float, float]:
        log_own, own, other = _scaled(contrast, np.exp(log_temperature))
        return _fit_unrelated(log_own - np.log((own + groups.sum(other)) / (groups.counts + 1)))

    coarse = np.log(COARSE_TEMPERATURES)
    best = int(np.argmax([fit(b)[0] for b in coarse]))
    low, high = coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)]
    log_temperature = _maximum(lambda b: fit(b)[0], low, high, steps=16)
    value, unrelated = fit(log_temperature)
    lowest = log_temperature < np.log(FLOOR) + 1e-3  # as near as the search comes to it
    at_floor = lowest and fit(log_temperature + np.log(0.9))[0] > value + WORTH_TELLING
    return Calibration(float(np.exp(log_temperature)), unrelated, bool(at_floor))


def _fit_unrelated(terms: np.ndarray) -> tuple[float, float]:
    """(largest mean of log((1 - a) exp(terms) + a), the share a of it); it is concave in a."""
    ratio = np.exp(np.minimum(terms, 700.0))

    def slope(share: float) -> float:
        return float(np.mean((1 - ratio) / ((1 - share) * ratio + share)))

    low, high = 0.0, 1.0
    if np.min(ratio) > 0 and slope(low) <= 0:
        return float(terms.mean()), 0.0
    if slope(high) >= 0:
        return 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.mean(np.log((1 - middle) * ratio + middle))), middle


def _maximum(function: Callable[[float], float], low: float, high: float, *, steps: int) -> float:
    """Golden-section search for the argument of a maximum."""
    left, right = high - GOLDEN_SECTION * (high - low), low + GOLDEN_SECTION * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN_SECTION * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN_SECTION * (high - low)
            at_right = function(right)
    return (low + high) / 2


def _unbiased(contrast: Contrast, temperature: float) -> Terms:
    groups, response = contrast.by_response, contrast.pairs[:, 1]
    log_own, _, other = _scaled(contrast, temperature)
    minus_log_mean, slope = np.zeros(contrast.examples), np.zeros(other.size)
    for t, weight in zip(*_nodes(), strict=True):
        log_each = np.log1p(-t * other)
        none, none_at_all = np.exp(groups.sum(log_each)), (1 - t) ** groups.counts
        minus_log_mean += weight * (none - none_at_all)
        slope += weight * (log_each * none[response] - np.log1p(-t) * none_at_all[response])
    slope -= (groups.sum(slope) / groups.counts)[response]
    return Terms(log_own + minus_log_mean, slope)


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """(t, weight of the integrand's numerator) for the integral over t of numerator / t."""
    x, weights = np.polynomial.legendre.leggauss(NODES)
    v = (x + 1) / 2
    return v**SUBSTITUTION, weights / 2 * SUBSTITUTION / v


def _scaled(contrast: Contrast, temperature: float = 1.0) -> tuple[np.ndarray, ...]:
    """(log q^b in the own context, q^b there, q^b in the others), over the largest in any."""
    matched, mismatched = temperature * contrast.matched, temperature * contrast.mismatched
    top = np.maximum(matched, contrast.by_response.max(mismatched))
    log_own = matched - top
    return log_own, np.exp(log_own), np.exp(mismatched - top[contrast.pairs[:, 1]])


def _log(share: float) -> float:
    return float(np.log(share)) if share > 0 else -np.inf
