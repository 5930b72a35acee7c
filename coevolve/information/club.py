"""CLUB, a contrastive estimate of mutual information, and the matched half of it alone as a
control.

Cheng, Hao, Dai, Liu, Gan, Carin: CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information,
ICML 2020. With log q(y | x) of a conditional model,

    I_CLUB = E_{p(x, y)} log q(y | x) - E_{p(x) p(y)} log q(y | x).

With the true conditional it is I(X; Y) + KL(p(x) p(y) || p(x, y)), and that second term is as large
as the responses are unlikely in each other's contexts: for sure responses it is several times I.
For any other q it may lie on either side of I. Published as R-EMI's estimator in nats *per token*,
which is no mutual information in nats; sums per response are (biased up as said).

Deviation from the paper's sample form: the second mean is over i != j only. The paper's runs over
all N^2 pairs, the N matched ones included, which multiplies the estimate by (N - 1) / N; without
them it is unbiased.
"""

import numpy as np

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.influence import Influence


def club(contrast: Contrast) -> tuple[float, Influence]:
    """(mean over matched - mean over mismatched pairs, its influence), in the contrast's unit."""
    if contrast.mismatched.size == 0:
        raise DataError("CLUB needs mismatched pairs; found none. Give 2 or more examples.")
    divisors = contrast.divisors
    own = contrast.matched / divisors
    other = contrast.mismatched / divisors[contrast.pairs[:, 1]]
    share = own.size / other.size
    influence = Influence(own - own.mean(), -share * (other - other.mean()), contrast.pairs)
    return float(own.mean() - other.mean()), influence


def fidelity(contrast: Contrast) -> tuple[float, Influence]:
    """(mean log q(y | x) of the matched pairs, its influence): how likely a golden-trained q finds
    the responses.

    No information measure: it has no negatives. It is the control that a form with negatives must
    beat.
    """
    own = contrast.matched / contrast.divisors
    none = np.zeros(contrast.mismatched.size)
    return float(own.mean()), Influence(own - own.mean(), none, contrast.pairs)
