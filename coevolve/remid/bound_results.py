"""What `coevolve bound` writes, `bound.json` and `blame.json`: the schemas."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from coevolve.data.corpus import Shift
from coevolve.documents import Part
from coevolve.remid.results import (
    ChosenReasoning,
    Count,
    Divided,
    Evaluation,
    Examples,
    Form,
    Input,
    Number,
    OfInputs,
    Probability,
    Row,
    RowShift,
    SampleId,
    Split,
    Tag,
    Unit,
    require_once,
    require_same,
)


class Divergence(Part):
    """`coevolve.information.divergence.MeasuredDivergence`."""

    jsd: Number = Field(description="Representation JSD, nats, mean over the repetitions.")
    jsd_sd: Number = Field(description="Its standard deviation over them.")
    floor: Number = Field(description="What noise alone gives.")
    floor_sd: Number = Field(description="Its standard deviation over the repetitions.")
    size: Count = Field(description="Texts on either side.")
    repetitions: Count = Field(description="How often texts were drawn.")
    excess: Number = Field(description="What the JSD is above its floor, or 0.")


class Blamed(Part):
    """An input by how far it shifted."""

    input: Input = Field(description="Which one.")
    excess: Number = Field(description="Its divergence's.")
    share: Probability | None = Field(description="Of all excess; null where there is none.")


class Terms(Part):
    """A bound, term by term."""

    inputs: OfInputs[Number] = Field(description="What each shifted input can cost.")
    output_p: Number = Field(description="Of the model's own distance from golden.")
    output_q: Number = Field(description="The same in the subset.")
    total: Number = Field(description="The bound.")
    noise_floor: Number = Field(description="The total if nothing had shifted.")


class Entropy(Part):
    """H of the bound, estimated from above."""

    largest: Number = Field(description="Largest surprise of an example, as the bound takes it.")
    mean: Number = Field(description="The mean over the examples.")


class BoundOfModel(Part):
    """Nats per response, but for `scale_adjusted`, which has no unit."""

    output_p: Divergence = Field(description="Of its responses from golden ones, in distribution.")
    output_q: Divergence = Field(description="The same in the subset.")
    entropy: Entropy = Field(description="Nats per response.")
    published: Terms = Field(description="As the paper has it.")
    scale_adjusted: Terms = Field(description="With all factors 1.")
    remid: Number = Field(description="As measured.")


class BoundSubset(Part):
    """The bound of a shifted subset, term by term, and which input is to blame."""

    row: Row
    split: Split
    subset: Tag
    shift: Annotated[Shift, Field(description="What is shifted.")]
    examples: Examples
    inputs: OfInputs[Divergence] = Field(description="From the inputs in distribution.")
    blame: Annotated[list[Blamed], Field(min_length=1)] = Field(description="Most to blame first.")
    models: dict[str, BoundOfModel] = Field(description="By name.")


class SmallSubset(Part):
    """A subset that is listed without numbers."""

    row: Row
    examples: Examples
    reason: str = Field(description="Why there are no numbers.")


class BoundResults(Evaluation):
    """The bound of each model's R-EMID in every shifted subset."""

    schema_id: Literal["coevolve.bound/1"] = Field(alias="schema", description="And version.")
    unit: Unit
    form: Form
    embedder: str = Field(description="What gave texts their vectors.")
    kernel: Literal["linear", "gaussian"] = Field(description="Of the divergences.")
    widths: dict[str, Number | None] = Field(description="By kind of text; null for linear.")
    repetitions: Count = Field(description="Of each divergence.")
    reasoning: ChosenReasoning | None = Field(default=None, description="How it was chosen.")
    subsets: Annotated[list[BoundSubset], Field(min_length=1)]
    """Those with numbers."""
    small_subsets: list[SmallSubset] = Field(default_factory=list, description="Those without.")

    @model_validator(mode="after")
    def _fields_agree(self) -> "BoundResults":
        require_once("models", self.models)
        for subset in self.subsets:
            require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        return self


class Token(Part):
    """A response's token, nats."""

    text: str = Field(description="As it is decoded alone.")
    log_prob: Number = Field(description="In its own context.")
    elsewhere: Number = Field(description="Mean over others of the subset.")
    contribution: Number = Field(description="The difference.")

    @model_validator(mode="after")
    def _is_the_difference(self) -> "Token":
        rest = abs(self.log_prob - self.elsewhere - self.contribution)
        if rest > 1e-6 * (1 + abs(self.log_prob)):
            raise ValueError("contribution is not log_prob less elsewhere")
        return self


class BlamedExample(Part):
    """What an example adds to R-EMI, and by which of its pairs: `coevolve.remid.blame`."""

    sample_ID: SampleId
    loss: Number = Field(description="R-EMI in distribution (there 0) less the contribution.")
    contribution: Number = Field(description="To R-EMI, in all; the sum of the other three.")
    matched: Number = Field(description="By its own pair.")
    as_context: Number = Field(description="By other responses in its context.")
    as_response: Number = Field(description="By its response in other contexts.")


class ShownExample(BlamedExample):
    """An example at either end of its subset, with what its tokens contribute."""

    user_persona: str = Field(description="As in the data.")
    agent_character: str | Mapping[str, JsonValue] = Field(description="As in the data.")
    last_turn: str = Field(description="The user's, which is answered.")
    golden: str = Field(description="The golden response.")
    response: str = Field(description="The model's.")
    tokens: Annotated[list[Token], Field(min_length=1)] = Field(description="Of the response.")
    golden_tokens: Annotated[list[Token], Field(min_length=1)]
    """Of the golden response."""


class BlameOfModel(Part):
    """Where a model's loss in a subset comes from."""

    loss: Number = Field(description="Mean over the examples: R-EMID, or -R-EMI in distribution.")
    examples: list[BlamedExample] = Field(description="In the subset's order.")
    worst: Annotated[list[ShownExample], Field(min_length=1)]
    """The largest loss first."""
    best: Annotated[list[ShownExample], Field(min_length=1)]
    """The smallest loss first."""


class BlameSubset(Part):
    """The worst and the best examples of a subset, model by model."""

    row: Row
    shift: RowShift
    models: dict[str, BlameOfModel] = Field(description="By name.")


class BlameResults(Evaluation):
    """Which examples and which tokens the losses come from."""

    schema_id: Literal["coevolve.blame/1"] = Field(alias="schema", description="And version.")
    form: Form
    normalisation: Divided
    unit: Unit
    other_contexts: Count = Field(description="In which tokens were scored, at most.")
    reasoning: ChosenReasoning | None = Field(default=None, description="How it was chosen.")
    subsets: list[BlameSubset] = Field(description="The one in distribution first.")

    @model_validator(mode="after")
    def _fields_agree(self) -> "BlameResults":
        for subset in self.subsets:
            require_same(f"subsets: {subset.row!r}: models", subset.models, self.models)
        return self
