"""What a run's files hold: the schemas, by which it goes on, is exported and reported."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field, JsonValue, model_validator

from coevolve.documents import Document, Part
from coevolve.remid.results import LARGEST, ChosenReasoning, Count, Number, RemidResults
from coevolve.scoring.scores import Scores

STATE = "state.json"
Perplexity = Annotated[Number, Field(gt=0)]
Step = Annotated[int, Field(ge=1, le=2**53)]
Figure = int | Annotated[float, Field(allow_inf_nan=True)]
"""A number for the log, which may be NaN."""
T = TypeVar("T")
RoleName = Literal["connector", "estimator"]
ABSENT: Any = None
"""A field that some version did not write, and that is not written as null."""
OfRoles = Annotated[dict[RoleName, T], Field(min_length=2)]
Nothing = Annotated[dict[str, JsonValue], Field(max_length=0)]


Written = str | Annotated[list[str], Field(min_length=1)]
"""What there is of reasonings of one example: one, or several that are met in turn."""


class BaseOfRun(Part):
    """`coevolve.scoring.origins.Base`."""

    source: str
    path: str
    fingerprint: str


class OriginOfRole(Part):
    """`coevolve.scoring.origins.Origin`."""

    base: BaseOfRun
    quantization: Literal["4bit", "8bit"] | None = None
    adapter: str | None = None
    adapter_fingerprint: str | None = None


class RunFile(Document, extra="allow"):
    """`run.json`: what a run is of, written before it trains. Unknown fields are kept in it."""

    recipe: dict[str, JsonValue]
    """Every value; `coevolve.recipe.check_recipe` knows which."""
    origins: OfRoles[OriginOfRole] = Field(default=ABSENT)
    """What the roles start from."""
    base: BaseOfRun = Field(default=ABSENT)
    """In place of `origins`, before a role could have its own."""
    data_fingerprint: str
    splits: dict[str, str] = Field(default_factory=dict)
    """Fingerprint of each; absent before version 0.4."""
    prompts: str = ABSENT
    """Fingerprint of the prompt set; absent before version 0.4."""
    template_date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] = Field(default=ABSENT)
    """What chat templates that show a day show in all of the run; absent before version 0.4."""

    @model_validator(mode="after")
    def _begins_somewhere(self) -> "RunFile":
        if self.origins is None and self.base is None:
            raise ValueError("origins is missing")
        return self


class FileOfCheckpoint(Part):
    """A file beside the manifest."""

    bytes: Count
    """Its size."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of its content."""


class CheckpointManifest(Document):
    """`manifest.json` of a checkpoint, written last."""

    marks: ClassVar = ("format", "version")
    format: Literal["coevolve-checkpoint"]
    """What the file is."""
    version: Literal[1]
    """Of the format."""
    name: str
    """What had just been done."""
    best: bool
    """Whether the pair in it was the best so far."""
    files: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,200}$")], FileOfCheckpoint
    ]
    """All others, by their names in the directory."""


class ScoresOfExamples(Part):
    """`coevolve.scoring.scores.Scores` of a list of examples."""

    sum: list[Number]
    tokens: list[Annotated[int, Field(ge=1, le=2**31)]]

    @model_validator(mode="after")
    def _are_of_the_same(self) -> "ScoresOfExamples":
        if not 0 < len(self.sum) == len(self.tokens):
            raise ValueError(f"{len(self.sum)} sums and {len(self.tokens)} numbers of tokens")
        return self

    @classmethod
    def of(cls, scores: Scores) -> "ScoresOfExamples":
        """Exactly: a float's shortest decimal form is read back as the same float."""
        return cls(sum=scores.sum.tolist(), tokens=scores.tokens.tolist())

    def scores(self) -> Scores:
        """What `of` was given."""
        return Scores(np.array(self.sum, dtype=np.float64), np.array(self.tokens, dtype=np.int64))


class EvaluatedExamples(Part):
    """`coevolve.training.state.Evaluated`."""

    scores: ScoresOfExamples
    reasoning: list[str | None]

    @model_validator(mode="after")
    def _are_of_the_same(self) -> "EvaluatedExamples":
        if len(self.reasoning) != len(self.scores.sum):
            raise ValueError(f"{len(self.scores.sum)} scores and {len(self.reasoning)} reasonings")
        return self


class Verdict(Part):
    """What the gate made of a phase, by held-out perplexity of the best pair and the new one."""

    round: Count
    """From 1."""
    phase: str
    """For example `connector_rl`."""
    part: Count = 1
    """Of a phase that goes on until nothing improves."""
    before: Perplexity
    """Of the best pair before it."""
    after: Perplexity | None
    """Null where it is beyond all numbers."""
    kept: bool | None
    """Null while on probation."""


