"""Entropy and divergence of discrete distributions, exactly, in nats.

A distribution is an array of non-negative numbers that sums to one over all its axes; its shape is
free. `0 log 0` is 0 throughout (Cover & Thomas, Elements of Information Theory, chapter 2).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coevolve.errors import DataError

SUM_TOLERANCE = 1e-6


def entropy(p: ArrayLike) -> float:
    """H(p) = -sum p log p, in nats."""
    p = _distribution(p, "p")
    return float(-_x_log_x(p).sum())


def row_entropies(rows: ArrayLike) -> NDArray[np.float64]:
    """Entropy, nats, of each distribution along the last axis: shape (..., K) gives (...)."""
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim < 1 or not _are_distributions(rows):
        raise DataError("a row along the last axis is no distribution: numbers that sum to 1.")
    entropies: np.ndarray = -_x_log_x(rows).sum(axis=-1)
    return entropies


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> float:
    """JSD(p || q) = H((p + q) / 2) - (H(p) + H(q)) / 2, nats, 0 to log 2 (Lin, 1991)."""
    p, q = _distribution(p, "p"), _distribution(q, "q")
    if p.shape != q.shape:
        raise DataError(f"p has shape {p.shape}, q {q.shape}; accepted are equal shapes.")
    mixture = (p + q) / 2
    divergence = -_x_log_x(mixture).sum() + (_x_log_x(p).sum() + _x_log_x(q).sum()) / 2
    return float(np.clip(divergence, 0.0, np.log(2)))  # rounding alone can leave the range


def _x_log_x(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return p * np.log(p, where=p > 0, out=np.zeros_like(p))


def _distribution(p: ArrayLike, name: str) -> NDArray[np.float64]:
    p = np.asarray(p, dtype=np.float64)
    if p.size == 0 or not _are_distributions(p.reshape(1, -1)):
        raise DataError(
            f"{name}: an array of shape {p.shape} that sums to {p.sum():.6g} is no distribution; "
            "accepted are finite, non-negative numbers that sum to 1. Divide it by its sum."
        )
    return p


def _are_distributions(rows: NDArray[np.float64]) -> bool:
    return bool(np.all(rows >= 0) and np.all(np.abs(rows.sum(axis=-1) - 1) <= SUM_TOLERANCE))
