"""What was found, in words for a reader who has never heard of R-EMID."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coevolve.data.corpus import Shift
from coevolve.remid.results import Exact, Losses, RemidResults, mean_exact

OTHER: Mapping[str, str] = {
    "user": "other users",
    "character": "other characters",
    "dialogue": "other kinds of dialogue",
    "all": "everything changed at once",
}
"""Shift -> what is other than in distribution."""
NO_INTERVAL = "no interval in this file (coevolve remid gives one)"


@dataclass(frozen=True)
class Loss:
    """An R-EMID, its interval and true value if known; of a shift, or None for the mean of all."""

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
    def name(self) -> str:
        """What is other than in distribution."""
        return OTHER[self.shift] if self.shift else "mean of all"

    @property
    def outside(self) -> bool:
        """Whether the true value is known and lies outside the interval."""
        if self.exact is None or self.low is None or self.high is None:
            return False
        return not self.low <= self.exact <= self.high

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


def losses(remid: RemidResults, model: str, exact: Exact) -> list[Loss]:
    """A model's R-EMID per shift, and over all shifted subsets last."""
    means: list[tuple[Shift | None, dict[str, Losses]]] = [*remid.by_shift.items()]
    means += [(None, remid.average)] if means else []
    listed = []
    for shift, of_models in means:
        one, truth = of_models[model], mean_exact(exact, model, remid.shifted(shift))
        listed.append(Loss(shift, one.remid or 0.0, one.remid_low, one.remid_high, truth))
    return listed


def cards(remid: RemidResults, exact: Exact) -> list[Card]:
    """One per model, the largest loss first; empty where there is no shifted subset."""
    listed = []
    for model in remid.models:
        of_shifts = losses(remid, model, exact)
        if of_shifts:
            average = of_shifts.pop()
            usual = _usual(remid, model)
            listed.append(Card(model, average, usual, _meaning(average), _blame(of_shifts)))
    return sorted(listed, key=lambda card: -card.average.value)


def judged(remid: RemidResults) -> str:
    """How many models, on how many dialogues."""
    usual, *shifted = (subset.examples for subset in remid.subsets)
    count = len(remid.models)
    models = f"{count} role-playing models" if count > 1 else "One role-playing model"
    dialogues = f"{usual:,} dialogues of the usual kind and {sum(shifted):,}"
    return f"{models}, on {dialogues} where something is different"


def scale(remid: RemidResults) -> str | None:
    """What a loss compares with: what golden responses say of their dialogues, so measured."""
    golden = remid.subsets[0].golden
    if golden is None:
        return None
    return (
        "For scale: by the same measure the reference (golden) responses to the usual dialogues "
        f"say {golden.mutual_information:.3f} {remid.unit} of what they answer."
    )


def size_warning(remid: RemidResults, shown: Sequence[Card]) -> str | None:
    """Why exact values lie outside the intervals, where they do."""
    outside = [card for card in shown if card.average.outside]
    if not outside:
        return None
    measure = f"{remid.form_name} {remid.normalisation.replace('_', ' ')}"
    return (
        f"{len(outside)} of {len(shown)} exact values lie outside their intervals: this measure "
        f"({measure}) makes losses look larger or smaller than they are. Read the order, not the "
        "size."
    )


def _usual(remid: RemidResults, model: str) -> str:
    """Its fit in distribution, for a model that fits nothing has nothing to lose."""
    usual = remid.subsets[0].models[model]
    remi = usual.remi if usual else 0.0
    return f"On the usual dialogues it stands at {remi:+z.3f} against the reference responses."


def _meaning(average: Loss) -> str:
    if average.low is None or average.high is None:
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
    said = f"{worst.name} ({worst.value:+z.3f})"
    if len(single) == 1:
        return f"The only single shift that was measured: {said}."
    if worst.value <= 0:
        return "No single shift costs anything."
    if worst.certain or worst.low is None:
        return f"Most to blame: {said}."
    return f"No single shift stands out from chance; the largest is {said}."
