"""The model of the responses alone against its literal definition, and the difference of entropies
with it.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.estimate import mutual_information
from coevolve.information.marginal import BACK_OFF, KT, bigram_log_probs

START = None
responses = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=5), min_size=2, max_size=6
)


def predict(token, previous, others, vocabulary):
    """The probability of a token after another, by counting in the other responses."""
    words = Counter(t for response in others for t in response)
    pairs = Counter(
        pair for response in others for pair in zip([START, *response], response, strict=False)
    )
    before = Counter(t for response in others for t in [START, *response[:-1]])
    unigram = (words[token] + KT) / (sum(words.values()) + KT * len(vocabulary))
    return (pairs[previous, token] + BACK_OFF * unigram) / (before[previous] + BACK_OFF)


@given(responses)
def test_it_is_what_counting_in_the_other_responses_says(given_responses):
    vocabulary = {token for response in given_responses for token in response}
    found = bigram_log_probs(given_responses)
    for index, response in enumerate(given_responses):
        others = given_responses[:index] + given_responses[index + 1 :]
        for previous in (START, *response):
            assert sum(
                predict(t, previous, others, vocabulary) for t in vocabulary
            ) == pytest.approx(1)
        steps = zip(response, [START, *response], strict=False)
        expected = sum(
            np.log(predict(token, previous, others, vocabulary)) for token, previous in steps
        )
        assert found[index] == pytest.approx(expected)


def test_with_the_exact_marginal_and_conditional_it_is_the_exact_information():
    rho, count = 0.9, 20_000
    variance = 1 - rho**2
    rng = np.random.default_rng(0)
    x = rng.standard_normal(count)
    y = rho * x + np.sqrt(variance) * rng.standard_normal(count)
    matched = -0.5 * (y - rho * x) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    marginal = -0.5 * y**2 - 0.5 * np.log(2 * np.pi)
    nothing = np.zeros((0, 2), dtype=int)
    contrast = Contrast(matched, np.zeros(0), nothing, np.ones(count), "per_response", marginal)
    found = mutual_information(contrast, "difference_of_entropies")
    assert found.value == pytest.approx(-0.5 * np.log(variance), abs=0.03)


def test_what_it_cannot_be_computed_from_is_refused():
    contrast = Contrast(
        np.zeros(2), np.zeros(0), np.zeros((0, 2), dtype=int), np.ones(2), "per_response"
    )
    with pytest.raises(DataError, match="needs the responses' log marginals"):
        mutual_information(contrast, "difference_of_entropies")
    with pytest.raises(DataError, match="found 1 responses"):
        bigram_log_probs(["ab"])
    with pytest.raises(DataError, match="2 or more with tokens"):
        bigram_log_probs(["ab", ""])
