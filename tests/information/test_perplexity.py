"""Perplexity and its paired comparison, by hand and against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coevolve.errors import DataError
from coevolve.information.perplexity import compare_perplexities, perplexity
from coevolve.scoring.scores import Scores


def test_perplexity_weighs_tokens_alike():
    # 8 nats over 4 tokens; the mean of the responses' own means, (1 + 7/3) / 2, would be another
    # number
    assert perplexity(Scores(np.array([-1.0, -7.0]), np.array([1, 3]))) == pytest.approx(
        np.exp(2.0)
    )


@given(st.integers(1, 1000), arrays(np.int64, 5, elements=st.integers(1, 40)))
def test_uniform_words_have_the_vocabulary_as_perplexity(vocabulary, tokens):
    assert perplexity(Scores(-tokens * np.log(vocabulary), tokens)) == pytest.approx(vocabulary)


def test_comparison_by_hand():
    # d = (1, 4), t = (1, 3): L = 5/4, e = (1 - 1.25, 4 - 3.75) / 2 = (-1/8, 1/8), error^2 = (2/64)
    # / 2
    tokens = np.array([1, 3])
    result = compare_perplexities(
        Scores(np.array([-2.0, -9.0]), tokens), Scores(np.array([-1.0, -5.0]), tokens)
    )
    assert result.log_ratio == pytest.approx(1.5 - 0.25)
    assert result.log_ratio_error == pytest.approx(1 / 8)
    assert result.ratio == pytest.approx(np.exp(1.25))
    assert result.ratio_error == pytest.approx(np.exp(1.25) / 8)
    assert result.examples == 2


def test_ratio_is_that_of_the_perplexities_and_a_model_equals_itself():
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 30, 50)
    model, baseline = (Scores(-rng.gamma(2.0, tokens), tokens) for _ in range(2))
    result = compare_perplexities(model, baseline)
    assert result.ratio == pytest.approx(perplexity(model) / perplexity(baseline))
    same = compare_perplexities(model, model)
    assert (same.ratio, same.log_ratio_error) == (1.0, 0.0)


def test_standard_error_is_the_spread_over_repeated_samples():
    rng = np.random.default_rng(11)
    log_ratios, errors = [], []
    for _ in range(600):
        tokens = rng.integers(2, 40, 80)
        hardness = rng.gamma(
            4.0, 0.5, 80
        )  # of the example, shared by both models and by its tokens
        baseline = -hardness * tokens
        model = baseline * rng.normal(0.9, 0.1, 80)
        result = compare_perplexities(Scores(model, tokens), Scores(baseline, tokens))
        log_ratios.append(result.log_ratio)
        errors.append(result.log_ratio_error)
    assert np.mean(errors) == pytest.approx(np.std(log_ratios), rel=0.1)


def test_unlike_scores_are_refused():
    two, three = Scores(np.full(2, -3.0), np.full(2, 2)), Scores(np.full(3, -3.0), np.full(3, 2))
    with pytest.raises(DataError, match="2 scores, the baseline 3"):
        compare_perplexities(two, three)
    with pytest.raises(DataError, match="response 1 has 2 tokens for the model, 3"):
        compare_perplexities(two, Scores(np.full(2, -3.0), np.array([2, 3])))
    with pytest.raises(DataError, match="at least 2"):
        compare_perplexities(Scores(np.zeros(1), np.ones(1)), Scores(np.zeros(1), np.ones(1)))
    with pytest.raises(DataError, match="no responses"):
        perplexity(Scores(np.zeros(0), np.zeros(0)))
