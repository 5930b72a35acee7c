"""Exact measures of discrete distributions against arrays worked out by hand, and their defining
inequalities.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.errors import DataError
from coevolve.information.discrete import (
    entropy,
    jensen_shannon,
    joint_information,
    kl_divergence,
    row_entropies,
)

LOG2 = np.log(2)


@st.composite
def distributions(draw, size=None):
    weights = draw(st.lists(st.integers(0, 50), min_size=size or 1, max_size=size or 8).filter(any))
    return np.array(weights) / sum(weights)


@st.composite
def pairs(draw):
    size = draw(st.integers(1, 8))
    return draw(distributions(size)), draw(distributions(size))


def test_values_worked_out_by_hand():
    assert entropy([0.5, 0.25, 0.25]) == pytest.approx(1.5 * LOG2)
    assert entropy([0.0, 1.0]) == 0.0
    assert kl_divergence([0.5, 0.5], [0.25, 0.75]) == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == float("inf")
    assert kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(LOG2)
    assert jensen_shannon([1.0, 0.0], [0.0, 1.0]) == pytest.approx(LOG2)
    assert joint_information([[0.5, 0.0], [0.0, 0.5]]) == pytest.approx(LOG2)
    # a binary symmetric channel with crossover 1/4: log 2 - H(1/4)
    assert joint_information([[3 / 8, 1 / 8], [1 / 8, 3 / 8]]) == pytest.approx(
        LOG2 - entropy([0.25, 0.75])
    )


@given(pairs())
def test_divergences_are_what_their_definitions_say(pair):
    p, q = pair
    mixture = (p + q) / 2
    by_kl = (kl_divergence(p, mixture) + kl_divergence(q, mixture)) / 2
    assert jensen_shannon(p, q) == pytest.approx(by_kl, abs=1e-9)
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert 0 <= jensen_shannon(p, q) <= LOG2
    assert kl_divergence(p, q) >= -1e-12
    assert kl_divergence(p, p) == 0


@given(distributions(), distributions())
def test_independent_variables_share_no_information(p, q):
    assert joint_information(np.outer(p, q)) == pytest.approx(0, abs=1e-9)


@given(distributions(size=12))
def test_mutual_information_is_a_divergence_and_bounded_by_each_entropy(flat):
    joint = flat.reshape(3, 4)
    a, b = joint.sum(axis=1), joint.sum(axis=0)
    information = joint_information(joint)
    assert information == pytest.approx(kl_divergence(joint, np.outer(a, b)), abs=1e-9)
    assert information <= min(entropy(a), entropy(b)) + 1e-9


def test_row_entropies_take_the_last_axis():
    rows = np.array([[[0.5, 0.5], [1.0, 0.0]]])
    np.testing.assert_allclose(row_entropies(rows), [[LOG2, 0.0]])


@pytest.mark.parametrize("bad", [[0.5, 0.4], [1.5, -0.5], [], [np.nan, 1.0]])
def test_what_is_no_distribution_is_refused(bad):
    with pytest.raises(DataError, match="sum to 1"):
        entropy(bad)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="equal shapes"):
        jensen_shannon([1.0], [0.5, 0.5])
    with pytest.raises(DataError, match="matrix"):
        joint_information([1.0])
    with pytest.raises(DataError, match="last axis"):
        row_entropies([[0.5, 0.5], [0.5, 0.6]])
