"""The forms that average over other contexts: against literal definitions, and against a truth that
is known.
"""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coevolve.errors import DataError
from coevolve.information import density_ratio
from coevolve.information.contrast import Contrast
from coevolve.information.density_ratio import (
    barber_agakov,
    calibrate,
    calibrated,
    info_nce,
    leave_one_out,
)
from coevolve.information.estimate import mutual_information
from coevolve.scoring.scores import Scores

FORMS = {
    "info_nce": info_nce,
    "leave_one_out": leave_one_out,
    "barber_agakov": barber_agakov,
    "calibrated": calibrated,
}
matrices = st.integers(2, 6).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.floats(-30, 0, width=32))
)


def contrast_of(matrix, tokens=1, normalisation="per_response"):
    return Contrast.from_matrix(Scores(np.asarray(matrix), np.array(tokens)), normalisation)


def value(matrix, form):
    return float(FORMS[form](contrast_of(matrix)).of_response.mean())


def minus_log_mean(w):
    """The estimate of -log of the mean of w in [0, 1] by its definition: all products of some 1 -
    w.
    """
    return sum(
        np.mean([np.prod([1 - each for each in chosen]) for chosen in combinations(w, size)]) / size
        for size in range(1, len(w) + 1)
    )


def channel(count, rng, *, surprise=0.3, symbols=12):
    """Contexts and responses of a symmetric channel; (log p(y_j | x_i) of shape (N, N), the exact
    I(X; Y)).
    """
    x = rng.integers(symbols, size=count)
    y = np.where(rng.random(count) < surprise, rng.integers(symbols, size=count), x)
    same = 1 - surprise + surprise / symbols
    other = surprise / symbols
    log_p = np.where(x[:, None] == y[None, :], np.log(same), np.log(other))
    return log_p, np.log(symbols) + same * np.log(same) + (symbols - 1) * other * np.log(other)


@given(matrices)
def test_definitions_by_loops(matrix):
    count = len(matrix)
    p = np.exp(matrix)
    terms = {"info_nce": [], "leave_one_out": [], "barber_agakov": []}
    for j in range(count):
        others = [p[i, j] for i in range(count) if i != j]
        terms["info_nce"].append(matrix[j, j] - np.log(np.mean(p[:, j])))
        terms["leave_one_out"].append(matrix[j, j] - np.log(np.mean(others)))
        top = p[:, j].max()
        terms["barber_agakov"].append(
            matrix[j, j] - np.log(top) + minus_log_mean([w / top for w in others])
        )
    for form, expected in terms.items():
        np.testing.assert_allclose(
            FORMS[form](contrast_of(matrix)).of_response, expected, atol=1e-7
        )


