"""CLUB against arrays worked out by hand, against closed forms, and its invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coevolve.errors import DataError, RecipeError
from coevolve.information.club import club, club_from_matrix
from coevolve.information.estimate import Contrast, mutual_information
from coevolve.information.log_probs import normalise
from coevolve.scoring.scores import Scores

# Context i in rows, response j in columns; the responses have 1, 2 and 4 tokens.
SUMS = np.array([[-1.0, -6.0, -8.0], [-3.0, -2.0, -12.0], [-5.0, -4.0, -4.0]])
TOKENS = np.array([1, 2, 4])

square_matrices = st.integers(2, 7).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(-50, 0, width=32)))


def test_per_response_by_hand():
    # matched: (-1 - 2 - 4) / 3 = -7/3; mismatched: (-6 - 8 - 3 - 12 - 5 - 4) / 6 = -38/6
    contrast = Contrast.from_matrix(Scores(SUMS, TOKENS), "per_response")
    estimate = mutual_information(contrast)
    assert estimate.value == pytest.approx(-7 / 3 + 38 / 6)
    assert (estimate.unit, estimate.form) == ("nats per response", "club")


def test_per_token_by_hand():
    # matched: -1/1, -2/2, -4/4; mismatched: -6/2, -8/4, -3/1, -12/4, -5/1, -4/2, in all -18
    estimate = mutual_information(Contrast.from_matrix(Scores(SUMS, TOKENS), "per_token"))
    assert estimate.value == pytest.approx(-1 + 18 / 6)
    assert estimate.unit == "nats per token"


def test_sampled_pairs_by_hand():
    pairs = np.array([[0, 1], [2, 0]])
    positive, negative = Scores(SUMS.diagonal(), TOKENS), Scores(np.array([-6.0, -5.0]), np.array([2, 1]))
    contrast = Contrast.from_pairs(positive, negative, pairs, "per_token")
    assert mutual_information(contrast).value == pytest.approx(-1 + (3 + 5) / 2)


@given(square_matrices)
def test_all_pairs_are_the_full_matrix(matrix):
    pairs = np.array([(i, j) for i in range(len(matrix)) for j in range(len(matrix)) if i != j])
    sampled = club(matrix.diagonal(), matrix[pairs[:, 0], pairs[:, 1]])
    assert sampled == pytest.approx(club_from_matrix(matrix), abs=1e-9)


@given(square_matrices, st.randoms(use_true_random=False))
def test_order_of_examples_does_not_matter(matrix, random):
    order = random.sample(range(len(matrix)), len(matrix))
    assert club_from_matrix(matrix[np.ix_(order, order)]) == pytest.approx(club_from_matrix(matrix), abs=1e-9)


@given(square_matrices, st.floats(-20, 20))
def test_a_constant_changes_nothing(matrix, constant):
    assert club_from_matrix(matrix + constant) == pytest.approx(club_from_matrix(matrix), abs=1e-9)


@given(square_matrices)
def test_the_papers_form_over_all_pairs_is_smaller_by_the_matched_share(matrix):
    count = len(matrix)
    over_all = np.mean(matrix.diagonal()) - np.mean(matrix)
    assert over_all == pytest.approx(club_from_matrix(matrix) * (count - 1) / count, abs=1e-9)


def test_gaussian_matches_its_closed_form_and_bounds_the_truth():
    # X, Y standard normal with correlation rho: I = -ln(1 - rho^2) / 2. With the true conditional N(rho x, 1 - rho^2)
    # the mean squared residual is 1 - rho^2 when matched and 1 + rho^2 when not, so CLUB = rho^2 / (1 - rho^2).
    rho, count = 0.8, 3000
    variance = 1 - rho**2
    rng = np.random.default_rng(7)
    x = rng.standard_normal(count)
    y = rho * x + np.sqrt(variance) * rng.standard_normal(count)
    matrix = -0.5 * (y[None, :] - rho * x[:, None]) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    value = club_from_matrix(matrix)
    assert value == pytest.approx(rho**2 / variance, rel=0.1)
    assert value > -0.5 * np.log(variance)


@given(arrays(np.float64, (4, 5), elements=st.floats(0.01, 1)))
def test_with_the_true_conditional_it_bounds_discrete_information(weights):
    joint = weights / weights.sum()
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    log_conditional = np.log(joint / p_x[:, None])
    information = np.sum(joint * (log_conditional - np.log(p_y)))
    # Expected CLUB: an expectation is a mean over outcomes repeated as often as they are probable, so that the
    # estimator itself is given the expectation's terms, each scaled by its probability times their number.
    positive = (joint * log_conditional).ravel() * joint.size
    negative = (np.outer(p_x, p_y) * log_conditional).ravel() * joint.size
    assert club(positive, negative) >= information - 1e-12


def test_independent_responses_have_no_information():
    matrix = np.tile([-1.0, -2.5, -4.0], (3, 1))  # log q(y | x) is the same for each x
    assert club_from_matrix(matrix) == pytest.approx(0.0)


@pytest.mark.parametrize("matrix", [np.zeros((1, 1)), np.zeros((2, 3)), np.zeros(4), np.zeros((0, 0))])
def test_a_matrix_without_mismatched_pairs_is_refused(matrix):
    with pytest.raises(DataError, match=r"\(N, N\) with N of 2 or more"):
        club_from_matrix(matrix)


def test_no_negatives_are_refused():
    with pytest.raises(DataError, match="negative log-probabilities have shape"):
        club(np.array([-1.0]), np.array([]))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [([[0, 0]], "matched pair"), ([[0, 3]], "outside 0 to 1"), ([[0, 1], [1, 0]], r"accepted is \(1, 2\)")],
)
def test_pairs_that_do_not_fit_are_refused(pairs, message):
    with pytest.raises(DataError, match=message):
        Contrast(np.zeros(2), np.zeros(1), np.array(pairs), "per_token")


@pytest.mark.parametrize(
    ("sums", "tokens", "message"),
    [
        ([-1.0, -np.inf], [1, 1], r"index \(1,\) is -inf.*1 of 2"),
        ([np.nan], [1], "finite number"),
        ([-1.0], [0], "at least 1"),
        ([-1.0, -1.0], [1, 1, 1], "does not broadcast"),
    ],
)
def test_unusable_log_probabilities_are_refused(sums, tokens, message):
    with pytest.raises(DataError, match=message):
        normalise(Scores(np.array(sums), np.array(tokens)), "per_token")


def test_unknown_names_are_refused():
    contrast = Contrast.from_matrix(Scores(SUMS, TOKENS), "per_token")
    with pytest.raises(RecipeError, match="accepted are 'club'"):
        mutual_information(contrast, "mine")
    with pytest.raises(RecipeError, match="'per_token'"):
        normalise(Scores(SUMS, TOKENS), "per_word")
