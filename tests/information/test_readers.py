"""The choice of a reader: by hand, and that choosing does not inflate."""

import numpy as np
import pytest

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.estimate import FORMS, mutual_information
from coevolve.information.readers import best_readers, halves, read_by, shares_of_responses
from coevolve.information.uncertainty import standard_error
from coevolve.scoring.scores import Scores


def contrast(matrix, normalisation="per_response"):
    tokens = np.full(len(matrix), 3)
    marginal = -np.linspace(4, 6, len(matrix))
    return Contrast.from_matrix(Scores(matrix, tokens), normalisation, marginal)


def signal(rng, n, strength):
    """log q of a reader that finds the own context by `strength` nats, up to noise."""
    return rng.normal(0, 1, (n, n)) + strength * np.eye(n) - 20


@pytest.mark.parametrize("form", list(FORMS))
def test_what_responses_add_has_the_estimate_as_its_mean(form):
    estimate = mutual_information(contrast(signal(np.random.default_rng(0), 12, 2.0)), form)
    shares = shares_of_responses(estimate)
    assert shares.mean() == pytest.approx(estimate.value, abs=1e-12)
    assert shares.std() > 0.1  # each its own


def test_a_share_is_the_term_of_its_response_worked_out_by_hand():
    matrix = np.array([[-1.0, -4.0, -6.0], [-5.0, -2.0, -3.0], [-7.0, -8.0, -2.5]])
    estimate = mutual_information(contrast(matrix), "leave_one_out")
    off = [matrix[[i for i in range(3) if i != j], j] for j in range(3)]
    terms = [matrix[j, j] - np.log(np.exp(off[j]).mean()) for j in range(3)]
    np.testing.assert_allclose(shares_of_responses(estimate), terms, atol=1e-12)


def test_each_half_is_read_by_the_best_reader_of_the_other_half():
    rng, n = np.random.default_rng(1), 40
    half = halves([f"{i:03}" for i in range(n)], 7)
    assert sorted(np.bincount(half)) == [20, 20]
    # One reader reads half 0 only, the other half 1 only: chosen on the other half, each is wrong.
    base = signal(rng, n, 0.0)
    reads = [np.where(half == own, 5.0, 0.0) * np.eye(n) + base for own in (0, 1)]
    found = {
        f"reads {i}": mutual_information(contrast(x), "calibrated") for i, x in enumerate(reads)
    }
    chosen = best_readers(found, half)
    assert chosen == ("reads 1", "reads 0")
    both = read_by(found, chosen, half)
    expected = np.where(half == 0, *(shares_of_responses(found[name]) for name in chosen))
    assert both.value == pytest.approx(expected.mean(), abs=1e-12)
    assert both.value < min(x.value for x in found.values())
    np.testing.assert_allclose(shares_of_responses(both), expected, atol=1e-9)
    assert both.influence.matched.mean() == pytest.approx(0, abs=1e-12)
    assert both.influence.mismatched.sum() == pytest.approx(0, abs=1e-9)


def test_a_reader_of_both_halves_gives_its_own_estimate_to_the_bit():
    rng, n = np.random.default_rng(2), 30
    half = halves([str(i) for i in range(n)], 0)
    found = {
        name: mutual_information(contrast(signal(rng, n, s)), "calibrated")
        for name, s in {"weak": 0.5, "strong": 4.0}.items()
    }
    chosen = best_readers(found, half)
    assert chosen == ("strong", "strong")
    assert read_by(found, chosen, half) is found["strong"]
    assert best_readers({"a": found["weak"], "b": found["weak"]}, half) == ("a", "a")


@pytest.mark.parametrize("form", ["calibrated", "club"])
def test_choosing_does_not_inflate(form):
    """Of readers that are equally good, the best is better by luck; chosen on the other half,
    not.
    """
    rng, n, single, largest, chosen = np.random.default_rng(3), 24, [], [], []
    half = halves([f"{i:02}" for i in range(n)], 0)
    for _ in range(120):
        found = {str(k): mutual_information(contrast(signal(rng, n, 2.0)), form) for k in range(4)}
        values = [x.value for x in found.values()]
        single.append(np.mean(values))
        largest.append(max(values))
        chosen.append(read_by(found, best_readers(found, half), half).value)
    error = np.std(chosen) / np.sqrt(len(chosen))
    assert np.mean(largest) - np.mean(single) > 5 * error  # what choosing on the same would add
    assert abs(np.mean(chosen) - np.mean(single)) < 3 * error


def test_the_error_of_a_choice_is_that_of_its_repetitions():
    rng, n, values, errors = np.random.default_rng(4), 40, [], []
    half = halves([f"{i:02}" for i in range(n)], 0)
    for _ in range(200):
        found = {
            str(k): mutual_information(contrast(signal(rng, n, 2.0)), "club") for k in range(2)
        }
        estimate = read_by(found, ("0", "1"), half)
        values.append(estimate.value)
        errors.append(standard_error(estimate.influence))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_a_choice_of_both_is_an_estimate_like_any():
    rng, half = np.random.default_rng(5), np.array([0, 1] * 6)
    found = {str(k): mutual_information(contrast(signal(rng, 12, 2.0 + k)), "club") for k in (0, 1)}
    for chosen in (("0", "1"), ("1", "0")):
        both = read_by(found, chosen, half)
        assert both.influence.matched.mean() == pytest.approx(0, abs=1e-12)
        assert both.influence.mismatched.sum() == pytest.approx(0, abs=1e-9)
        assert both.influence.of_examples().mean() == pytest.approx(0, abs=1e-12)
        assert both.reach == max(x.reach for x in found.values())
    assert found["0"].reach != found["1"].reach


def test_halves_do_not_depend_on_the_order_and_need_two():
    ids = ["c", "a", "e", "b", "d"]
    by_name = dict(zip(ids, halves(ids, 3), strict=True))
    assert dict(zip(sorted(ids), halves(sorted(ids), 3), strict=True)) == by_name
    one = mutual_information(contrast(signal(np.random.default_rng(0), 2, 1.0)), "club")
    with pytest.raises(DataError, match="2 or more"):
        best_readers({"a": one}, np.zeros(2, dtype=np.int64))


def test_readers_of_other_pairs_cannot_be_joined():
    rng, half = np.random.default_rng(0), np.array([0, 1, 0, 1])
    whole = contrast(signal(rng, 4, 1.0))
    found = {
        "all": mutual_information(whole, "club"),
        "some": mutual_information(whole.first_pairs(8), "club"),
    }
    with pytest.raises(DataError, match="read the same"):
        read_by(found, ("all", "some"), half)