class GateState(Part):
    """What the gate goes by (`coevolve.training.gate`), beside the tensors of the best pair."""

    verdicts: list[Verdict]
    held_out: EvaluatedExamples
    """Of the best pair."""
    best_reasoning: list[Written]
    best_chosen: Annotated[list[Count], Field(min_length=1)]
    reasoning: list[str | None]
    """The connector's last for the held-out examples, after `written` updates of it."""
    written: Count


class OutcomeState(Part):
    """`coevolve.training.outcome.Outcome`."""

    scores: dict[str, dict[str, ScoresOfExamples]]
    """Model name -> split -> its golden responses' scores."""
    subsets: dict[str, list[str]]
    """Split -> the examples' subset tags."""
    remid: RemidResults | None
    floors: dict[str, Perplexity] | None
    exact: list[Annotated[tuple[str, str, Number], Field(strict=False)]] | None
    """(model, row, value)."""


class TokensSeen(Part):
    """How many tokens a phase has seen, as TRL's GRPO and its SFT count them."""

    tokens: Figure
    total_tokens: Figure


class SegmentState(Part):
    """`coevolve.training.engines.Segment`: a phase under way, rollouts of so many processes."""

    step: Count
    figures: TokensSeen | Nothing
    rollouts: Annotated[int, Field(ge=0, le=2**20)]
    samples: list[dict[str, JsonValue]] = Field(default_factory=list)

    def tokens(self) -> dict[str, Any]:
        """As the trainer counted them."""
        return self.figures.values() if isinstance(self.figures, TokensSeen) else {}


class RecordState(Part):
    """`coevolve.training.record.record.Record`: its last line, its seconds, each tracker's id."""

    step: Count
    seconds: Annotated[float, Field(ge=0, le=1e12)]
    trackers: dict[str, str]


class Source(Part):
    """Of weights; quantization only of a base."""

    source: str
    fingerprint: str
    quantization: str | None = None


class Parent(Part):
    """`coevolve.scoring.origins.Origin.parent`."""

    base: Source
    continued_from: Source | None


class Facts(Part):
    """For the manifest of an exported estimator."""

    updates: OfRoles[Count]
    held_out_perplexity: dict[str, JsonValue]


class HeldOut(Part):
    """A form on the held-out rows."""

    perplexity: Perplexity
    """Of a mixture, each half of the rows under the weight that the other half favours."""
    n: Count
    """Rows."""
    weight: Annotated[float, Field(ge=0, le=1)] = Field(default=ABSENT)
    """Of reasoning in a mixture, fitted to all of the rows."""


class FormOfExport(Part):
    """By which form the exported estimator scores, and what all of them give."""

    form: ChosenReasoning
    """The one."""
    held_out: dict[str, HeldOut]
    """By name: `none`, `greedy`, `marginal_K`, `mixture`, `mixture_K`."""


class CheckpointState(Document):
    """`state.json`: all of a run that is no tensor."""

    done: list[str]
    """Stages."""
    stage: str
    """What is under way, or was done last."""
    processes: Annotated[int, Field(ge=1)]
    segment: SegmentState | None
    texts: list[str]
    """What a phase under way has written so far."""
    reasoning: Annotated[list[Written], Field(min_length=1)]
    """Of each training example, what the estimator is trained with."""
    cold_reasoning: list[Written] = Field(default_factory=list)
    """The same in its cold start, where that was not the teacher's; absent before version 0.4."""
    chosen: Annotated[list[Count], Field(min_length=1)]
    """The training examples that the last refresh drew."""
    posterior: list[Annotated[tuple[Count, str], Field(strict=False)]] = Field(default_factory=list)
    """(training example, reasoning) of the last posterior sample; absent before version 0.5."""
    updates: OfRoles[Count]
    """Optimizer steps; `progress` by the phase's name, `rounds` the estimator's in each."""
    progress: dict[str, Count]
    trained_updates: OfRoles[Count] | Nothing
    """`updates` when training ended; empty before."""
    rounds: list[Count]
    where: dict[str, str | Count]
    """Round and phase, for the record."""
    gate: GateState | None
    outcome: OutcomeState
    record: RecordState
    parents: OfRoles[Parent] = Field(default=ABSENT)
    """What the weights started from. Before version 0.3 only run.json said it."""
    probe: EvaluatedExamples | None
    """Held-out examples after the cold start, to see how far the estimator drifts."""
    form: FormOfExport | None = None
    """Null before it is chosen; absent before version 0.4."""
    baseline_perplexity: float | None = None
    """Held-out, of the baseline under way when it was best; absent before version 0.5."""
    facts: Facts

    @model_validator(mode="after")
    def _fields_agree(self) -> "CheckpointState":
        examples, chosen = len(self.reasoning), {"chosen": self.chosen}
        if self.gate is not None:
            chosen["gate.best_chosen"] = self.gate.best_chosen
            there = len(self.gate.best_reasoning)
            if there != examples:
                raise ValueError(f"gate.best_reasoning: has {there} of {examples} reasonings")
            if len(self.gate.reasoning) != len(self.gate.held_out.reasoning):
                raise ValueError("gate: reasoning and held_out are of other examples")
        chosen["posterior"] = [index for index, _ in self.posterior]
        for name, indices in chosen.items():
            last = max(indices, default=0)
            if last >= examples:
                raise ValueError(f"{name}: there is no example {last}; there are {examples}")
        scored = {split for by_split in self.outcome.scores.values() for split in by_split}
        for split in sorted(scored - set(self.outcome.subsets)):
            raise ValueError(f"outcome.subsets: {split!r} is missing, and there are scores of it")
        return self


