"""What `results.json` of `coevolve remid`, `bound.json` and `blame.json` hold: the schemas, by
which they are read.

Numbers but perplexities, counts and probabilities are in the `unit` that stands beside them.
`_error` is a standard error, `_low` and `_high` are the ends of a bootstrap interval: absent in
files of `coevolve.remid/1`, and null in results of the public code's protocol, which has none.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, JsonValue, model_validator

from coevolve.documents import Document, Part

LARGEST = 1e300
"""Of a number: finite, with room for sums."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Probability = Annotated[float, Field(ge=0, le=1)]
Shift = Literal["user", "character", "dialogue", "all"]
Input = Literal["user", "character", "dialogue"]
Normalisation = Literal["per_token", "per_response"]
T = TypeVar("T")
OfInputs = Annotated[dict[Input, T], Field(min_length=3)]
"""Something of each kind of input."""


class Information(Part):
    """Mutual information, and the mean log-probabilities of matched (positive) and mismatched
    pairs.
    """

    mutual_information: Number
    mutual_information_error: Number | None = None
    positive: Number
    negative: Number
    at_floor: bool = False
    """Whether the fit of `calibrated` ended at its lowest temperature, so that information is
    underestimated.
    """


class Golden(Information):
    """The golden responses of a subset; not beside the main results: their perplexity, and their
    tokens in all.
    """

    perplexity: Annotated[Number, Field(gt=0)] | None = None
    tokens: Count | None = None


class Losses(Part):
    """A model's R-EMI, and R-EMID: R-EMI in distribution less R-EMI here; null in distribution."""

    remi: Number
    remid: Number | None
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
    """Of two models a and b, paired over examples: a's `remi` in distribution, or mean `remid`,
    less b's.
    """

    models: list[str]
    measure: Literal["remi", "remid"]
    value: Number
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


class Beside(Measured):
    """A further measure, beside the main one."""

    subsets: list[Scored]


class Reasoning(Part):
    """How the reasonings were chosen."""

    kind: Literal["greedy", "sampled", "marginal", "none", "given"]
    samples: Count | None = None
    seed: int | None = None
    sha256: str | None = None
    """Of the file that gave them."""

    @model_validator(mode="after")
    def _drawn_ones_have_a_seed(self) -> "Reasoning":
        if self.kind in ("sampled", "marginal") and None in (self.samples, self.seed):
            raise ValueError(f"{self.kind} needs samples and seed")
        if self.kind == "given" and self.sha256 is None:
            raise ValueError("given needs sha256")
        return self


class Unanswered(Part):
    """What was left out because a model has no usable response to it: how many of a row, and each
    model's faults.
    """

    rows: dict[str, Annotated[dict[Literal["left_out", "of"], Count], Field(min_length=2)]]
    models: dict[
        str,
        Annotated[dict[Literal["missing", "empty", "duplicated"], list[str]], Field(min_length=3)],
    ]


class Evaluation(Document):
    """What the files of an evaluation have in common."""

    marks: ClassVar = ("schema",)
    models: Annotated[list[str], Field(min_length=1)]
    """Names, in the order given."""
    seed: int
    estimator: str | None = None
    """Its directory."""
    estimator_identity: str | None = None
    data_fingerprint: str | None = None
    """Of the whole corpus."""
    unanswered: Unanswered | None = None


