"""What `coevolve remid` and `coevolve score` write: the schemas, by which files are written, read
and shown.

Numbers but perplexities, counts and probabilities are in the `unit` that stands beside them.
`_error` is a standard error, `_low` and `_high` are the ends of an interval: absent in files of
`coevolve.remid/1`; null in results of the public code's protocol, which has none, and of subsets of
so few examples that nothing can be said of it (`coevolve.information.uncertainty.LEAST`), as are
`chance_of_loss` and `holm_p`, which measures whose values are off by a factor have not either. In
files of `coevolve.remid/2` intervals and tests are from a bootstrap, and too narrow for small
subsets.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, JsonValue, model_validator

from coevolve.data.corpus import Shift
from coevolve.documents import Document, Part
from coevolve.errors import DataError
from coevolve.information.estimate import FORMS
from coevolve.scoring.reasoning import Reasoning, ReasoningKind

SIGNIFICANT = 0.01
"""Of a model with no losses one of a hundred has a star. At 0.05, where most models lose nothing,
more than one star in twenty stands on none (`tests/benchmarks/false_stars.py`).
"""
LARGEST = 1e300
"""Of a number: finite, with room for sums."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Probability = Annotated[float, Field(ge=0, le=1)]
Perplexity = Annotated[Number, Field(gt=0)]
Input = Literal["user", "character", "dialogue"]
Normalisation = Literal["per_token", "per_response"]
T = TypeVar("T")
OfInputs = Annotated[dict[Input, T], Field(min_length=3)]
"""Something of each kind of input."""
Row = Annotated[str, Field(description="`IDTest`, or split and subset tag: `OOD1Test/german`.")]
SampleId = Annotated[str, Field(description="Of the example.")]
Split = Annotated[str, Field(description="For example `OOD1Test`.")]
Tag = Annotated[str, Field(description="Its subset tag.")]
Examples = Annotated[Count, Field(description="How many there are.")]
Form = Annotated[str, Field(description="A key of `coevolve.information.estimate.FORMS`.")]
Unit = Annotated[str, Field(description="Of the numbers.")]
Divided = Annotated[Normalisation, Field(description="Per token, or per response.")]
RowShift = Annotated[Shift | None, Field(description="Null in distribution.")]
Exact = Mapping[tuple[str, str], float]
"""True values in the results' unit by (model, row): R-EMI for `IDTest`, else R-EMID."""


def form_name(form: str) -> str:
    """A form in words: `CLUB`, `difference of entropies`."""
    return form.upper() if form == "club" else form.replace("_", " ")


class Information(Part):
    """Mutual information, and the mean log-probabilities of which it is made."""

    mutual_information: Number = Field(description="Of responses and what they answer.")
    mutual_information_error: Number | None = Field(default=None, description="Its standard error.")
    positive: Number = Field(description="Mean log-probability of matched pairs.")
    negative: Number = Field(description="Mean log-probability of mismatched pairs.")
    at_floor: bool = False
    """Whether the fit of `calibrated` ended at its lowest temperature: information is too low."""
    readers: list[str] | None = None
    """Who read the responses, where it may be another than the estimator; two read half each."""


class Fitted(Part):
    """What a reader of responses was fitted to; two where each reads what the other
    was fitted to.
    """

    model: str | None = Field(description="Whose responses; null for golden ones.")
    contexts: Literal["IDTrain", "halves of the test contexts"] = Field(description="In which.")
    responses: list[Count] = Field(description="That each was trained on.")
    held_out: list[Count] = Field(description="Others, by which it was told when to stop.")
    epochs: list[Count] = Field(description="Passes; 0 is the estimator as it was.")


class FittedReaders(Part):
    """All readers that were fitted."""

    settings: dict[str, JsonValue] = Field(description="Of the optimizer, and of stopping.")
    readers: list[Fitted] = Field(description="That of golden responses first.")


class Golden(Information):
    """The golden responses of a subset."""

    perplexity: Perplexity | None = Field(default=None, description="Beside the main measure only.")
    tokens: Count | None = Field(default=None, description="In all; beside the main measure only.")


class Losses(Part):
    """A model's R-EMI, and what is lost of it."""

    remi: Number = Field(description="R-EMI: mutual information less that of golden responses.")
    remid: Number | None = Field(description="R-EMI in distribution less R-EMI here; null there.")
    remid_error: Number | None = Field(default=None, description="Its standard error.")
    remid_low: Number | None = Field(default=None, description="Lower end of its interval.")
    remid_high: Number | None = Field(default=None, description="Upper end of its interval.")
    chance_of_loss: Probability | None = Field(default=None, description="That it is above 0.")

    @model_validator(mode="after")
    def _interval_has_two_ends(self) -> "Losses":
        if (self.remid_low is None) != (self.remid_high is None):
            raise ValueError("an interval has one end only")
        return self


