"""Mismatched pairs: which there are, how they are drawn, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.errors import DataError, RecipeError
from coevolve.information.readers import halves
from coevolve.remid.pairs import (
    PerContext,
    chosen_negatives,
    contexts_per_response,
    negative_pairs,
    negatives_value,
    pairs_within,
    with_contexts,
)


def ids(count):
    return [f"s{index:03d}" for index in range(count)]


def as_set(pairs):
    return {(int(i), int(j)) for i, j in pairs}


def test_all_pairs_by_hand():
    pairs = negative_pairs(ids(3), "all", seed=0, where="x")
    assert sorted(pairs.tolist()) == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]


@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 2**32))
def test_a_regular_design_uses_every_context_and_response_equally_often(count, per_context, seed):
    pairs = negative_pairs(ids(count), PerContext(per_context), seed=seed, where="x")
    used = min(per_context, count - 1)
    assert len(pairs) == len(as_set(pairs)) == used * count
    assert np.all(pairs[:, 0] != pairs[:, 1])
    for end in pairs.T:
        assert np.bincount(end, minlength=count).tolist() == [used] * count
    assert contexts_per_response(pairs, count) == used


@given(st.integers(3, 20), st.integers(0, 2**32))
def test_the_first_pairs_of_a_design_are_a_design(count, seed):
    every = negative_pairs(ids(count), "all", seed=seed, where="x")
    for used in range(1, count):
        part = every[: used * count]
        assert np.array_equal(
            part, negative_pairs(ids(count), PerContext(used), seed=seed, where="x")
        )


@given(st.integers(4, 21), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32))
def test_within_halves_every_response_meets_equally_many_contexts_of_its_own(
    count, per_context, further, seed
):
    half = halves(ids(count), seed)
    for negatives, most in (("all", count), (PerContext(per_context), per_context)):
        pairs = pairs_within(half, ids(count), negatives, seed=seed, where="x")
        used = min(most, count // 2 - 1)
        assert np.all(half[pairs[:, 0]] == half[pairs[:, 1]])
        for first in range(1, used + 1):
            part = pairs[: first * count]
            assert len(as_set(part)) == first * count and np.all(part[:, 0] != part[:, 1])
            assert np.bincount(part[:, 1], minlength=count).tolist() == [first] * count
        more = with_contexts(pairs, count, 2 * further, half)
        assert contexts_per_response(more, count) == used + further
        beyond = more[len(pairs) :]
        assert np.all((beyond[:, 0] - count) % 2 == half[beyond[:, 1]])


def test_halves_that_are_too_small_to_be_read_apart_are_named():
    half = halves(ids(3), 0)
    with pytest.raises(DataError, match=r"x: found 3 examples; .* it takes 4 or more"):
        pairs_within(half, ids(3), "all", seed=0, where="x")
    with pytest.raises(RecipeError, match="negatives is 9; halves that are read apart need 'all'"):
        pairs_within(halves(ids(8), 0), ids(8), 9, seed=0, where="x")


def test_what_results_say_of_them():
    assert [negatives_value(n) for n in ("all", 1000, PerContext(64))] == [
        "all",
        1000,
        {"per_context": 64},
    ]


@given(st.integers(2, 30), st.integers(1, 1000), st.integers(0, 2**32))
def test_a_sample_is_of_distinct_mismatched_pairs(count, negatives, seed):
    pairs = negative_pairs(ids(count), negatives, seed=seed, where="x")
    assert len(pairs) == len(as_set(pairs)) == min(negatives, count * (count - 1))
    assert as_set(pairs) <= as_set(negative_pairs(ids(count), "all", seed=0, where="x"))


@given(
    st.integers(2, 20),
    st.one_of(st.integers(1, 100), st.builds(PerContext, st.integers(1, 9))),
    st.randoms(use_true_random=False),
)
def test_the_same_examples_are_paired_in_whatever_order_they_come(count, negatives, random):
    names = ids(count)
    shuffled = random.sample(names, count)
    paired = [
        {(order[i], order[j]) for i, j in negative_pairs(order, negatives, seed=5, where="x")}
        for order in (names, shuffled)
    ]
    assert paired[0] == paired[1]


def test_the_seed_decides():
    first, again, other = (negative_pairs(ids(40), 50, seed=seed, where="x") for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert as_set(first) != as_set(other)


def test_every_pair_is_as_likely():
    counts = np.zeros((4, 4))
    for seed in range(3000):
        pairs = negative_pairs(ids(4), 3, seed=seed, where="x")
        counts[pairs[:, 0], pairs[:, 1]] += 1
    expected = 3000 * 3 / 12  # standard deviation about 24
    assert np.all(np.abs(counts[~np.eye(4, dtype=bool)] - expected) < 100)


def test_a_single_example_is_refused_by_name():
    with pytest.raises(DataError, match=r"OOD1Test/german: found a single example \('s000'\)"):
        negative_pairs(ids(1), "all", seed=0, where="OOD1Test/german")


def test_of_each_context_unless_so_many_of_a_subset_are_asked_for():
    assert chosen_negatives(None, 32) == PerContext(32)
    assert [chosen_negatives(x, 32) for x in (1000, "all")] == [1000, "all"]


@pytest.mark.parametrize("negatives", [0, -1, 2.5, "some", True, None])
def test_an_unusable_number_is_refused(negatives):
    with pytest.raises(RecipeError, match="accepted are 'all', integers from 1 up"):
        negative_pairs(ids(3), negatives, seed=0, where="x")


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_an_unusable_number_per_context_is_refused(count):
    with pytest.raises(RecipeError, match="accepted is 1 or more"):
        PerContext(count)
