"""What was found, in words for a reader who has never heard of R-EMID."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coevolve.data.corpus import Shift
from coevolve.remid.results import Exact, Losses, RemidResults, mean_exact
from coevolve.remid.table import MARK, small_subsets

OTHER: Mapping[str, str] = {
    "user": "other users",
    "character": "other characters",
    "dialogue": "other kinds of dialogue",
    "all": "everything changed at once",
}
"""Shift -> what is other than in distribution."""
NO_INTERVAL = "no interval in this file (coevolve remid gives one, of 8 examples or more)"


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


@dataclass(frozen=True)
class Card:
    """What the first screen says of a model: what it loses, and what it had to lose."""

    model: str
    average: Loss
    usual: str
    meaning: str
    blame: str
    caution: str | None


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
    few, listed = small_subsets(remid), []
    caution = f"Too few examples to say how sure it is in {', '.join(few)}." if few else None
    for model in remid.models:
        of_shifts = losses(remid, model, exact)
        if of_shifts:
            average = of_shifts[-1]
            usual = _usual(remid, model)
            meaning, blame = _meaning(remid, average), _blame(remid, model)
            listed.append(Card(model, average, usual, meaning, blame, caution))
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
    stands = f"{usual.remi if usual else 0.0:+z.3f} {remid.unit}"
    return f"On the usual dialogues it stands at {stands} against the reference responses."


def _meaning(remid: RemidResults, average: Loss) -> str:
    """Of the mean of all shifted subsets, by the interval that is shown."""
    if remid.off:
        return (
            f"{remid.form_name} exaggerates losses and finds some where there are none: it tells "
            "which model loses more, not whether one loses."
        )
    if remid.level is not None and average.low is None:
        return "There are too few examples to say whether its responses fit less well elsewhere."
    if average.low is None or average.high is None:
        way = "less well" if average.value > 0 else "no worse"
        return f"On average, by this estimate, its responses fit {way} when things change."
    if average.low > 0:
        return (
            "On average its responses fit less well when things change, by more than chance "
            "explains."
        )
    if average.high < 0:
        return "On average its responses fit better, not worse, when things change."
    return "On average nothing is lost that chance would not explain: the interval includes 0."


def _blame(remid: RemidResults, model: str) -> str:
    """Of the subsets in which one thing changed, by the marks of the table."""
    found: list[tuple[float, bool, str]] = []
    for subset in remid.shifted():
        numbers = subset.models[model]
        if subset.shift not in (None, "all") and numbers and numbers.remid is not None:
            told = remid.is_loss(numbers)
            value = f"{numbers.remid:+z.3f}{MARK * told} {remid.unit}"
            said = f"{OTHER[subset.shift]}, {subset.subset} ({value})"
            found.append((numbers.remid, told, said))
    if not found:
        return "Only shifts of everything at once were measured, so none can be singled out."
    largest, _, said = max(found)
    if len(found) == 1:
        return f"The only single shift that was measured: {said}."
    if losses_found := [one for one in found if one[1]]:
        *_, worst = max(losses_found)
        rest = len(losses_found) - 1
        more = f", and {rest} more with {MARK} below" if rest else ""
        return f"Most to blame: {worst}{more}."
    if largest <= 0:
        return "By this estimate no single shift costs anything."
    if remid.level is None or remid.off:
        return f"Most to blame, by this estimate: {said}."
    return (
        f"No single subset is told from chance by itself, corrected for their number; the largest "
        f"loss is {said}."
    )