class OfModel(Losses, Information):
    """A model on a subset."""

    remi_error: Number | None = Field(default=None, description="Standard error of R-EMI.")
    remi_low: Number | None = Field(default=None, description="Lower end of its interval.")
    remi_high: Number | None = Field(default=None, description="Upper end of its interval.")
    holm_p: Probability | None = Field(default=None, description="Of no loss, adjusted (Holm).")
    remi_by_estimator: Number | None = None
    """R-EMI as the estimator alone reads it, where it may be another that reads."""
    beyond_golden: Number | None = None
    """`remi` less that: information about the context that golden responses do not have."""


class SubsetNumbers(Part):
    """A subset by one measure."""

    row: Row
    golden: Golden | None = Field(default=None, description="Null where there are no numbers.")
    models: dict[str, OfModel | None] = Field(description="By name; null without numbers.")


class SubsetResults(SubsetNumbers):
    """A subset with all that is known of it."""

    split: Split
    subset: Tag
    shift: RowShift
    examples: Examples
    negatives: Count = Field(default=0, description="Mismatched pairs that were used.")
    contexts: Count | None = Field(default=None, description="Of each response, beside its own.")
    reason: str | None = Field(default=None, description="Null, or why there are no numbers.")


class Comparison(Part):
    """Of two models a and b, paired over examples: a's number less b's."""

    models: list[str] = Field(description="a and b.")
    measure: Literal["remi", "remid"] = Field(description="R-EMI in distribution, or mean R-EMID.")
    value: Number = Field(description="The difference.")
    error: Number = Field(description="Its standard error.")
    low: Number = Field(description="Lower end of its interval.")
    high: Number = Field(description="Upper end of its interval.")
    chance_above_0: Probability = Field(description="That it is above 0.")


class Measured(Part):
    """Everything by one measure."""

    form: Form
    normalisation: Divided
    unit: Unit
    bias: str = Field(default="", description="What is known of the form's errors, in words.")
    by_shift: dict[Shift, dict[str, Losses]] = Field(description="Means over its subsets.")
    average: dict[str, Losses] = Field(description="Over shifted subsets, each weighing the same.")
    comparisons: list[Comparison] = Field(default_factory=list, description="Of every two models.")

    @property
    def form_name(self) -> str:
        """The form in words: `CLUB`, `difference of entropies`."""
        return form_name(self.form)

    @property
    def off(self) -> bool:
        """Whether its values are known to be off by a factor, so that it tells no loss."""
        return self.form in FORMS and FORMS[self.form].off

    def is_loss(self, numbers: Losses | None) -> bool:
        """Whether a loss is told from chance: what `*` says in a table, and verdicts go by."""
        if self.off or not isinstance(numbers, OfModel) or numbers.holm_p is None:
            return False
        return (numbers.remid or 0.0) > 0 and numbers.holm_p < SIGNIFICANT


class Beside(Measured):
    """A further measure, beside the main one."""

    subsets: list[SubsetNumbers] = Field(description="Those with numbers.")


class ChosenReasoning(Part):
    """How the reasonings were chosen."""

    kind: ReasoningKind = Field(description="As in `coevolve.scoring.reasoning.Reasoning`.")
    samples: Count | None = Field(default=None, description="For each context, if drawn.")
    seed: int | None = Field(default=None, description="Of what is drawn.")
    weight: Probability | None = Field(default=None, description="Of reasoning, in a mixture.")
    sha256: str | None = Field(default=None, description="Of the file that gave them.")

    @model_validator(mode="after")
    def _drawn_ones_have_a_seed(self) -> "ChosenReasoning":
        if self.kind in ("sampled", "marginal") and None in (self.samples, self.seed):
            raise ValueError(f"{self.kind} needs samples and seed")
        if self.kind == "given" and self.sha256 is None:
            raise ValueError("given needs sha256")
        if (self.kind == "mixture") != (self.weight is not None):
            raise ValueError("a mixture, and nothing else, needs a weight")
        return self

    @classmethod
    def of(cls, form: Reasoning) -> "ChosenReasoning":
        """What results say of a form."""
        return cls(**form.values())

    def form(self) -> Reasoning:
        """What `of` was given, without the texts."""
        samples, seed, weight = self.samples or 1, self.seed or 0, self.weight
        return Reasoning(self.kind, samples, seed, weight, sha256=self.sha256)


