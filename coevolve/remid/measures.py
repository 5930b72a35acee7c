"""What can be measured of scores: a form of mutual information in a normalisation."""

from dataclasses import dataclass
from typing import cast

from coevolve.information.estimate import FORMS, check_form
from coevolve.information.log_probs import UNITS, Normalisation, check_normalisation


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
