"""Estimates of mutual information by name: what goes in, what comes out, and which forms there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from coevolve.errors import RecipeError
from coevolve.information import density_ratio
from coevolve.information.club import club, fidelity
from coevolve.information.contrast import Contrast
from coevolve.information.influence import Influence
from coevolve.information.marginal import difference_of_entropies


@dataclass(frozen=True)
class Estimate:
    """A number that says what it is.

    Attributes:
        value: the estimate, in `unit`.
        unit: `nats per token` or `nats per response`.
        form: the name of the estimator, a key of `FORMS`.
        influence: what it owes to each example, for standard errors and bootstrap.
        at_floor: whether the fit of `calibrated` ended at its lowest temperature, and the value
            could be higher.
    """

    value: float
    unit: str
    form: str
    influence: Influence
    at_floor: bool = False


Needs = Literal["matched", "mismatched", "mismatched of each response", "marginal"]


@dataclass(frozen=True)
class Form:
    """An estimator of mutual information.

    Attributes:
        estimate: contrast -> (value, influence), and whether that is at a floor where there is one.
        needs: besides the matched pairs, what its contrast must hold.
        bias: where its value lies, as a table's legend says it: "it is ...".
    """

    estimate: Callable[[Contrast], tuple[float, Influence] | tuple[float, Influence, bool]]
    needs: Needs
    bias: str


def _of_terms(terms: Callable[[Contrast], density_ratio.Terms], bias: str) -> Form:
    def estimate(contrast: Contrast) -> tuple[float, Influence, bool]:
        found = terms(contrast)
        return *found.estimate(contrast), found.at_floor

    return Form(estimate, "mismatched of each response", bias)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "calibrated": _of_terms(
            density_ratio.calibrated, "a lower bound for any q, at most log K + 0.58"
        ),
        "barber_agakov": _of_terms(
            density_ratio.barber_agakov, "a lower bound for any q, at most log K + 0.58"
        ),
        "info_nce": _of_terms(
            density_ratio.info_nce, "a lower bound for any q, at most log(K + 1)"
        ),
        "leave_one_out": _of_terms(
            density_ratio.leave_one_out, "too large for the true q, without a ceiling"
        ),
        "difference_of_entropies": Form(
            difference_of_entropies, "marginal", "on either side of the truth, without a ceiling"
        ),
        "club": Form(
            club,
            "mismatched",
            "far too large for the true q, on either side otherwise, without a ceiling",
        ),
        "fidelity": Form(fidelity, "matched", "no information: the control without negatives"),
    }
)


def mutual_information(contrast: Contrast, form: str = "club") -> Estimate:
    """Mutual information of contexts and responses by the named form.

    Raises:
        RecipeError: an unknown form.
        DataError: the contrast lacks what the form needs.
    """
    check_form(form)
    value, influence, *at_floor = FORMS[form].estimate(contrast)
    return Estimate(value, contrast.unit, form, influence, *at_floor)


def check_form(form: str) -> None:
    """Raise RecipeError unless `form` names an estimator."""
    if form not in FORMS:
        raise RecipeError(f"form is {form!r}; accepted are {', '.join(map(repr, FORMS))}.")