def names_of(reasoning: ChosenReasoning | None) -> tuple[str, str]:
    """(R-EMI, R-EMID), or without the R where no reasoning was shown."""
    without = reasoning is not None and reasoning.kind == "none"
    return ("EMI", "EMID") if without else ("R-EMI", "R-EMID")


class LeftOut(Part):
    """Of a row, examples that one model has not answered."""

    left_out: Count = Field(description="How many were left out.")
    of: Count = Field(description="How many there were.")


class Faults(Part):
    """The sample_IDs to which a model has no usable response."""

    missing: list[str] = Field(description="There is none.")
    empty: list[str] = Field(description="It is blank.")
    duplicated: list[str] = Field(description="There are several.")


class Unanswered(Part):
    """What was left out, for all models, because one has no usable response to it."""

    rows: dict[str, LeftOut] = Field(description="Those that are not whole.")
    models: dict[str, Faults] = Field(description="By name.")


class Evaluation(Document):
    """What the files of an evaluation have in common."""

    marks: ClassVar = ("schema",)
    models: Annotated[list[str], Field(min_length=1)] = Field(description="In the order given.")
    seed: int = Field(description="Of the choice of pairs and of all that is drawn.")
    estimator: str | None = Field(default=None, description="Its directory.")
    estimator_identity: str | None = Field(default=None, description="`identity` of its manifest.")
    data_fingerprint: str | None = Field(default=None, description="Of the whole corpus.")
    unanswered: Unanswered | None = Field(default=None, description="What was left out.")

    def left_out(self, row: str) -> int:
        """How many examples of a row were left out."""
        of_row = self.unanswered.rows.get(row) if self.unanswered else None
        return of_row.left_out if of_row else 0

    def label(self, row: str, name: str | None = None, reason: str | None = None) -> str:
        """The row's name, and in brackets what was left out of it, or why it has no numbers."""
        of_row = self.unanswered.rows.get(row) if self.unanswered else None
        note = f"{of_row.left_out} of {of_row.of} left out" if of_row else None
        notes = "; ".join(filter(None, (note, reason)))
        return (name or row) + (f" ({notes})" if notes else "")

    def unanswered_line(self) -> str | None:
        """Why examples were left out, model by model; None where none was."""
        if self.unanswered is None:
            return None
        faults = {
            name: [f"{len(ids)} {fault}" for fault, ids in of_model.values().items() if ids]
            for name, of_model in self.unanswered.models.items()
        }
        listed = "; ".join(f"{name} has {', '.join(x)}" for name, x in faults.items() if x)
        return f"Left out for all models are examples that one has no usable response to: {listed}."


