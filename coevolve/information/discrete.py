"""Entropy, divergences and mutual information of discrete distributions, exactly, in nats.

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
        raise DataError(
            "rows: a row along the last axis is no distribution; accepted are non-negative numbers that sum to 1."
        )
    entropies: np.ndarray = -_x_log_x(rows).sum(axis=-1)
    return entropies


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """KL(p || q) = sum p log(p / q), in nats; infinite where p has mass and q has none."""
    p, q = _pair(p, q)
    inside = p > 0
    if np.any(q[inside] == 0):
        return float("inf")
    return float(np.sum(p[inside] * (np.log(p[inside]) - np.log(q[inside]))))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> float:
    """JSD(p || q) = H((p + q) / 2) - (H(p) + H(q)) / 2, nats, 0 to log 2 (Lin, 1991)."""
    p, q = _pair(p, q)
    mixture = (p + q) / 2
    divergence = -_x_log_x(mixture).sum() + (_x_log_x(p).sum() + _x_log_x(q).sum()) / 2
    return float(np.clip(divergence, 0.0, np.log(2)))  # rounding alone can leave the range


def joint_information(joint: ArrayLike) -> float:
    """I(A; B) in nats of a joint distribution of shape (A, B)."""
    joint = _distribution(joint, "joint")
    if joint.ndim != 2:
        raise DataError(f"joint: {joint.ndim} axes found; accepted is a matrix of shape (A, B).")
    separate = entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))
    return max(0.0, separate - entropy(joint))


def _x_log_x(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return p * np.log(p, where=p > 0, out=np.zeros_like(p))


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, q = _distribution(p, "p"), _distribution(q, "q")
    if p.shape != q.shape:
        raise DataError(f"p has shape {p.shape}, q {q.shape}; accepted are equal shapes.")
    return p, q


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
