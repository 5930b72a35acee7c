"""Importance sampling with self-normalised weights: what K candidates say of a posterior, in nats.

Candidates r_k drawn from a proposal pi have weights w_k = q(r_k) p(y | r_k) / pi(r_k) (Rubin, 1987;
Owen, Monte Carlo, chapter 9). Arrays of log w have shape (..., K); a candidate that cannot be one
has -inf.
"""

import numpy as np
from numpy.typing import NDArray

from coevolve.information.mixture import log_mean

Floats = NDArray[np.float64]


def log_mean_exp(log_weights: Floats) -> Floats:
    """log (1/K) sum_k w_k: an unbiased estimate of p(y), inside a logarithm. Shape (...).

    In expectation below log p(y), and the closer the larger K is (Burda et al., Importance Weighted
    Autoencoders, ICLR 2016).
    """
    return log_mean(np.ones(log_weights.shape[-1]), np.moveaxis(log_weights, -1, 0))


def self_normalised(log_weights: Floats) -> Floats:
    """w_k / sum_j w_j, (..., K): the posterior's as K grows; a row needs a weight above 0."""
    total = np.logaddexp.reduce(log_weights, axis=-1)[..., None]
    normalised: Floats = np.exp(log_weights - total)
    return normalised


def effective_samples(weights: Floats) -> Floats:
    """1 / sum_k w_k^2 of normalised weights, shape (...): between 1 and K (Kong, 1992)."""
    count: Floats = 1 / np.square(weights).sum(axis=-1)
    return count


def mixture_log_prob(log_probs: Floats, counts: NDArray[np.int64]) -> Floats:
    """log sum_j (n_j / K) pi_j(r), shape (...), of a proposal of which n_j of K candidates are
    drawn from pi_j: the balance heuristic (Veach & Guibas, SIGGRAPH 1995), for which it does not
    matter which of them drew a candidate. log pi_j has shape (..., J); those with n_j = 0 do not
    count.
    """
    return log_mean(counts, np.moveaxis(log_probs, -1, 0))


def resample(weights: Floats, count: int, uniform: float) -> NDArray[np.int64]:
    """Indices (count,) drawn with probabilities `weights` (K,), which makes of them a sample of the
    posterior (sampling-importance-resampling, Rubin 1987).

    Systematic (Kitagawa, 1996): one `uniform` in [0, 1) sets points at equal distances, so that
    each index comes count * w_k times, up to one and exactly so in expectation.
    """
    points = (uniform + np.arange(count)) / count
    edges = np.cumsum(weights)
    # The sum of the weights is 1 up to rounding; the last one above 0 takes what is left.
    chosen = np.searchsorted(edges, points * edges[-1], side="right")
    indices: NDArray[np.int64] = np.minimum(chosen, np.flatnonzero(weights)[-1])
    return indices
