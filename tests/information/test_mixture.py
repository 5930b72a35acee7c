"""Mixtures of predictions against brute force, and the weight against a numeric optimum."""

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq

from coevolve.errors import DataError
from coevolve.information.mixture import cross_fitted, fit_weight, log_mean, log_mean_of_tokens


def test_the_log_of_a_weighted_mean():
    found = log_mean([3.0, 1.0, 0.0], [np.log([0.2, 0.5]), np.log([0.6, 0.1]), np.log([0.9, 0.9])])
    np.testing.assert_allclose(np.exp(found), [0.3, 0.4])
    # Where the probabilities themselves are no numbers.
    far = log_mean([0.5, 0.5], [np.array([-2000.0]), np.array([-3000.0])])
    np.testing.assert_allclose(far, -2000 + np.log(0.5))


def test_tokens_are_predicted_as_the_mixture_predicts_them():
    """Of two models of sequences: p(y_t | y_<t) from the joint probabilities of all sequences."""
    rng = np.random.default_rng(0)
    weights, length = [0.3, 0.7], 3
    tables = [np.log(rng.dirichlet([1, 1, 1], size=(3,) * t)) for _ in weights for t in range(3)]
    models = [tables[:length], tables[length:]]
    joint = {
        text: sum(
            w * np.exp(sum(model[t][text[: t + 1]] for t in range(length)))
            for w, model in zip(weights, models, strict=True)
        )
        for text in itertools.product(range(3), repeat=length)
    }
    assert sum(joint.values()) == pytest.approx(1)

    def beginning(*begun):
        return sum(p for text, p in joint.items() if text[: len(begun)] == begun)

    text = (2, 0, 1)
    parts = [[np.array([model[t][text[: t + 1]] for t in range(length)])] for model in models]
    [found] = log_mean_of_tokens(weights, parts)
    expected = [beginning(*text[: t + 1]) / beginning(*text[:t]) for t in range(length)]
    np.testing.assert_allclose(np.exp(found), expected)
    assert found.sum() == pytest.approx(np.log(joint[text]))


@pytest.mark.parametrize("spread", [1e-3, 0.5, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_weight_is_where_the_likelihood_is_highest(spread, seed):
    first, second = np.random.default_rng(seed).normal(-40, spread, size=(2, 50))
    first += (second - first).mean()  # equally good on average, so that both help

    def slope(w):
        return np.mean((1 - np.exp(second - first)) / (w + (1 - w) * np.exp(second - first)))

    weight = fit_weight(first, second)
    assert 0 < weight < 1 and weight == pytest.approx(brentq(slope, 1e-12, 1 - 1e-12), abs=1e-6)
    # And it is where EM stands still.
    share = weight * np.exp(first - log_mean([weight, 1 - weight], [first, second]))
    assert share.mean() == pytest.approx(weight, abs=1e-6)

    def value(w):
        return log_mean([w, 1 - w], [first, second]).sum()

    assert value(weight) >= max(value(w) for w in np.linspace(0, 1, 1001)) - 1e-9


def test_a_prediction_that_is_never_better_gets_no_weight():
    first = np.array([-800.0, -5.0, -3.0])
    assert fit_weight(first, first - 1) == 1
    assert fit_weight(first - 1, first) == 0
    assert fit_weight(first - 900, first) == 0


def test_each_half_is_judged_under_the_weight_of_the_other():
    first, second = np.random.default_rng(3).normal(-10, 2, size=(2, 7))
    found = cross_fitted(first, second)
    for half, other in (
        (slice(0, None, 2), slice(1, None, 2)),
        (slice(1, None, 2), slice(0, None, 2)),
    ):
        w = fit_weight(first[other], second[other])
        expected = np.log(w * np.exp(first[half]) + (1 - w) * np.exp(second[half]))
        np.testing.assert_allclose(found[half], expected)
    # It is no better than the weight that has seen all of them.
    w = fit_weight(first, second)
    assert found.sum() < log_mean([w, 1 - w], [first, second]).sum()


def test_a_weight_needs_responses():
    with pytest.raises(DataError, match="at least one"):
        fit_weight(np.array([]), np.array([]))
    with pytest.raises(DataError, match="at least one"):
        cross_fitted(np.array([-1.0]), np.array([-2.0]))
