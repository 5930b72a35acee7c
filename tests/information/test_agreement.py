"""Correlations of values and ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.errors import DataError
from coevolve.information.agreement import pearson, ranks, spearman


def test_ranks_share_ties():
    assert ranks([10.0, 30.0, 20.0, 30.0]).tolist() == [1, 3.5, 2, 3.5]


def test_spearman_without_ties_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    a, b = rng.permutation(9), rng.permutation(9)
    assert spearman(a, b) == pytest.approx(1 - 6 * np.sum((a - b) ** 2) / (9 * (81 - 1)))


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=10, unique=True))
def test_a_monotone_change_keeps_ranks_and_a_linear_one_correlation(values):
    values = np.round(np.array(values), 3)
    if np.unique(values).size < values.size:
        return
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert pearson(values, 3 * values - 1) == pytest.approx(1)


def test_where_nothing_varies_there_is_no_correlation():
    assert pearson([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2, 3], [4, 4, 4]) is None


@pytest.mark.parametrize(("a", "b"), [([1], [1]), ([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]])])
def test_lists_that_do_not_fit_are_refused(a, b):
    with pytest.raises(DataError, match="two lists of one length"):
        pearson(a, b)