class RemidResults(Evaluation, Measured):
    """R-EMI of each subset and R-EMID of each shifted one, by the main measure and those beside it."""

    schema_id: Literal["coevolve.remid/2", "coevolve.remid/1"] = Field(alias="schema")
    negatives: (
        Count | Literal["all"] | Annotated[dict[Literal["per_context"], Count], Field(min_length=1)]
    )
    reasoning: Reasoning = Field(default=None)
    """May be absent, and is then not null."""
    protocol: dict[str, JsonValue] | None = None
    """Of the public code, where it was asked for: how many windows were scored, cut, and empty."""
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
        first, *others = self.subsets
        if (
            first.shift is not None
            or first.reason
            or any(subset.shift is None for subset in others)
        ):
            raise ValueError(
                "subsets: the first, and no other, must be in distribution (shift null), with numbers"
            )
        shifts = {subset.row: subset.shift for subset in self.subsets if not subset.reason}
        for subset in self.subsets:
            _require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        self._check("", self, [subset for subset in self.subsets if not subset.reason], shifts)
        for measured in self.beside:
            self._check(f"beside: {measured.form}: ", measured, measured.subsets, shifts)
        return self

    def _check(
        self, where: str, measured: Measured, subsets: list[Scored], shifts: dict[str, Shift | None]
    ) -> None:
        """Raise ValueError unless a measure has the numbers of the same models and subsets in all
        of its parts.
        """
        _require_same(f"{where}subsets", (subset.row for subset in subsets), shifts)
        for subset in subsets:
            _require_same(f"{where}subsets: {subset.row!r}: models", subset.models, self.models)
            for numbers in subset.models.values():
                if numbers is None or (numbers.remid is None) != (shifts[subset.row] is None):
                    raise ValueError(
                        f"{where}subsets: {subset.row!r}: numbers must be there, with a remid if it is shifted"
                    )
        shifted = set(shifts.values()) - {None}
        _require_same(f"{where}by_shift", measured.by_shift, shifted)
        for name, means in (*measured.by_shift.items(), ("average", measured.average)):
            _require_same(f"{where}{name}", means, self.models if shifted else ())
            if any(loss.remid is None for loss in means.values()):
                raise ValueError(f"{where}{name}: remid is null")
            if self.level is None and any(loss.remid_low is not None for loss in means.values()):
                raise ValueError("level is missing, and there are intervals")
        for pair in measured.comparisons:
            if self.level is None or len(pair.models) != 2 or set(pair.models) - set(self.models):
                raise ValueError(
                    f"{where}comparisons: are of two of the models each, and need a level"
                )


class Divergence(Part):
    """`coevolve.information.divergence.MeasuredDivergence`; excess is what the JSD is above its
    floor, or 0.
    """

    jsd: Number
    jsd_sd: Number
    floor: Number
    floor_sd: Number
    size: Count
    repetitions: Count
    excess: Number


class Blamed(Part):
    """An input by how far it shifted: its share of all excess; null where there is none."""

    input: Input
    excess: Number
    share: Probability | None


class Terms(Part):
    """A bound, term by term; its noise floor is the total if nothing had shifted."""

    inputs: OfInputs[Number]
    output_p: Number
    """What the model's own distance from the golden responses can cost in distribution; output_q:
    in the subset.
    """
    output_q: Number
    total: Number
    noise_floor: Number


class BoundOfModel(Part):
    """Nats per response, but for `scale_adjusted`, which has no unit."""

    output_p: Divergence
    output_q: Divergence
    entropy: Annotated[dict[Literal["largest", "mean"], Number], Field(min_length=2)]
    published: Terms
    scale_adjusted: Terms
    remid: Number
    """As measured."""


class BoundSubset(Part):
    """The bound of a shifted subset, term by term, and which input is to blame."""

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

    @model_validator(mode="after")
    def _fields_agree(self) -> "BoundResults":
        _require_once("models", self.models)
        for subset in self.subsets:
            _require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        return self


class Token(Part):
    """A response's token; nats in its own context, in the mean over others of the subset, and the
    difference.
    """

    text: str
    log_prob: Number
    elsewhere: Number
    contribution: Number

    @model_validator(mode="after")
    def _is_the_difference(self) -> "Token":
        if abs(self.log_prob - self.elsewhere - self.contribution) > 1e-6 * (
            1 + abs(self.log_prob)
        ):
            raise ValueError("contribution is not log_prob less elsewhere")
        return self


class BlamedExample(Part):
    """What an example adds to R-EMI, and by which of its pairs: `coevolve.remid.blame`."""

    sample_ID: str
    loss: Number
    contribution: Number
    matched: Number
    as_context: Number
    as_response: Number


class ShownExample(BlamedExample):
    """An example at either end of its subset, with what its tokens contribute."""

    user_persona: str
    agent_character: str | dict[str, JsonValue]
    last_turn: str
    golden: str
    response: str
    tokens: Annotated[list[Token], Field(min_length=1)]
    golden_tokens: Annotated[list[Token], Field(min_length=1)]


class BlameOfModel(Part):
    """Its loss is the mean over the examples: R-EMID, or -R-EMI in distribution."""

    loss: Number
    examples: list[BlamedExample]
    """In the subset's order."""
    worst: Annotated[list[ShownExample], Field(min_length=1)]
    """The largest loss first; in `best` the smallest."""
    best: Annotated[list[ShownExample], Field(min_length=1)]


class BlameSubset(Part):
    """The worst and the best examples of a subset, model by model."""

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
