"""What `results.json` of `coevolve remid`, `bound.json` and `blame.json` hold: each field explained, and checked.

Numbers but perplexities, counts and probabilities are in the `unit` that stands beside them. `_error` is a standard
error, `_low` and `_high` are the ends of a bootstrap interval; they are absent in files of `coevolve.remid/1`, and null
in results of the public code's protocol, which has none.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, JsonValue, model_validator

from coevolve.documents import Document, Part

LARGEST = 1e300
"""Of a number: finite, with room for sums."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Probability = Annotated[float, Field(ge=0, le=1)]
Shift = Literal["user", "character", "dialogue", "all"]
Normalisation = Literal["per_token", "per_response"]
T = TypeVar("T")


class Information(Part):
    """Mutual information of responses and what they answer."""

    mutual_information: Number
    mutual_information_error: Number | None = None
    positive: Number
    """Mean log-probability of the matched pairs, in the normalisation."""
    negative: Number
    """The same of the mismatched pairs."""


class Golden(Information):
    """The golden responses of a subset."""

    perplexity: Annotated[Number, Field(gt=0)] | None = None
    """Not in results that stand beside the main ones."""
    tokens: Count | None = None
    """In all."""


class Losses(Part):
    """A model's R-EMI and R-EMID: of a subset, or means over several."""

    remi: Number
    remid: Number | None
    """R-EMI in distribution less R-EMI here; null in distribution."""
    remid_error: Number | None = None
    remid_low: Number | None = None
    remid_high: Number | None = None
    chance_of_loss: Probability | None = None
    """Share of bootstrap replicates with an R-EMID above 0."""

    @model_validator(mode="after")
    def _interval_has_two_ends(self) -> "Losses":
        if (self.remid_low is None) != (self.remid_high is None):
            raise ValueError("an interval has one end only")
        return self


class OfModel(Losses, Information):
    """A model on a subset."""

    remi_error: Number | None = None
    remi_low: Number | None = None
    remi_high: Number | None = None
    holm_p: Probability | None = None
    """p-value of "R-EMID is at most 0", adjusted (Holm) for the model's subsets."""


class Scored(Part):
    """A subset by one measure."""

    row: str
    """Its name: `IDTest`, or split and subset tag as in `OOD1Test/german`."""
    golden: Golden | None = None
    models: dict[str, OfModel | None]
    """By name; null where there are no numbers."""


class Subset(Scored):
    """A subset with all that is known of it."""

    split: str
    subset: str
    """Its subset tag."""
    shift: Shift | None
    """Null in distribution."""
    examples: Count
    negatives: Count = 0
    """Mismatched pairs that were used."""
    contexts: Count | None = None
    """In how many other contexts each response was scored, the least of them."""
    reason: str | None = None
    """Null, or why there are no numbers."""


class Comparison(Part):
    """Two models a and b, paired over examples."""

    models: list[str]
    measure: Literal["remi", "remid"]
    """`remi` in distribution, or the mean `remid`."""
    value: Number
    """a's less b's."""
    error: Number
    low: Number
    high: Number
    chance_above_0: Probability


class Measured(Part):
    """Everything by one measure."""

    form: str
    """A key of `coevolve.information.estimate.FORMS`."""
    normalisation: Normalisation
    unit: str
    bias: str = ""
    """What is known of the form's errors, in words."""
    by_shift: dict[Shift, dict[str, Losses]]
    """Model by model, means over the subsets of that shift."""
    average: dict[str, Losses]
    """Means over all shifted subsets; empty where there are none. Each subset weighs the same."""
    comparisons: list[Comparison] = Field(default_factory=list)
    """Of every two models."""


class Beside(Measured):
    """A further measure, beside the main one."""

    subsets: list[Scored]


class PerContext(Part):
    per_context: Annotated[int, Field(gt=0)]
    """So many mismatched pairs for each context."""


class Reasoning(Part):
    """How the reasonings were chosen."""

    kind: Literal["greedy", "sampled", "marginal", "none"]
    samples: Count | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _drawn_ones_have_a_seed(self) -> "Reasoning":
        if self.kind in ("sampled", "marginal") and None in (self.samples, self.seed):
            raise ValueError(f"{self.kind} needs samples and seed")
        return self