@pytest.mark.parametrize(("count", "ones"), [(1, 0), (3, 1), (50, 7), (4000, 0), (4000, 3)])
def test_of_counts_it_is_a_difference_of_digammas(count, ones):
    # One response, likely in its own and `ones` other contexts of `count`: log K + ... = H(K) -
    # H(ones).
    matrix = np.full(count + 1, -800.0)
    matrix[: ones + 1] = -1.0
    pairs = np.stack([np.arange(1, count + 1), np.zeros(count, dtype=int)], axis=1)
    idle = np.stack(
        [np.zeros(count, dtype=int), np.arange(1, count + 1)], axis=1
    )  # each response needs a pair
    contrast = Contrast(
        np.full(count + 1, -1.0),
        np.concatenate([matrix[1:], np.full(count, -1.0)]),
        np.concatenate([pairs, idle]),
        np.ones(count + 1),
        "per_response",
    )
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])
    assert barber_agakov(contrast).of_response[0] == pytest.approx(
        harmonic[count] - harmonic[ones], abs=1e-7
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(matrices, st.randoms(use_true_random=False))
def test_order_and_factors_of_the_response_change_nothing(form, matrix, random):
    order = random.sample(range(len(matrix)), len(matrix))
    shifts = np.array([random.uniform(-9, 9) for _ in order])
    assert value(matrix[np.ix_(order, order)], form) == pytest.approx(value(matrix, form), abs=1e-6)
    assert value(matrix + shifts, form) == pytest.approx(value(matrix, form), abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_per_token_divides_each_responses_term(form):
    rng = np.random.default_rng(0)
    matrix, tokens = rng.uniform(-8, 0, (6, 6)), rng.integers(1, 9, 6)
    terms = FORMS[form](contrast_of(matrix, tokens)).of_response
    found = mutual_information(contrast_of(matrix, tokens, "per_token"), form)
    assert found.value == pytest.approx(np.mean(terms / tokens))


def test_with_the_true_conditional_the_forms_lie_where_they_should():
    rng = np.random.default_rng(1)
    found = {form: [] for form in FORMS}
    for _ in range(150):
        log_p, exact = channel(30, rng)
        for form in FORMS:
            found[form].append(value(log_p, form))
    mean = {form: np.mean(values) for form, values in found.items()}
    error = {form: np.std(values) / np.sqrt(150) for form, values in found.items()}
    assert mean["info_nce"] < exact - 3 * error["info_nce"]
    assert mean["leave_one_out"] > exact + 2 * error["leave_one_out"]
    assert abs(mean["barber_agakov"] - exact) < 4 * error["barber_agakov"]
    # The fit of two numbers.
    assert abs(mean["calibrated"] - exact) < 4 * error["calibrated"] + 1 / 30


@pytest.mark.parametrize("sureness", [0.3, 2.5])
def test_any_conditional_gives_a_lower_bound_and_calibration_recovers_the_truth(sureness):
    rng = np.random.default_rng(2)
    log_p, exact = channel(400, rng)
    distorted = sureness * log_p
    assert value(distorted, "barber_agakov") < exact - 0.05
    assert value(distorted, "calibrated") == pytest.approx(value(log_p, "barber_agakov"), abs=0.03)
    assert calibrate(contrast_of(distorted)).temperature * sureness == pytest.approx(
        calibrate(contrast_of(log_p)).temperature, rel=0.05
    )


@pytest.mark.parametrize(("noise", "at_floor"), [(20, False), (100, True), (400, True)])
def test_where_a_lower_temperature_would_give_more_it_is_said(noise, at_floor, monkeypatch):
    rng = np.random.default_rng(5)
    log_p = rng.normal(-300, noise, (48, 48)) + noise * np.eye(48)
    found = mutual_information(contrast_of(log_p), "calibrated")
    assert found.at_floor is at_floor
    assert calibrate(contrast_of(log_p)).temperature > 0.0199
    monkeypatch.setattr(density_ratio, "FLOOR", 1e-4)
    monkeypatch.setattr(density_ratio, "COARSE_TEMPERATURES", np.geomspace(1e-4, 4.0, 40))
    lower = mutual_information(contrast_of(log_p), "calibrated")
    assert not lower.at_floor
    assert (lower.value > found.value + 0.01) is at_floor


def test_without_information_there_is_no_floor_to_speak_of():
    """A temperature near 0 is then as good as any."""
    unrelated = np.random.default_rng(6).normal(-300, 20, (48, 48))
    assert calibrate(contrast_of(unrelated)).temperature < 0.021
    assert not mutual_information(contrast_of(unrelated), "calibrated").at_floor
    assert not mutual_information(contrast_of(unrelated), "club").at_floor


def test_responses_that_have_nothing_to_do_with_their_contexts_give_nothing():
    rng = np.random.default_rng(3)
    log_p, _ = channel(200, rng, surprise=0.001)
    unrelated = log_p[:, rng.permutation(200)]
    assert value(unrelated, "barber_agakov") < -2
    assert 0 <= value(unrelated, "calibrated") < 0.05
    assert calibrate(contrast_of(unrelated)).unrelated > 0.8


def test_some_unrelated_responses_do_not_hide_the_others():
    rng = np.random.default_rng(4)
    log_p, _ = channel(300, rng, surprise=0.001)
    strayed = log_p.copy()
    strayed[:, :90] = log_p[:, rng.permutation(90)]
    _, exact = channel(
        2, rng, surprise=0.3
    )  # 30 % of the responses are drawn without regard to their context
    assert value(strayed, "calibrated") == pytest.approx(exact, abs=0.15)
    assert value(strayed, "barber_agakov") < exact - 0.5
    assert calibrate(contrast_of(strayed)).unrelated == pytest.approx(0.3, abs=0.1)


def test_nothing_exceeds_its_ceiling():
    matrix = np.where(np.eye(20, dtype=bool), -1.0, -300.0)
    assert value(matrix, "info_nce") == pytest.approx(np.log(20))
    assert value(matrix, "barber_agakov") == pytest.approx(np.sum(1 / np.arange(1, 20)))
    assert value(matrix, "leave_one_out") == pytest.approx(299)


def test_fewer_pairs_are_part_of_more():
    rng = np.random.default_rng(5)
    log_p, _ = channel(40, rng)
    circle = np.array([(i, (i + d) % 40) for d in range(1, 40) for i in range(40)])
    every = Contrast(
        log_p.diagonal(), log_p[circle[:, 0], circle[:, 1]], circle, np.ones(40), "per_response"
    )
    few = every.first_pairs(5 * 40)
    for form in ("info_nce", "leave_one_out", "barber_agakov"):
        assert FORMS[form](every).of_response.mean() == pytest.approx(value(log_p, form), abs=1e-9)
        by_hand = [
            FORMS[form](
                contrast_of(log_p[np.ix_([j, *((j - d) % 40 for d in range(1, 6))], [j] * 6)])
            ).of_response[0]
            for j in range(40)
        ]
        assert FORMS[form](few).of_response.mean() == pytest.approx(np.mean(by_hand))


def test_a_response_without_other_contexts_is_refused():
    contrast = Contrast(
        np.zeros(3), np.zeros(2), np.array([[0, 1], [1, 0]]), np.ones(3), "per_response"
    )
    with pytest.raises(DataError, match="1 of 3 responses are in no mismatched pair"):
        info_nce(contrast)
