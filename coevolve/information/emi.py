"""Effective mutual information (EMI) of a model and its difference between two distributions (EMID).

Oh et al.: Understanding Multimodal LLMs Under Distribution Shifts: An Information-Theoretic Approach, ICML 2025.
With a reasoning r in the condition (Li et al., 2025, arXiv 2512.17270) the same definitions are R-EMI and R-EMID;
which one a number is depends only on whether the log-probabilities were computed with r.
"""

import numpy as np

from coevolve.errors import DataError
from coevolve.information.estimate import Contrast, Estimate, mutual_information


def emi(model: Contrast, golden: Contrast, form: str = "club") -> Estimate:
    """EMI: mutual information with the model's responses minus that with the golden ones.

    Higher is better; typically below 0, and 0 for the golden responses themselves.

    Args:
        model: log-probabilities of the model's responses.
        golden: log-probabilities of the golden responses, in the same contexts and over the same (i, j) pairs,
            so that easy or hard contexts among the sampled pairs weigh on both alike.
        form: the estimator of mutual information.

    Raises:
        DataError: the two differ in examples, pairs or normalisation.
        RecipeError: an unknown form.
    """
    if model.normalisation != golden.normalisation:
        raise DataError(
            f"the model's log-probabilities are {model.normalisation}, the golden ones {golden.normalisation}; "
            "normalise both alike."
        )
    if model.positive.shape != golden.positive.shape:
        raise DataError(
            f"the model has {model.positive.size} responses, golden {golden.positive.size}; give one of each for "
            "every example."
        )
    if not np.array_equal(model.pairs, golden.pairs):
        raise DataError("the model's and the golden mismatched pairs differ; score both over the same (i, j) pairs.")
    information = mutual_information(model, form)
    return Estimate(information.value - mutual_information(golden, form).value, information.unit, information.form)


def emid(p: Estimate, q: Estimate) -> Estimate:
    """EMID(P, Q) = EMI(P) - EMI(Q): what a model loses from in-distribution P to shifted Q. Lower is better.

    Args:
        p: EMI of the model in distribution.
        q: EMI of the same model on the shifted distribution.

    Raises:
        DataError: the two are of different units or forms.
    """
    if (p.unit, p.form) != (q.unit, q.form):
        raise DataError(f"EMI of P is {p.form} in {p.unit}, of Q {q.form} in {q.unit}; estimate both alike.")
    return Estimate(p.value - q.value, p.unit, p.form)
