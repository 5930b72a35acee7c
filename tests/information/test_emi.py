"""EMI and EMID against arrays worked out by hand, and their identities, whatever the form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.emi import emi, emid
from coevolve.information.estimate import FORMS
from coevolve.scoring.scores import Scores


def contrast(sums, tokens=1, normalisation="per_response"):
    sums = np.array(sums, dtype=float)
    return Contrast.from_matrix(Scores(sums, np.array(tokens)), normalisation, sums.mean(axis=0))


matrices = arrays(np.float64, (4, 4), elements=st.floats(-50, 0, width=32))


def test_emi_by_hand():
    golden = contrast([[-1, -5], [-7, -3]])  # -2 - (-6) = 4
    model = contrast([[-2, -3], [-4, -4]])  # -3 - (-3.5) = 0.5
    assert emi(model, golden).value == pytest.approx(0.5 - 4)
    assert emi(model, golden).unit == "nats per response"


def test_emi_per_token_by_hand():
    golden = contrast(
        [[-1, -5], [-7, -3]], tokens=[1, 2], normalisation="per_token"
    )  # -1.25 - (-4.75)
    model = contrast(
        [[-2, -3], [-4, -4]], tokens=[2, 4], normalisation="per_token"
    )  # -1 - (-1.375)
    assert emi(model, golden).value == pytest.approx(0.375 - 3.5)


def test_emid_by_hand():
    p = emi(contrast([[-2, -3], [-4, -4]]), contrast([[-1, -5], [-7, -3]]))  # 0.5 - 4
    q = emi(contrast([[-3, -3], [-3, -3]]), contrast([[-1, -5], [-7, -3]]))  # 0 - 4
    assert emid(p, q).value == pytest.approx(0.5)
    assert (emid(p, q).unit, emid(p, q).form) == ("nats per response", "club")


@pytest.mark.parametrize("form", list(FORMS))
@settings(max_examples=15)
@given(matrices)
def test_emi_of_golden_responses_is_zero_without_doubt(form, matrix):
    found = emi(contrast(matrix), contrast(matrix), form)
    assert found.value == 0.0
    assert not found.influence.of_examples().any()


@pytest.mark.parametrize("form", list(FORMS))
@settings(max_examples=15)
@given(matrices, matrices)
def test_emi_is_antisymmetric_in_model_and_golden(form, a, b):
    assert emi(contrast(a), contrast(b), form).value == -emi(contrast(b), contrast(a), form).value


@given(matrices, matrices)
def test_emid_is_antisymmetric_and_its_errors_add(a, b):
    p, q = emi(contrast(a), contrast(a + 1.0)), emi(contrast(b), contrast(a))
    assert emid(p, q).value == -emid(q, p).value
    assert emid(p, q).standard_error == pytest.approx(emid(q, p).standard_error)


def test_unlike_contrasts_are_refused():
    golden = contrast([[-1, -5], [-7, -3]])
    with pytest.raises(DataError, match="estimate both alike"):
        emi(contrast([[-1, -5], [-7, -3]], normalisation="per_token"), golden)
    with pytest.raises(DataError, match="3 responses, golden 2"):
        emi(contrast(np.zeros((3, 3))), golden)
    other = Contrast(
        golden.matched, golden.mismatched, golden.pairs[::-1], golden.tokens, "per_response"
    )
    with pytest.raises(DataError, match="score both alike"):
        emi(other, golden)


def test_unlike_estimates_are_refused():
    matrix = [[-1, -5], [-7, -3]]
    p = emi(contrast(matrix), contrast(matrix))
    with pytest.raises(DataError, match="EMI of P is club in"):
        emid(
            p,
            emi(
                contrast(matrix, normalisation="per_token"),
                contrast(matrix, normalisation="per_token"),
            ),
        )
    with pytest.raises(DataError, match="EMI of P is club in"):
        emid(p, emi(contrast(matrix), contrast(matrix), "info_nce"))
