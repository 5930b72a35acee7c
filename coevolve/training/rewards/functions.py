"""Rewards, as pure functions of texts, token ids and log-probabilities, with the names that recipes
give them and what of a batch they take.

All of them are for a completion that can be judged; what one gets that is cut off, empty or
unparsable stands in the registry.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coevolve.data.words import words
from coevolve.prompts import core_features, missing_sections, words_beyond
from coevolve.training.rewards.registry import of_connector, of_estimator

Floats = NDArray[np.float64]


def _uniform(batch: Any) -> float:
    """What a uniform guess gets."""
    return batch.log_uniform


# Of the connector: what its reasoning does to the golden response's tokens, log q2(y_t | x, r,
# y_<t), shape (T,), nats. `weights`, of the tokens, are those of `change_weights` or 1.


@of_connector("likelihood", "golden", "weights")
@of_estimator("reference_likelihood", "reference")
def likelihood(log_probs: Floats, weights: Floats | float = 1.0) -> float:
    """exp(mean token log q2(y | x, r)), the geometric mean of the token probabilities, in (0, 1].

    Of the estimator's own response, under the estimator as the phase began, it is the
    reference-likelihood.
    """
    return math.exp(np.mean(weights * log_probs))


@of_connector("mean_probability", "golden", "weights")
def mean_probability(log_probs: Floats, weights: Floats | float = 1.0) -> float:
    """The arithmetic mean of the token probabilities, in (0, 1] (RLPR, arXiv 2506.18254).

    One improbable token costs 1 / T of it at most, where it can cost all of the geometric mean.
    """
    return float(np.mean(weights * np.exp(log_probs)))


@of_connector("log_likelihood", "golden", "weights", lowest=_uniform, bounded=False)
def log_likelihood(log_probs: Floats, weights: Floats | float = 1.0) -> float:
    """Mean token log q2(y | x, r), nats per token."""
    return float(np.mean(weights * log_probs))


@of_connector("gain", "golden", "unaided", "weights", lowest=_uniform, bounded=False)
def gain(log_probs: Floats, unaided: Floats, weights: Floats | float = 1.0) -> float:
    """Mean token log q2(y | x, r) - log q2(y | x), nats per token; `unaided` has the latter, (T,).

    In a group, which shares x and y, it differs from `log_likelihood` by a constant; what it adds
    is a value that is above 0 if and only if the reasoning helps. For the same reason it does not
    matter how slowly the side without reasoning moves (RLP, arXiv 2510.01265, averages it over
    updates); here it does not move while the connector learns.
    """
    return log_likelihood(log_probs, weights) - log_likelihood(unaided, weights)


def change_weights(group: Floats) -> Floats:
    """Weights (T,) of a response's tokens, 1 on average, by how much reasoning changes each: in
    proportion to the standard deviation of log q2(y_t | x, r, y_<t) over a group's reasonings,
    (G, T) nats (DRO's reasoning-reflective tokens, arXiv 2506.13351).

    The same for all of the group, so that none is judged by other tokens than the rest; all 1 where
    nothing changes.
    """
    spread: Floats = group.std(axis=0)
    return spread / spread.mean() if spread.any() else np.ones_like(spread)


def bound_credits(log_probs: Floats) -> Floats:
    """What each of K reasonings adds to the K-sample bound L = log (1/K) sum_k q2(y | x, r_k):
    (K,), nats per response.

        credit_k = L - log (1/(K-1)) sum_{j != k} q2(y | x, r_j)

    That is VIMCO's learning signal (Mnih & Rezende, ICML 2016, arXiv 1602.06725) with the
    arithmetic mean of the others for the sample left out. What is subtracted does not depend on
    r_k, so that E sum_k credit_k grad log q1(r_k) = grad E L. Less the group's mean, as GRPO has it
    with `scale_rewards: none`, the sum is the gradient of E L of K - 1 samples exactly (RLOO:
    K / (K - 1) times that). With VIMCO's other choice, the geometric mean, it would be no bound's.
    With q2 far apart, the best one has nearly all the credit, and the others share what they lack:
    none is below log((K - 1) / K).

    Args:
        log_probs: log q2(y | x, r_k), shape (K,), K >= 2.
    """
    size = len(log_probs)
    without = np.array([np.logaddexp.reduce(np.delete(log_probs, k)) for k in range(size)])
    credit: Floats = np.logaddexp.reduce(log_probs) - without + lowest_bound_credit(size)
    return credit


def lowest_bound_credit(size: int) -> float:
    """The lowest of `bound_credits` among `size`: one under which y cannot be."""
    return math.log((size - 1) / size)


@of_connector("format", "texts", given=["sections", "instruction"])
def reasoning_format(
    reasoning: str, sections: Sequence[str], instruction: Collection[str] = ()
) -> float:
    """0.5 for features that say more than the instruction, 0.5 for all sections, in order."""
    if not words_beyond(core_features(reasoning, sections) or "", instruction):
        return 0.0
    return 0.5 + 0.5 * (not missing_sections(reasoning, sections))


@of_connector("length", "features", given=["target_words", "instruction"])
def features_length(features: str, target_words: int, instruction: Collection[str] = ()) -> float:
    """min(distinct words in the core features, without those of the instruction / target, 1)."""
    return min(len(words_beyond(features, instruction)) / target_words, 1.0)


# Of the estimator: what its own response is worth.


@of_estimator("format", "texts")
def response_format(response: str) -> float:
    """1 for a response with a visible character; that it ended its own turn is asked before."""
    return float(bool(response.strip()))


def match_ratio(candidate: float, golden: float) -> float:
    """min(1, P(candidate) / P(golden)) from the two log-probabilities, in nats."""
    return math.exp(min(candidate - golden, 0.0))


def word_overlap(candidate: str, golden: str) -> float:
    """The share of the golden response's words, counted with repeats, that the candidate has."""
    wanted, found = Counter(words(golden.lower())), Counter(words(candidate.lower()))
    return sum((wanted & found).values()) / max(sum(wanted.values()), 1)


def similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """What two token sequences have in common, in [0, 1]: k(a, b) = |A & B| / sqrt(|A| |B|).

    A and B are the sequences' tokens and pairs of neighbours, counted with repeats. The
    intersection of histograms is a positive definite kernel (Barla, Odone, Verri, ICIP 2003), and
    stays one when it is normalised, which is what makes `kernel_scores` proper.
    """
    a, b = _parts(one), _parts(other)
    return (a & b).total() / math.sqrt(a.total() * b.total())


def kernel_scores(to_golden: Floats, among: Floats) -> Floats:
    """Rewards (G,) of a group of G >= 3 samples of q whose policy gradient is the kernel score's.

    The kernel score S(q, y) = E k(X, y) - E k(X, X') / 2, with X and X' drawn from q, is proper: in
    expectation over y ~ p nothing scores better than q = p (Gneiting & Raftery, JASA 2007, section
    5.1). So it rewards likeness to the golden response without rewarding a q that always says the
    same, which likeness alone does.

        reward_i = k(x_i, y) - sum_{j != i} k(x_i, x_j) / (G - 2)

    A sample occurs in both arguments of the second term, which takes its 1/2 away; and a group's
    mean, which GRPO subtracts, holds each k(x_i, x_j) twice, which makes G - 2 of the number of
    others, G - 1. With advantages reward_i - mean, unscaled, E sum_i advantage_i grad log q(x_i) =
    (G - 1) grad S(q, y).

    `to_golden` is k(x_i, y), (G,); `among` k(x_i, x_j), (G, G), without a look at its diagonal.
    """
    size = len(to_golden)
    if size < 3 or to_golden.shape != (size,) or among.shape != (size, size):
        raise ValueError(
            f"kernel_scores needs shapes (G,) and (G, G), G >= 3; found {to_golden.shape}, "
            f"{among.shape}."
        )
    others = among.sum(axis=1) - among.diagonal()
    return to_golden - others / (size - 2)


def lowest_kernel_score(size: int) -> float:
    """The lowest of `kernel_scores` among `size`: unlike golden, and like all others."""
    return -(size - 1) / (size - 2)


def _parts(ids: Sequence[int]) -> Counter:
    return Counter([*ids, *pairwise(ids)])