class Protocol(Part):
    """The public code's protocol, where it was asked for."""

    name: Literal["reference"]
    max_length: Count
    windows: Count
    """How many were scored, of which `cut` were too long and `empty` without a token of the response."""
    cut: Count
    empty: Count


class LeftOut(Part):
    left_out: Count
    of: Count


class Faults(Part):
    """The sample_IDs that a model has no usable response to."""

    missing: list[str]
    empty: list[str]
    duplicated: list[str]


class Unanswered(Part):
    """What was left out because a model has not answered it."""

    rows: dict[str, LeftOut]
    models: dict[str, Faults]


class Evaluation(Document):
    """What the files of an evaluation have in common."""

    marks: ClassVar = ("schema",)
    models: Annotated[list[str], Field(min_length=1)]
    """Names, in the order given."""
    seed: int
    estimator: str | None = None
    """Its directory."""
    data_fingerprint: str | None = None
    """Of the whole corpus."""
    unanswered: Unanswered | None = None


class RemidResults(Evaluation, Measured):
    """R-EMI of each subset and R-EMID of each shifted one, by the main measure and those beside it."""

    schema_id: Literal["coevolve.remid/2", "coevolve.remid/1"] = Field(alias="schema")
    """1: without intervals; otherwise the same."""
    negatives: Annotated[int, Field(gt=0)] | Literal["all"] | PerContext
    reasoning: Reasoning = Field(default=None)
    """May be absent, and is then not null."""
    protocol: Protocol | None = None
    level: Annotated[float, Field(gt=0, lt=1)] = Field(default=None)
    """Of the intervals; absent, and not null, where there are none."""
    replicates: Count | None = None
    """Of the bootstrap."""
    subsets: Annotated[list[Subset], Field(min_length=1)]
    """The one in distribution first."""
    beside: list[Beside] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fields_agree(self) -> "RemidResults":
        _require_once("models", self.models)
        _require_once("subsets", (subset.row for subset in self.subsets))
        if [subset.shift is None for subset in self.subsets] != [True] + [False] * (len(self.subsets) - 1):
            raise ValueError("subsets: the first, and no other, must be in distribution (shift null)")
        if self.subsets[0].reason:
            raise ValueError("subsets: the one in distribution has no numbers")
        shifts = {subset.row: subset.shift for subset in self.subsets if not subset.reason}
        for subset in self.subsets:
            _require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        for measured, subsets in ((self, self.subsets), *((one, one.subsets) for one in self.beside)):
            where = "" if measured is self else f"beside: {measured.form}: "
            numbers = {x.row: x.models for x in subsets if x.row in shifts or measured is not self}
            _require_same(f"{where}subsets", numbers, shifts)
            for row, of_models in numbers.items():
                _require_same(f"{where}subsets: {row!r}: models", of_models, self.models)
                if None in of_models.values():
                    raise ValueError(f"{where}subsets: {row!r}: has neither numbers nor a reason")
                if any((found.remid is None) != (shifts[row] is None) for found in of_models.values()):
                    raise ValueError(f"{where}subsets: {row!r}: remid must be null in distribution, and only there")
            shifted = set(shifts.values()) - {None}
            _require_same(f"{where}by_shift", measured.by_shift, shifted)
            for name, means in (*measured.by_shift.items(), ("average", measured.average)):
                _require_same(f"{where}{name}", means, self.models if shifted else ())
                if any(loss.remid is None for loss in means.values()):
                    raise ValueError(f"{where}{name}: remid is null")
                if self.level is None and any(x.remid_low is not None for x in means.values()):
                    raise ValueError("level is missing, and there are intervals")
            for pair in measured.comparisons:
                if len(pair.models) != 2 or set(pair.models) - set(self.models):
                    raise ValueError(f"{where}comparisons: {pair.models} are not two of the models")
        if self.level is None and self.comparisons:
            raise ValueError("level is missing, and there are intervals")
        return self


class OfInputs(Part, Generic[T]):
    """Something of each kind of input."""

    user: T
    character: T
    dialogue: T


class Divergence(Part):
    """A representation JSD beside its noise floor, nats: `coevolve.information.divergence.MeasuredDivergence`."""

    jsd: Number
    jsd_sd: Number
    floor: Number
    floor_sd: Number
    size: Count
    repetitions: Count
    excess: Number
    """What the JSD is above its floor, or 0."""