class RemidResults(Evaluation, Measured):
    """R-EMI of each subset and R-EMID of each shifted one, by the main measure and those beside."""

    schema_id: Literal["coevolve.remid/3", "coevolve.remid/2", "coevolve.remid/1"] = Field(
        alias="schema"
    )
    """What the file is, and of which version."""
    negatives: (
        Count | Literal["all"] | Annotated[dict[Literal["per_context"], Count], Field(min_length=1)]
    )
    """Mismatched pairs: so many of a subset, all, or so many of each context."""
    reasoning: ChosenReasoning | None = Field(default=None, description="How it was chosen.")
    protocol: dict[str, JsonValue] | None = None
    """Of the public code, where it was asked for: how many windows were scored, cut, and empty."""
    fitted: FittedReaders | None = Field(default=None, description="Readers, where any were.")
    level: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of the intervals; absent where there are none."""
    replicates: Count | None = Field(default=None, description="Of the bootstrap, in older files.")
    subsets: Annotated[list[SubsetResults], Field(min_length=1)]
    """The one in distribution first."""
    beside: list[Beside] = Field(default_factory=list, description="Others of the same scores.")

    @property
    def names(self) -> tuple[str, str]:
        """Those of `names_of`."""
        return names_of(self.reasoning)

    def shifted(self, shift: Shift | None = None) -> list[SubsetResults]:
        """The shifted subsets with numbers, or those of one shift."""
        found = [one for one in self.subsets if one.shift is not None and not one.reason]
        return [one for one in found if shift in (None, one.shift)]

    def told_losses(self) -> set[tuple[str, str]]:
        """(model, row) of the losses that are told from chance."""
        return {
            (name, subset.row)
            for subset in self.shifted()
            for name, numbers in subset.models.items()
            if self.is_loss(numbers)
        }

    def require_pairs(self, what: str, pairs: Iterable[tuple[str, str]]) -> None:
        """Raise DataError unless each pair is a model and a row of these results."""
        rows = [subset.row for subset in self.subsets]
        for model, row in pairs:
            if model not in self.models or row not in rows:
                raise DataError(
                    f"{what} model {model!r} on {row!r}; accepted are the models "
                    f"{', '.join(self.models)} and the rows {', '.join(rows)}."
                )

    def by_measure(self) -> "list[RemidResults]":
        """The results of each measure in the layout of the main one's, which is the first."""
        views = [self]
        for measured in self.beside:
            numbers = {x.row: {"golden": x.golden, "models": x.models} for x in measured.subsets}
            subsets = [one.model_copy(update=numbers.get(one.row, {})) for one in self.subsets]
            own = {name: getattr(measured, name) for name in measured.model_fields_set}
            views.append(self.model_copy(update={**own, "subsets": subsets, "beside": []}))
        return views

    @model_validator(mode="after")
    def _fields_agree(self) -> "RemidResults":
        require_once("models", self.models)
        require_once("subsets", [subset.row for subset in self.subsets])
        first, *others = self.subsets
        if first.shift or first.reason or any(subset.shift is None for subset in others):
            raise ValueError("subsets: only the first must be in distribution, with numbers")
        with_numbers = [subset for subset in self.subsets if not subset.reason]
        shifts = {subset.row: subset.shift for subset in with_numbers}
        for subset in self.subsets:
            require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        self._check("", self, with_numbers, shifts)
        for measured in self.beside:
            self._check(f"beside: {measured.form}: ", measured, measured.subsets, shifts)
        return self

    def _check(
        self,
        where: str,
        measured: Measured,
        subsets: Sequence[SubsetNumbers],
        shifts: Mapping[str, Shift | None],
    ) -> None:
        """Raise ValueError unless all parts of a measure are of the same models and subsets."""
        require_same(f"{where}subsets", [subset.row for subset in subsets], shifts)
        for subset in subsets:
            place = f"{where}subsets: {subset.row!r}"
            require_same(f"{place}: models", subset.models, self.models)
            for numbers in subset.models.values():
                if numbers is None or (numbers.remid is None) != (shifts[subset.row] is None):
                    raise ValueError(f"{place}: needs numbers, with a remid if it is shifted")
        shifted = {shift for shift in shifts.values() if shift}
        require_same(f"{where}by_shift", measured.by_shift, shifted)
        for name, means in (*measured.by_shift.items(), ("average", measured.average)):
            require_same(f"{where}{name}", means, self.models if shifted else ())
            if any(loss.remid is None for loss in means.values()):
                raise ValueError(f"{where}{name}: remid is null")
            if self.level is None and any(loss.remid_low is not None for loss in means.values()):
                raise ValueError("level is missing, and there are intervals")
        for pair in measured.comparisons:
            if self.level is None or len(pair.models) != 2 or set(pair.models) - set(self.models):
                raise ValueError(f"{where}comparisons: are of two models each, and need a level")


class ScoreLine(Part):
    """A line of what `coevolve score` writes: the score of a response."""

    sample_ID: SampleId
    log_prob: Number = Field(description="Sum over tokens and end of turn, nats.")
    tokens: Annotated[int, Field(ge=1)] = Field(description="How many these are.")
    reasoning: str | list[str] | None = Field(description="One, K to be averaged, or null.")
    weight: Probability | None = Field(default=None, description="Of reasoning, in a mixture.")
    reasoning_sha256: str | None = Field(default=None, description="Of the file that gave them.")
    estimator_identity: str = Field(description="`identity` of the estimator's manifest.")


class ShareLine(Part):
    """A line of `contributions.jsonl`: an example's share of a model's R-EMI, their mean."""

    row: Row
    sample_ID: SampleId
    model: Annotated[str, Field(description="Its name.")]
    remi: Annotated[Number, Field(description="By the main measure.")]


def mean_exact(exact: Exact, model: str, subsets: Iterable[SubsetNumbers]) -> float | None:
    """A model's true value, the mean over subsets; None unless that of each is known."""
    values = [exact.get((model, subset.row)) for subset in subsets]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def require_once(what: str, names: Collection[str]) -> None:
    """Raise ValueError if a name is there twice."""
    if len(set(names)) < len(names):
        raise ValueError(f"{what}: a name is there twice")


def require_same(what: str, names: Iterable[str], expected: Iterable[str]) -> None:
    """Raise ValueError unless the same names are in both."""
    odd = sorted(set(names) ^ set(expected))
    if odd:
        raise ValueError(f"{what}: {odd[0]!r} is not in both places that name them")
