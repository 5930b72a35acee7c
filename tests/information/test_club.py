"""CLUB and its control against arrays worked out by hand, against closed forms, and its
invariances.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coevolve.errors import DataError, RecipeError
from coevolve.information.contrast import Contrast
from coevolve.information.estimate import mutual_information
from coevolve.information.log_probs import checked
from coevolve.scoring.scores import Scores

# Context i in rows, response j in columns; the responses have 1, 2 and 4 tokens.
SUMS = np.array([[-1.0, -6.0, -8.0], [-3.0, -2.0, -12.0], [-5.0, -4.0, -4.0]])
TOKENS = np.array([1, 2, 4])

square_matrices = st.integers(2, 7).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.floats(-50, 0, width=32))
)


def contrast_of(matrix):
    return Contrast.from_matrix(Scores(np.asarray(matrix), np.array(1)), "per_response")


def club(matrix):
    return mutual_information(contrast_of(matrix), "club").value


def test_per_response_by_hand():
    # matched: (-1 - 2 - 4) / 3 = -7/3; mismatched: (-6 - 8 - 3 - 12 - 5 - 4) / 6 = -38/6
    contrast = Contrast.from_matrix(Scores(SUMS, TOKENS), "per_response")
    estimate = mutual_information(contrast, "club")
    assert estimate.value == pytest.approx(-7 / 3 + 38 / 6)
    assert (estimate.unit, estimate.form) == ("nats per response", "club")
    assert mutual_information(contrast, "fidelity").value == pytest.approx(-7 / 3)


def test_per_token_by_hand():
    # matched: -1/1, -2/2, -4/4; mismatched: -6/2, -8/4, -3/1, -12/4, -5/1, -4/2, in all -18
    contrast = Contrast.from_matrix(Scores(SUMS, TOKENS), "per_token")
    estimate = mutual_information(contrast, "club")
    assert estimate.value == pytest.approx(-1 + 18 / 6)
    assert estimate.unit == "nats per token"
    assert mutual_information(contrast, "fidelity").value == pytest.approx(-1)


def test_sampled_pairs_by_hand():
    pairs = np.array([[0, 1], [2, 0]])
    positive, negative = (
        Scores(SUMS.diagonal(), TOKENS),
        Scores(np.array([-6.0, -5.0]), np.array([2, 1])),
    )
    contrast = Contrast.from_pairs(positive, negative, pairs, "per_token")
    assert mutual_information(contrast, "club").value == pytest.approx(-1 + (3 + 5) / 2)


@given(square_matrices)
def test_all_pairs_by_loops(matrix):
    mismatched = [matrix[i, j] for i in range(len(matrix)) for j in range(len(matrix)) if i != j]
    assert club(matrix) == pytest.approx(np.mean(matrix.diagonal()) - np.mean(mismatched), abs=1e-9)


@given(square_matrices, st.randoms(use_true_random=False))
def test_order_of_examples_does_not_matter(matrix, random):
    order = random.sample(range(len(matrix)), len(matrix))
    assert club(matrix[np.ix_(order, order)]) == pytest.approx(club(matrix), abs=1e-9)


@given(square_matrices, st.floats(-20, 20))
def test_a_constant_changes_nothing(matrix, constant):
    assert club(matrix + constant) == pytest.approx(club(matrix), abs=1e-9)


@given(square_matrices)
def test_the_papers_form_over_all_pairs_is_smaller_by_the_matched_share(matrix):
    count = len(matrix)
    over_all = np.mean(matrix.diagonal()) - np.mean(matrix)
    assert over_all == pytest.approx(club(matrix) * (count - 1) / count, abs=1e-9)


def test_gaussian_matches_its_closed_form_and_bounds_the_truth():
    # X, Y standard normal with correlation rho: I = -ln(1 - rho^2) / 2. With the true conditional
    # N(rho x, 1 - rho^2) the mean squared residual is 1 - rho^2 when matched and 1 + rho^2 when
    # not, so CLUB = rho^2 / (1 - rho^2).
    rho, count = 0.8, 1500
    variance = 1 - rho**2
    rng = np.random.default_rng(7)
    x = rng.standard_normal(count)
    y = rho * x + np.sqrt(variance) * rng.standard_normal(count)
    value = club(
        -0.5 * (y[None, :] - rho * x[:, None]) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    )
    assert value == pytest.approx(rho**2 / variance, rel=0.1)
    assert value > -0.5 * np.log(variance)


def test_independent_responses_have_no_information():
    assert club(np.tile([-1.0, -2.5, -4.0], (3, 1))) == pytest.approx(
        0.0
    )  # log q(y | x) is the same for each x


def test_unusable_shapes_are_refused():
    with pytest.raises(DataError, match=r"accepted is \(N, N\)"):
        contrast_of(np.zeros((2, 3)))
    with pytest.raises(DataError, match="at least one example"):
        contrast_of(np.zeros((0, 0)))
    with pytest.raises(DataError, match="CLUB needs mismatched pairs"):
        club(np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 0]], "matched pair"),
        ([[0, 3]], "outside 0 to 1"),
        ([[0, 1], [1, 0]], r"accepted is \(1, 2\)"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs, message):
    with pytest.raises(DataError, match=message):
        Contrast(np.zeros(2), np.zeros(1), np.array(pairs), np.ones(2), "per_token")


def test_a_response_has_one_number_of_tokens():
    matched, mismatched = Scores(np.zeros(2), np.array([1, 2])), Scores(np.zeros(1), np.array([1]))
    with pytest.raises(DataError, match="other numbers of tokens"):
        Contrast.from_pairs(matched, mismatched, np.array([[0, 1]]), "per_token")


@pytest.mark.parametrize(
    ("sums", "tokens", "message"),
    [
        ([-1.0, -np.inf], [1, 1], r"index \(1,\) is -inf.*1 of 2"),
        ([np.nan], [1], "finite number"),
        ([-1.0], [0], "at least 1"),
        ([-1.0, -1.0], [1, 1, 1], "one count per response"),
    ],
)
def test_unusable_log_probabilities_are_refused(sums, tokens, message):
    with pytest.raises(DataError, match=message):
        checked(Scores(np.array(sums), np.array(tokens)))


def test_unknown_names_are_refused():
    contrast = Contrast.from_matrix(Scores(SUMS, TOKENS), "per_token")
    with pytest.raises(RecipeError, match="accepted are 'calibrated'"):
        mutual_information(contrast, "mine")
    with pytest.raises(RecipeError, match="'per_token'"):
        Contrast.from_matrix(Scores(SUMS, TOKENS), "per_word")
