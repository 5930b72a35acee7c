"""CLUB, a contrastive estimate of mutual information from a conditional model's log-probabilities.

Cheng, Hao, Dai, Liu, Gan, Carin: CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information, ICML 2020.
With log q(y | x) of a conditional model,

    I_CLUB = E_{p(x, y)} log q(y | x) - E_{p(x) p(y)} log q(y | x),

an upper bound of I(X; Y) when q is the true conditional; for any other q it may lie on either side.

Deviation from the paper's sample form: the second mean is over i != j only. The paper's runs over all N^2 pairs,
the N matched ones included, which multiplies the estimate by (N - 1) / N; without them it is unbiased.

Shapes: N examples, P mismatched pairs. The unit is that of the log-probabilities given (nats per token or per
response); only sums per response give a mutual information in nats.
"""

import numpy as np

from coevolve.errors import DataError


def club(positive: np.ndarray, negative: np.ndarray) -> float:
    """CLUB from matched pairs and any sample of the mismatched ones.

    Args:
        positive: (N,) log q(y_i | x_i).
        negative: (P,) log q(y_j | x_i) for pairs i != j.

    Raises:
        DataError: another rank, or no pair of one kind.
    """
    for name, values in (("positive", positive), ("negative", negative)):
        if np.ndim(values) != 1 or np.size(values) == 0:
            raise DataError(
                f"{name} log-probabilities have shape {np.shape(values)}; accepted is one axis with at least one pair."
            )
    return float(np.mean(positive, dtype=np.float64) - np.mean(negative, dtype=np.float64))


def club_from_matrix(matrix: np.ndarray) -> float:
    """CLUB over every mismatched pair of a square matrix.

    Args:
        matrix: (N, N), row i the context, column j the response: log q(y_j | x_i). N >= 2.

    Raises:
        DataError: not square, or a single example, for which there is no mismatched pair.
    """
    off_diagonal = ~np.eye(check_square(matrix), dtype=bool)
    return club(np.diagonal(matrix), np.asarray(matrix)[off_diagonal])


def check_square(matrix: np.ndarray) -> int:
    """The number of examples N of an (N, N) array with N >= 2; DataError for any other shape."""
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise DataError(f"matrix has shape {shape}; accepted is (N, N) with N of 2 or more examples.")
    return shape[0]
