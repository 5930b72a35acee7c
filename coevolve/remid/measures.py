"""What can be measured of scores: a form of mutual information in a normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from coevolve.information.estimate import FORMS, check_form
from coevolve.information.log_probs import UNITS, Normalisation, check_normalisation

if TYPE_CHECKING:
    from coevolve.remid.score import ScoredSubset


@dataclass(frozen=True)
class Measure:
    """A key of `coevolve.information.estimate.FORMS`, and what log-probabilities are divided by."""

    form: str
    normalisation: Normalisation = "per_response"

    def __post_init__(self) -> None:
        check_form(self.form)
        check_normalisation(self.normalisation)

    @classmethod
    def parse(cls, text: str) -> "Measure":
        """Of FORM[:NORMALISATION], where a user's own form is `custom:FILE:NAME`."""
        parts = text.split(":")
        count = 3 if parts[0] == "custom" else 1
        normalisation = ":".join(parts[count:]) or "per_response"
        return cls(":".join(parts[:count]), cast(Normalisation, normalisation))  # checked there

    @property
    def unit(self) -> str:
        """`nats per token` or `nats per response`."""
        return UNITS[self.normalisation]

    @property
    def of_each_response(self) -> bool:
        """Whether it averages over other contexts response by response, and depends on their
        number.
        """
        return FORMS[self.form].needs == "mismatched of each response"

    def limit(self, contexts: int) -> int | None:
        """So many other contexts of each response, or None where their number does not matter."""
        return contexts if self.of_each_response else None


PUBLISHED = Measure("club", "per_token")
RECOMMENDED = Measure("calibrated", "per_response")
LEAST_CONTEXTS = 32
"""Other contexts in which each response must be scored for `calibrated` to be the default."""


def default_measures(scored: "Sequence[ScoredSubset]") -> tuple[Measure, ...]:
    """What is measured unless something else is asked for, the main one first: `calibrated` per
    response with the published CLUB per token beside it, where each response was scored in 32 other
    contexts or in all there are; else the published one alone, which is all that a sample of pairs
    allows.
    """
    enough = all(x.contexts >= min(LEAST_CONTEXTS, len(x.subset.examples) - 1) for x in scored)
    return (RECOMMENDED, PUBLISHED) if enough else (PUBLISHED,)
