"""How far apart two samples of vectors are: the representation Jensen-Shannon divergence and its
noise floor, in nats.

Hoyos-Osorio & Sanchez-Giraldo: The Representation Jensen-Shannon Divergence, 2023 (arXiv
2305.16446). With phi(x) a unit vector in the feature space of a kernel, A = E_P phi(x) phi(x)^T and
B = E_Q likewise have trace 1, and

    rJSD(P, Q) = S((A + B) / 2) - (S(A) + S(B)) / 2,    S(A) = -tr A log A    (von Neumann entropy).

It lies between 0 and log 2. For one-hot vectors it is the exact Jensen-Shannon divergence of the
frequencies.

Two biases, of opposite sign:
- Of the samples: S of n vectors is at most log n and falls short of the truth, more for n than for
  the 2n of the mixture. rJSD of a finite sample is therefore too high, and above 0 where P = Q. How
  high it comes out then is its noise floor, measured here between halves of one sample, at the same
  size.
- Of the representation: rJSD is the Holevo quantity of the two ensembles, at most the exact JSD of
  the texts (Holevo, 1973), and much less where the kernel finds everything alike. A bound that
  holds with the exact JSD need not hold with the representation's.

Kernels, on vectors scaled to unit length, so that k(x, x) = 1:
- `linear`, x . y: the cosine kernel, and what the public code of arXiv 2502.00577 uses;
- `gaussian`, exp(-|x - y|^2 / (2 w^2)): w is the median distance between the vectors of a reference
  sample.

Shapes: n and m samples, d dimensions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coevolve.errors import DataError, RecipeError

Kernel = Literal["linear", "gaussian"]
Vectors = NDArray[np.float64]

REPETITIONS = 10
LARGEST_SAMPLE = 256
"""Vectors on each side of a measurement, unless the caller says otherwise: what bounds its cost."""

EIGENVALUE_TOLERANCE = 1e-8


@dataclass(frozen=True)
class MeasuredDivergence:
    """A representation JSD beside its noise floor, both between samples of `size` vectors; nats.

    `floor` is the same measure between two disjoint samples of one distribution, mean over both
    distributions; `_sd` are standard deviations over the repetitions, each with other vectors.
    """

    jsd: float
    jsd_sd: float
    floor: float
    floor_sd: float
    size: int
    repetitions: int

    @property
    def excess(self) -> float:
        """What `jsd` is above its noise floor, or 0."""
        return max(0.0, self.jsd - self.floor)


def measure_divergence(
    x: Vectors,
    y: Vectors,
    *,
    kernel: Kernel = "linear",
    width: float | None = None,
    repetitions: int = REPETITIONS,
    largest: int = LARGEST_SAMPLE,
    seed: int = 0,
) -> MeasuredDivergence:
    """rJSD between random equal-sized samples of `x` and `y`, beside that between halves of either.

    The size is half the smaller sample's, so that a half of it is as large as what it is compared
    with, at most `largest`; the samples are drawn anew so many times. `x`, (n, d), and `y`, (m, d),
    have 4 or more vectors; a Gaussian kernel's width is `median_width` of `x` where it is not
    given.
    """
    if repetitions < 1 or largest < 2:
        found = f"repetitions is {repetitions}, largest is {largest}"
        raise RecipeError(f"{found}; accepted are at least 1 repetition and samples of 2 vectors.")
    x, y = unit_rows(x), unit_rows(y)
    if min(len(x), len(y)) < 4:
        found = f"found {len(x)} and {len(y)} vectors"
        raise DataError(f"{found}; a divergence with its noise floor needs at least 4 of each.")
    if kernel == "gaussian" and width is None:
        width = median_width(x)
    size = min(len(x) // 2, len(y) // 2, largest)
    rng = np.random.default_rng(seed)
    jsd, floor = np.empty(repetitions), np.empty(repetitions)
    for repetition in range(repetitions):
        of_x, of_y = rng.permutation(len(x)), rng.permutation(len(y))
        x_1, x_2 = x[of_x[:size]], x[of_x[size : 2 * size]]
        y_1, y_2 = y[of_y[:size]], y[of_y[size : 2 * size]]
        jsd[repetition] = representation_jsd(x_1, y_1, kernel=kernel, width=width)
        both = ((x_1, x_2), (y_1, y_2))
        halves = [representation_jsd(a, b, kernel=kernel, width=width) for a, b in both]
        floor[repetition] = np.mean(halves)
    numbers = float(jsd.mean()), float(jsd.std()), float(floor.mean()), float(floor.std())
    return MeasuredDivergence(*numbers, size, repetitions)


def representation_jsd(
    x: Vectors, y: Vectors, *, kernel: Kernel = "linear", width: float | None = None
) -> float:
    """rJSD of two samples (n, d) and (m, d) as they are, scaled to unit length; nats.

    The linear kernel's comes from the covariances or from the Gram matrix, whichever is smaller:
    both have the same eigenvalues but for zeros.
    """
    x, y = unit_rows(x), unit_rows(y)
    if x.shape[1] != y.shape[1]:
        raise DataError(f"vectors have {x.shape[1]} and {y.shape[1]} dimensions.")
    if kernel == "linear" and x.shape[1] < len(x) + len(y):
        return jsd_of_covariances(x.T @ x / len(x), y.T @ y / len(y))
    both = np.concatenate([x, y])
    return jsd_of_gram(gram(both, kernel=kernel, width=width), len(x))


def jsd_of_covariances(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The linear kernel's rJSD of two positive semi-definite (d, d) matrices, scaled to trace 1."""
    a, b = _trace_normalised(a), _trace_normalised(b)
    mixture, parts = von_neumann_entropy((a + b) / 2), map(von_neumann_entropy, (a, b))
    return _within_range(mixture - sum(parts) / 2)


