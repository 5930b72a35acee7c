"""Mixtures of predictions: weighted means of probabilities, in logarithms, and their weights."""

from collections.abc import Sequence

import numpy as np

from coevolve.errors import DataError

HALVINGS = 40
"""Of the interval that holds a weight; so it is known to 1e-12, and is given to 9 decimals."""


def log_mean(
    weights: Sequence[float] | np.ndarray, log_probs: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """log (sum_k w_k p_k / sum_k w_k), the shape of each of the K arrays; a weight may be 0."""
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    weighted = [log_prob + log for log, log_prob in zip(logs, log_probs, strict=True)]
    return np.asarray(np.logaddexp.reduce(weighted, axis=0) - np.log(sum(weights)))


def log_mean_of_tokens(
    weights: Sequence[float], log_probs: Sequence[Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """As `log_mean`, token by token: log p(y_t | y_<t), which add up to the response's own; of each
    of the K parts the token log-probabilities of N responses.

    Of the mixture, log p(y_<=t) is the log of the weighted mean of what each part gives it; so a
    part counts by its weight times how well it has foretold the tokens so far.
    """
    so_far = (log_mean(weights, [*map(np.cumsum, parts)]) for parts in zip(*log_probs, strict=True))
    return [np.diff(of_one, prepend=0.0) for of_one in so_far]


def fit_weight(first: np.ndarray, second: np.ndarray) -> float:
    """The w in [0, 1] under which w p + (1 - w) q gives N responses the highest probability;
    `first` and `second` are their log-probabilities, (N,) nats.

    A step of EM makes w the mean share that the first has in each response, w p / (w p + (1 - w)
    q). The likelihood is concave in w, so that the step always leads towards its maximum; bisection
    by its sign gets there where the steps themselves, of two predictions that hardly differ, creep.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise DataError(
            "a weight is fitted to as many responses of both, and at least one; found "
            f"{first.shape} and {second.shape}."
        )
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        weight = (low + high) / 2
        share = np.exp(np.log(weight) + first - log_mean([weight, 1 - weight], [first, second]))
        low, high = (weight, high) if share.mean() > weight else (low, weight)
    return round((low + high) / 2, 9)


def cross_fitted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Log-probabilities (N,) under the mixture; the weight is fitted to the half of the responses
    (every other one) that the response itself is not in.
    """
    even = np.arange(first.size) % 2 == 0
    found = np.empty(first.size)
    for half in (even, ~even):
        weight = fit_weight(first[~half], second[~half])
        found[half] = log_mean([weight, 1 - weight], [first[half], second[half]])
    return found
