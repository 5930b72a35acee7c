"""Effective mutual information (EMI) of a model and its difference between two distributions
(EMID).

Oh et al.: Understanding Multimodal LLMs Under Distribution Shifts: An Information-Theoretic
Approach, ICML 2025. With a reasoning r in the condition (Li et al., 2025, arXiv 2512.17270) the
same definitions are R-EMI and R-EMID; which one a number is depends only on whether the
log-probabilities were computed with r.

What is estimated. By definition EMI compares I(X; Y_theta), what the *model's* responses say about
the context, with the golden I(X; Y). An estimator q trained on golden responses can only see what
it can read: a model that says the same in another code (the words permuted, another table) loses no
information and is scored as if it did. With such a q, EMI by any form measures fidelity to golden
responses; score the model's responses by a q trained on *its* responses to measure its own
information.
"""

from dataclasses import dataclass

import numpy as np

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.estimate import Estimate, mutual_information
from coevolve.information.uncertainty import standard_error


def emi(model: Contrast, golden: Contrast, form: str = "club") -> Estimate:
    """EMI: mutual information with the model's responses minus that with the golden ones, in the
    same contexts and over the same (i, j) pairs.

    Higher is better; typically below 0, and 0 for the golden responses themselves. What the two
    share (easy or hard contexts among the pairs) cancels in its influence, and so in its standard
    error.
    """
    if model.examples != golden.examples:
        found = f"the model has {model.examples} responses, golden {golden.examples}"
        raise DataError(f"{found}; give one of each for every example.")
    if not np.array_equal(model.pairs, golden.pairs):
        raise DataError("the model's and the golden mismatched pairs differ; score both alike.")
    return difference(mutual_information(model, form), mutual_information(golden, form))


def difference(model: Estimate, golden: Estimate) -> Estimate:
    """`model` minus `golden`, both over the same examples and pairs."""
    if (model.unit, model.form) != (golden.unit, golden.form):
        found = (
            f"the model's is {model.form} in {model.unit}, golden {golden.form} in {golden.unit}"
        )
        raise DataError(f"{found}; estimate both alike.")
    influence = model.influence - golden.influence
    reach = max(model.reach, golden.reach)
    return Estimate(model.value - golden.value, model.unit, model.form, influence, reach)


@dataclass(frozen=True)
class Loss:
    """A difference of two estimates over different examples; their errors add."""

    value: float
    unit: str
    form: str
    p: Estimate
    q: Estimate

    @property
    def standard_error(self) -> float:
        """sqrt(error(P)^2 + error(Q)^2)."""
        return float(np.hypot(standard_error(self.p.influence), standard_error(self.q.influence)))


def emid(p: Estimate, q: Estimate) -> Loss:
    """EMID = EMI(P) - EMI(Q): what a model loses from in-distribution P to shifted Q. Lower is
    better.
    """
    if (p.unit, p.form) != (q.unit, q.form):
        raise DataError(f"EMI of P is {p.form} in {p.unit}, of Q {q.form} in {q.unit}.")
    return Loss(p.value - q.value, p.unit, p.form, p, q)
