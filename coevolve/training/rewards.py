"""Rewards, as pure functions of texts and log-probabilities.

A completion that is cut off, empty or unparsable gets the lowest value, 0, from each of them.
"""

import math
from collections import Counter
from collections.abc import Sequence

from coevolve.prompts import core_features, missing_sections


def likelihood(mean_log_prob: float) -> float:
    """exp(mean token log q2(y | x, r)): the geometric mean of the response's token probabilities, in (0, 1]."""
    return math.exp(mean_log_prob)


def reasoning_format(reasoning: str, sections: Sequence[str]) -> float:
    """0.5 for a well-formed core-features block, and 0.5 for all expected sections present and in order."""
    has_features = core_features(reasoning, sections) is not None
    return 0.5 * has_features + 0.5 * (not missing_sections(reasoning, sections))


def features_length(reasoning: str, sections: Sequence[str], target_words: int) -> float:
    """min(words in the core features / target, 1)."""
    features = core_features(reasoning, sections) or ""
    return min(len(features.split()) / target_words, 1.0)


def match_ratio(candidate: float, golden: float) -> float:
    """min(1, P(candidate) / P(golden)) from the two log-probabilities, in nats."""
    return math.exp(min(candidate - golden, 0.0))


def word_overlap(candidate: str, golden: str) -> float:
    """The share of the golden response's words, counted with repeats, that the candidate has."""
    wanted, found = Counter(golden.lower().split()), Counter(candidate.lower().split())
    return sum((wanted & found).values()) / max(sum(wanted.values()), 1)


def response_format(response: str, finished: bool) -> float:
    """1 for a response that is not empty and ends its own turn."""
    return float(finished and bool(response.strip()))
