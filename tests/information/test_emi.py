"""EMI and EMID against arrays worked out by hand, and their identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coevolve.errors import DataError
from coevolve.information.emi import emi, emid
from coevolve.information.estimate import Contrast, Estimate
from coevolve.scoring.scores import Scores


def contrast(sums, tokens=1, normalisation="per_response"):
    return Contrast.from_matrix(Scores(np.array(sums, dtype=float), np.array(tokens)), normalisation)


matrices = arrays(np.float64, (4, 4), elements=st.floats(-50, 0, width=32))


def test_emi_by_hand():
    golden = contrast([[-1, -5], [-7, -3]])  # -2 - (-6) = 4
    model = contrast([[-2, -3], [-4, -4]])  # -3 - (-3.5) = 0.5
    assert emi(model, golden).value == pytest.approx(0.5 - 4)
    assert emi(model, golden).unit == "nats per response"


def test_emi_per_token_by_hand():
    golden = contrast([[-1, -5], [-7, -3]], tokens=[1, 2], normalisation="per_token")  # -1.25 - (-4.75)
    model = contrast([[-2, -3], [-4, -4]], tokens=[2, 4], normalisation="per_token")  # -1 - (-1.375)
    assert emi(model, golden).value == pytest.approx(0.375 - 3.5)


def test_emid_by_hand():
    p, q = (Estimate(value, "nats per token", "club") for value in (-0.5, -2.25))
    assert emid(p, q) == Estimate(1.75, "nats per token", "club")


@given(matrices)
def test_emi_of_golden_responses_is_zero(matrix):
    assert emi(contrast(matrix), contrast(matrix)).value == 0.0


@given(matrices, matrices)
def test_emi_is_antisymmetric_in_model_and_golden(a, b):
    assert emi(contrast(a), contrast(b)).value == -emi(contrast(b), contrast(a)).value


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_emid_is_antisymmetric(p, q):
    p, q = Estimate(p, "nats per token", "club"), Estimate(q, "nats per token", "club")
    assert emid(p, q).value == -emid(q, p).value


def test_unlike_contrasts_are_refused():
    golden = contrast([[-1, -5], [-7, -3]])
    with pytest.raises(DataError, match="normalise both alike"):
        emi(contrast([[-1, -5], [-7, -3]], normalisation="per_token"), golden)
    with pytest.raises(DataError, match="3 responses, golden 2"):
        emi(contrast(np.zeros((3, 3))), golden)
    other_pairs = Contrast(golden.positive, golden.negative, golden.pairs[::-1], "per_response")
    with pytest.raises(DataError, match="same"):
        emi(other_pairs, golden)


def test_unlike_estimates_are_refused():
    with pytest.raises(DataError, match="estimate both alike"):
        emid(Estimate(1.0, "nats per token", "club"), Estimate(1.0, "nats per response", "club"))
