"""Exact measures of discrete distributions against arrays worked out by hand, and their defining
inequalities.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from coevolve.errors import DataError
from coevolve.information.discrete import (
    entropy,
    jensen_shannon,
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
    assert jensen_shannon([1.0, 0.0], [0.0, 1.0]) == pytest.approx(LOG2)


@given(pairs())
def test_the_divergence_is_what_its_definition_says(pair):
    p, q = pair
    mixture = (p + q) / 2
    by_kl = (rel_entr(p, mixture).sum() + rel_entr(q, mixture).sum()) / 2
    assert jensen_shannon(p, q) == pytest.approx(by_kl, abs=1e-9)
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert 0 <= jensen_shannon(p, q) <= LOG2


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
    with pytest.raises(DataError, match="last axis"):
        row_entropies([[0.5, 0.5], [0.5, 0.6]])