class Line(Part, extra="allow"):
    """A line of `metrics.jsonl`: figures and words by name, such as `connector/entropy`."""

    step: Step
    """Only grows."""
    round: Count | None = Field(default=None, alias="coevolve/round")
    """In which it was written."""
    not_finite: dict[str, Literal["nan", "inf", "-inf"]] = Field(default_factory=dict)
    """What the numbers were that are null because JSON does not have them."""

    @model_validator(mode="after")
    def _figures_are_numbers(self) -> "Line":
        for name, value in (self.__pydantic_extra__ or {}).items():
            if isinstance(value, int | float) and abs(value) <= LARGEST:
                continue
            several = value if isinstance(value, list) else [value]
            words = all(isinstance(word, str) for word in several)
            if value is not None and (not words or name.endswith("/mean")):
                accepted = "accepted is a finite number or null"
                raise ValueError(f"{name}: found {value!r:.60}; {accepted}")
        return self


class SampleLine(Part, extra="allow"):
    """A line of `samples.jsonl`: a row of a table of samples, by column, with round and phase."""

    step: Step
    """That of the line of `metrics.jsonl` beside it."""
    table: str
    """Its name."""
    sample: dict[str, JsonValue]
    """By column."""


class Sent(Document):
    """`.sent.json`: the step up to which trackers may have been told, and their ids of the run."""

    step: Count
    trackers: dict[str, str] = Field(default_factory=dict)


class Ratio(Part):
    """Of two perplexities, paired over examples."""

    ratio: Number
    """Of the first to the second."""
    standard_error: Number
    """Of the ratio."""


class ExactValue(Part):
    """A true R-EMI (in distribution) or R-EMID, in the unit of the R-EMID results beside it."""

    model: str
    """Its name."""
    row: str
    """As in the R-EMID results."""
    value: Number
    """R-EMI, or R-EMID."""


class RunResults(Document):
    """`results.json` of a run."""

    marks: ClassVar = ("schema",)
    schema_id: Literal["coevolve.run/1"] = Field(alias="schema")
    """What the file is, and of which version."""
    recipe: str | None = None
    """Its name."""
    seed: int | None = None
    """Of the run."""
    seconds: Number | None = None
    """That it took, over all its starts."""
    perplexity: dict[str, dict[str, Perplexity]]
    """Model -> split -> value. `full` is the co-evolved pair, `without_corl` the cold start with as
    many estimator updates, `without_reasoning` q2(y | x) with as many, `oracle` is shown the
    teacher's features of the response, and `floor` is exact, where the truth is known. Each is from
    one greedy reasoning per example, but for those that name another form: `..._none`, q2(y | x) of
    the pair; `..._marginal_K`, log-mean over K sampled ones; `..._mixture`, of one with none, and
    `..._mixture_K`, of K with none. `without_reasoning_ensemble_K`, of K baselines of other seeds,
    is what a form of several parts is fairly compared with.
    """
    by_subset: dict[str, dict[str, dict[str, Perplexity]]] = Field(default_factory=dict)
    """Model -> split -> subset tag -> value."""
    ratio: dict[str, dict[str, Ratio]]
    """`full/without_corl`, ... -> split -> ratio."""
    gates: list[Verdict]
    """One for each phase that was gated."""
    form: ChosenReasoning | None = None
    """By which the exported estimator scores; absent before version 0.4."""
    held_out: dict[str, HeldOut] | None = None
    """What each form gave on the rows by which it was chosen."""
    remid: RemidResults | None
    """Null where no model was judged."""
    exact_remid: list[ExactValue] | None
    """From the known truth; null where it is not known."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "RunResults":
        models = self.remid.models if self.remid else ()
        rows = [subset.row for subset in self.remid.subsets] if self.remid else ()
        for exact in self.exact_remid or ():
            if exact.model not in models or exact.row not in rows:
                raise ValueError(f"exact_remid: {exact.model!r} on {exact.row!r} is not in remid")
        return self
