"""Estimates of mutual information by name: what goes in and comes out, and which there are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from coevolve.errors import DataError
from coevolve.information import density_ratio
from coevolve.information.club import club, fidelity
from coevolve.information.contrast import Contrast
from coevolve.information.influence import Influence
from coevolve.information.marginal import difference_of_entropies
from coevolve.registry import Registry, users_code


@dataclass(frozen=True)
class Estimate:
    """A number that says what it is: `value` in `unit`, by the key `form` of `FORMS`.

    `influence` is what it owes to each example, and `reach` what one more may add: as
    much as responses say on average, of a difference the more telling ones; `at_floor` whether the
    fit of `calibrated` ended at its lowest temperature, and the value could be higher.
    """

    value: float
    unit: str
    form: str
    influence: Influence
    reach: float
    at_floor: bool = False


Needs = Literal["matched", "mismatched", "mismatched of each response", "marginal"]


@dataclass(frozen=True)
class Form:
    """An estimator of mutual information.

    Attributes:
        estimate: contrast -> (value, influence), and whether that is at a floor where there is one.
        needs: besides the matched pairs, what its contrast must hold.
        bias: where its value lies, as a table's legend says it: "it is ...".
        off: whether its values, and so the losses by it, are known to be off by a factor.
    """

    estimate: Callable[[Contrast], tuple[float, Influence] | tuple[float, Influence, bool]]
    needs: Needs
    bias: str
    off: bool = True


def _of_user(function: Callable[..., tuple[float, Influence]], where: str) -> Form:
    def estimate(contrast: Contrast) -> tuple[float, Influence]:
        with users_code(where, DataError):
            found = function(contrast=contrast)
            value, influence = found if isinstance(found, tuple) and len(found) == 2 else (None, 0)
        if not (isinstance(value, float | int) and math.isfinite(value)) or not (
            isinstance(influence, Influence) and influence.matched.shape == contrast.matched.shape
        ):
            raise DataError(f"{where} gave {repr(found)[:200]}; accepted is {FORMS.accepted}.")
        return float(value), influence

    needs: Any = getattr(function, "needs", "mismatched of each response")
    bias = getattr(function, "bias", "a measure of the user's own")
    return Form(estimate, needs, bias, off=getattr(function, "off", False))


FORMS: Registry[Form] = Registry(
    "form",
    accepted=(
        "a function (contrast) that returns (value, influence): a finite number and a "
        "coevolve.information.influence.Influence over the contrast's examples"
    ),
    given=("contrast",),
    adopt=_of_user,
)
"""Estimators of mutual information; a user's own may have attributes `needs`, `bias`, `off`."""


def _terms(
    name: str, terms: Callable[[Contrast], density_ratio.Terms], bias: str, off: bool = True
) -> None:
    def estimate(contrast: Contrast) -> tuple[float, Influence, bool]:
        found = terms(contrast)
        return *found.estimate(contrast), found.at_floor

    FORMS.register(name)(Form(estimate, "mismatched of each response", bias, off))


_LOWER = "a lower bound for any q, at most log K + 0.58"
_terms("calibrated", density_ratio.calibrated, _LOWER, off=False)
_terms("barber_agakov", density_ratio.barber_agakov, _LOWER)
_terms("info_nce", density_ratio.info_nce, "a lower bound for any q, at most log(K + 1)")
_LARGE = "too large for the true q, without a ceiling"
_terms("leave_one_out", density_ratio.leave_one_out, _LARGE)
_SIDES = "on either side of the truth, without a ceiling"
FORMS.register("difference_of_entropies")(Form(difference_of_entropies, "marginal", _SIDES))
_FAR = "far too large for the true q, on either side otherwise, without a ceiling"
FORMS.register("club")(Form(club, "mismatched", _FAR))
_NONE = "no information: the control without negatives"
FORMS.register("fidelity")(Form(fidelity, "matched", _NONE))


def mutual_information(contrast: Contrast, form: str = "club") -> Estimate:
    """Mutual information of contexts and responses by the named form."""
    value, influence, *at_floor = FORMS.get(form).estimate(contrast)
    return Estimate(value, contrast.unit, form, influence, abs(value), *at_floor)


def check_form(form: str) -> None:
    """Raise RecipeError unless `form` names an estimator."""
    FORMS.get(form)