class Blamed(Part):
    input: Literal["user", "character", "dialogue"]
    excess: Number
    share: Probability | None
    """Of all excess; null where there is none."""


class Entropy(Part):
    largest: Number
    mean: Number


class Terms(Part):
    """A bound, term by term."""

    inputs: OfInputs[Number]
    output_p: Number
    """What the model's own distance from the golden responses can cost in distribution, and in the subset."""
    output_q: Number
    total: Number
    noise_floor: Number
    """The total if nothing had shifted."""


class BoundOfModel(Part):
    output_p: Divergence
    output_q: Divergence
    entropy: Entropy
    """Nats per response, estimated from above, and its mean."""
    published: Terms
    """Nats per response."""
    scale_adjusted: Terms
    """All factors 1: without a unit."""
    remid: Number
    """As measured, nats per response."""


class BoundSubset(Part):
    row: str
    split: str
    subset: str
    shift: Shift
    examples: Count
    inputs: OfInputs[Divergence]
    blame: Annotated[list[Blamed], Field(min_length=1)]
    """Most to blame first."""
    models: dict[str, BoundOfModel]


class BoundResults(Evaluation):
    """The bound of each model's R-EMID in every shifted subset."""

    schema_id: Literal["coevolve.bound/1"] = Field(alias="schema")
    unit: str
    form: str
    """Of the R-EMID beside the bound."""
    embedder: str
    kernel: Literal["linear", "gaussian"]
    widths: dict[str, Number | None]
    """Of the kernel, by kind of text; null for the linear one."""
    repetitions: Count
    subsets: Annotated[list[BoundSubset], Field(min_length=1)]
    """The shifted ones."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "BoundResults":
        _require_once("models", self.models)
        for subset in self.subsets:
            _require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        return self


class Token(Part):
    """A response's token; nats."""

    text: str
    log_prob: Number
    """In its own context."""
    elsewhere: Number
    """Mean over other contexts of the subset."""
    contribution: Number

    @model_validator(mode="after")
    def _is_the_difference(self) -> "Token":
        if abs(self.log_prob - self.elsewhere - self.contribution) > 1e-6 * (1 + abs(self.log_prob)):
            raise ValueError("contribution is not log_prob less elsewhere")
        return self


class BlamedExample(Part):
    """What an example adds to R-EMI: `coevolve.remid.blame`."""

    sample_ID: str
    loss: Number
    contribution: Number
    """Of which `matched` by its own pair, the others by the mismatched pairs of its context and its response."""
    matched: Number
    as_context: Number
    as_response: Number


class ShownExample(BlamedExample):
    """With its texts and tokens."""

    user_persona: str
    agent_character: str | dict[str, JsonValue]
    last_turn: str
    golden: str
    response: str
    tokens: Annotated[list[Token], Field(min_length=1)]
    golden_tokens: Annotated[list[Token], Field(min_length=1)]


class BlameOfModel(Part):
    loss: Number
    """Mean over the examples: R-EMID, or -R-EMI in distribution."""
    examples: list[BlamedExample]
    """In the subset's order."""
    worst: Annotated[list[ShownExample], Field(min_length=1)]
    """The largest loss first."""
    best: Annotated[list[ShownExample], Field(min_length=1)]
    """The smallest loss first."""


class BlameSubset(Part):
    row: str
    shift: Shift | None
    models: dict[str, BlameOfModel]


class BlameResults(Evaluation):
    """Which examples and which tokens the losses come from."""

    schema_id: Literal["coevolve.blame/1"] = Field(alias="schema")
    form: str
    normalisation: Normalisation
    unit: str
    other_contexts: Count
    """In how many other contexts of the subset the tokens were scored, at most."""
    subsets: list[BlameSubset]

    @model_validator(mode="after")
    def _fields_agree(self) -> "BlameResults":
        for subset in self.subsets:
            _require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        return self


def _require_once(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    if len(set(listed)) < len(listed):
        raise ValueError(f"{what}: a name is there twice")


def _require_same(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    odd = sorted(set(found) ^ set(expected))
    if odd:
        raise ValueError(f"{what}: {odd[0]!r} is not in both places that name them")
