"""What was found, in words for a reader who has never heard of R-EMID."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from coevolve.remid.table import Exact

OTHER = MappingProxyType(
    {
        "user": "other users",
        "character": "other characters",
        "dialogue": "other kinds of dialogue",
        "all": "everything changed at once",
    }
)
"""Shift -> what is other than in distribution."""
NO_INTERVAL = "no interval in this file (coevolve remid gives one)"


@dataclass(frozen=True)
class Loss:
    """An R-EMID with its interval and, where it is known, its true value; all in the results' unit.

    Attributes:
        shift: a key of `OTHER`; None for the mean over all shifted subsets.
        low, high: ends of the interval; None where the results have none.
    """

    shift: str | None
    value: float
    low: float | None = None
    high: float | None = None
    exact: float | None = None

    @property
    def interval(self) -> str:
        """`-0.100 to +0.300`, or why there is none."""
        return NO_INTERVAL if self.low is None else f"{self.low:+z.3f} to {self.high:+z.3f}"

    @property
    def certain(self) -> bool:
        """Whether chance alone does not explain a loss: the whole interval is above 0."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Card:
    """What the first screen says of a model: what it loses, and what it had to lose."""

    model: str
    average: Loss
    usual: str
    meaning: str
    blame: str


def losses(remid: Mapping[str, Any], model: str, exact: Exact) -> list[Loss]:
    """A model's R-EMID per shift, and over all shifted subsets last."""
    measured = [
        _loss(remid, shift, found[model], exact, model)
        for shift, found in remid["by_shift"].items()
    ]
    return (
        [*measured, _loss(remid, None, remid["average"][model], exact, model)] if measured else []
    )


def cards(remid: Mapping[str, Any], exact: Exact) -> list[Card]:
    """One per model, the largest loss first; empty where there is no shifted subset."""
    found = {model: losses(remid, model, exact) for model in remid["models"]}
    listed = [
        Card(
            model, of_model[-1], _usual(remid, model), _meaning(of_model[-1]), _blame(of_model[:-1])
        )
        for model, of_model in found.items()
        if of_model
    ]
    return sorted(listed, key=lambda card: -card.average.value)


def judged(remid: Mapping[str, Any]) -> str:
    """How many models, on how many dialogues."""
    usual = sum(subset["examples"] for subset in remid["subsets"] if subset["shift"] is None)
    shifted = sum(subset["examples"] for subset in remid["subsets"] if subset["shift"] is not None)
    count = len(remid["models"])
    models = f"{count} role-playing models" if count > 1 else "One role-playing model"
    return f"{models}, on {usual:,} dialogues of the usual kind and {shifted:,} where something is different"


def scale(remid: Mapping[str, Any]) -> str | None:
    """What a loss can be compared with: what the golden responses say of their dialogues, by the
    same measure.
    """
    usual = next(
        (subset for subset in remid["subsets"] if subset["shift"] is None and subset["golden"]),
        None,
    )
    if usual is None:
        return None
    return (
        "For scale: by the same measure the reference (golden) responses to the usual dialogues say "
        f"{usual['golden']['mutual_information']:.3f} {remid['unit']} of what they answer."
    )


def size_warning(remid: Mapping[str, Any], found: Sequence[Card]) -> str | None:
    """Why exact values lie outside the intervals, where they do."""
    averages = [card.average for card in found]
    outside = [
        x for x in averages if None not in (x.exact, x.low) and not x.low <= x.exact <= x.high
    ]
    if not outside:
        return None
    return (
        f"{len(outside)} of {len(averages)} exact values lie outside their intervals: this measure "
        f"({measure_name(remid)}) makes losses look larger or smaller than they are. Read the order, not the size."
    )


def measure_name(remid: Mapping[str, Any]) -> str:
    """`CLUB per token`."""
    form = remid["form"].upper() if remid["form"] == "club" else remid["form"].replace("_", " ")
    return f"{form} {remid['normalisation'].replace('_', ' ')}"


def _loss(
    remid: Mapping[str, Any],
    shift: str | None,
    numbers: Mapping[str, Any],
    exact: Exact,
    model: str,
) -> Loss:
    rows = [
        subset["row"]
        for subset in remid["subsets"]
        if subset["shift"] is not None
        and not subset.get("reason")
        and shift in (None, subset["shift"])
    ]
    known = [exact.get((model, row)) for row in rows]
    mean = None if None in known else sum(known) / len(known)
    return Loss(shift, numbers["remid"], numbers.get("remid_low"), numbers.get("remid_high"), mean)


def _usual(remid: Mapping[str, Any], model: str) -> str:
    """Its fit in distribution, for a model that fits nothing has nothing to lose."""
    remi = next(
        subset["models"][model]["remi"] for subset in remid["subsets"] if subset["shift"] is None
    )
    return f"On the usual dialogues it stands at {remi:+z.3f} against the reference responses."


def _meaning(average: Loss) -> str:
    if average.low is None:
        way = "less well" if average.value > 0 else "no worse"
        return f"By this estimate its responses fit {way} when things change."
    if average.low > 0:
        return "Its responses fit less well when things change, by more than chance explains."
    if average.high < 0:
        return "Its responses fit better, not worse, when things change."
    return "Nothing lost that chance would not explain: the interval includes 0."


def _blame(shifts: Sequence[Loss]) -> str:
    single = [loss for loss in shifts if loss.shift != "all"]
    if not single:
        return "Only shifts of everything at once were measured, so none can be singled out."
    worst = max(single, key=lambda loss: loss.value)
    place = f"{OTHER[worst.shift]} ({worst.value:+z.3f})"
    if len(single) == 1:
        return f"The only single shift that was measured: {place}."
    if worst.value <= 0:
        return "No single shift costs anything."
    if worst.certain or worst.low is None:
        return f"Most to blame: {place}."
    return f"No single shift stands out from chance; the largest is {place}."