def jsd_of_gram(gram: NDArray[np.float64], first: int) -> float:
    """rJSD from the (n + m, n + m) Gram matrix of both samples, of which the `first` n are of the
    one; nats.

    (A + B) / 2 weighs each vector of the first sample by 1 / 2n and of the second by 1 / 2m.
    Weighted by their roots on both sides, the Gram matrix has its eigenvalues.
    """
    count = len(gram)
    if not 0 < first < count:
        raise DataError(f"first is {first} of {count} vectors; accepted is 1 to {count - 1}.")
    weights = np.where(np.arange(count) < first, 1 / first, 1 / (count - first))
    weighted = gram * np.sqrt(np.outer(weights, weights))
    parts = map(von_neumann_entropy, (weighted[:first, :first], weighted[first:, first:]))
    return _within_range(von_neumann_entropy(weighted) - sum(parts) / 2)


def von_neumann_entropy(matrix: NDArray[np.float64]) -> float:
    """-sum e log e over the eigenvalues of a positive semi-definite matrix scaled to trace 1."""
    eigenvalues = np.linalg.eigvalsh(_trace_normalised(matrix))
    if eigenvalues[0] < -EIGENVALUE_TOLERANCE:
        found = f"matrix has an eigenvalue of {eigenvalues[0]:.3g} of its trace"
        raise DataError(f"{found}; accepted are covariance and Gram matrices: none below 0.")
    positive = eigenvalues[eigenvalues > 0]
    return float(-np.sum(positive * np.log(positive)))


def gram(
    vectors: Vectors, *, kernel: Kernel = "linear", width: float | None = None
) -> NDArray[np.float64]:
    """(n, n) kernel values of (n, d) unit vectors."""
    check_kernel(kernel)
    products = vectors @ vectors.T
    if kernel == "linear":
        return products
    if width is None or not 0 < width < np.inf:
        raise RecipeError(f"width is {width}; accepted is a number above 0 (Gaussian kernel).")
    return np.exp(-(1 - np.clip(products, -1.0, 1.0)) / width**2)  # |x - y|^2 = 2 - 2 x . y


def median_width(vectors: Vectors) -> float:
    """The median distance between distinct unit vectors of a sample (Gretton et al., JMLR 2012)."""
    unit = unit_rows(vectors)
    distances = np.sqrt(np.maximum(0.0, 2 - 2 * (unit @ unit.T)))[np.triu_indices(len(unit), k=1)]
    apart = distances[distances > 1e-6]
    if apart.size == 0:
        raise DataError(f"all {len(unit)} vectors are alike and set no width; use 'linear'.")
    return float(np.median(apart))


def unit_rows(vectors: Vectors) -> Vectors:
    """Each row of an (n, d) array scaled to unit length, float64."""
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or vectors.size == 0:
        raise DataError(f"vectors have shape {vectors.shape}; accepted is (samples, dimensions).")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        found = f"vector {bad[0]} is zero or not finite ({bad.size} of {len(vectors)} are)"
        raise DataError(f"{found}; a text's embedding has a direction. Check the embedder.")
    unit: np.ndarray = vectors / norms
    return unit


def check_kernel(kernel: str) -> None:
    """Raise RecipeError unless `kernel` is one of the two."""
    if kernel not in get_args(Kernel):
        raise RecipeError(f"kernel is {kernel!r}; accepted are {', '.join(get_args(Kernel))}.")


def _within_range(divergence: float) -> float:
    return float(np.clip(divergence, 0.0, np.log(2)))  # rounding alone can leave it


def _trace_normalised(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.asarray(matrix, dtype=np.float64)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not np.allclose(matrix, matrix.T, atol=1e-10):
        found = f"matrix of shape {matrix.shape} is not symmetric"
        raise DataError(f"{found}; accepted are covariance and Gram matrices.")
    trace = float(np.trace(matrix))
    if not 0 < trace < np.inf:
        raise DataError(f"matrix has the trace {trace}; accepted is one above 0.")
    return matrix / trace
