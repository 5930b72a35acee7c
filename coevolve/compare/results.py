"""What `coevolve compare` writes, `results.json`: the schema.

Numbers are by the main measure, in its `unit`, and by the chosen readers. Differences are paired
over examples.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from coevolve.documents import Document, Part
from coevolve.information.uncertainty import Sure
from coevolve.remid.judge import Correlation, JudgeComparison
from coevolve.remid.readers import ReaderKind
from coevolve.remid.results import ChosenReasoning as Chosen
from coevolve.remid.results import (
    Count,
    Divided,
    Form,
    Number,
    Probability,
    RowShift,
    Unit,
    names_of,
    require_same,
)

MeasureName = Literal["remi", "remid"]


class Figure(Part):
    """A number and how sure it is, as far as examples are enough for that."""

    value: Number = Field(description="The estimate.")
    error: Number | None = Field(default=None, description="Its standard error.")
    low: Number | None = Field(default=None, description="Lower end of its interval.")
    high: Number | None = Field(default=None, description="Upper end of its interval.")

    @classmethod
    def of(cls, sure: Sure) -> "Figure":
        """What is known of a number."""
        low, high = sure.interval() if sure.tells else (None, None)
        return cls(value=sure.value, error=sure.error if sure.tells else None, low=low, high=high)

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.value:+z.3f}{error}"

    @property
    def interval(self) -> str:
        """`+0.100 [-0.100, +0.300]`."""
        ends = "" if self.low is None else f" [{self.low:+z.3f}, {self.high:+z.3f}]"
        return f"{self.value:+z.3f}{ends}"


class Place(Part):
    """One of those that are ranked."""

    name: str = Field(description="Of the model; of shifts, which one.")
    figure: Figure = Field(description="Its number.")
    behind: Figure | None = Field(default=None, description="Less that of the first; null for it.")
    p: Probability | None = None
    """Of no difference to the first, two-sided, adjusted (Holm) for all pairs of the row, since
    which is the first was seen in the same examples.
    """
    exact: Number | None = Field(default=None, description="The true value, where it is known.")
    within: Number | None = Field(default=None, description="No more than this is it off.")
    bound: Number | None = Field(default=None, description="Upper bound; nats per response.")


class Ranking(Part):
    """A row of the table: all models by one number, the best first; of shifts, the worst."""

    row: str = Field(description="By the name that a leaderboard has for it: `user shift, German`.")
    subset: str | None = Field(default=None, description="Row of `coevolve remid`; null of means.")
    shift: RowShift
    measure: MeasureName = Field(description="R-EMI, or R-EMID.")
    examples: Count = Field(description="How many there are.")
    places: list[Place] = Field(description="In order.")


class Gain(Part):
    """What a way of training gains on what its models began as."""

    figure: Figure = Field(description="Mean over its models that began as one of these.")
    p: Probability | None = Field(default=None, description="Of none, adjusted (Holm).")


class Remedy(Part):
    """Models that were trained in one way."""

    name: str = Field(description="Of the way.")
    models: list[str] = Field(description="Trained so.")
    remi: Figure = Field(description="Mean R-EMI in distribution.")
    remid: Figure | None = Field(default=None, description="Mean R-EMID; null if none is shifted.")
    remi_gain: Gain | None = Field(default=None, description="Above 0: better than before.")
    remid_gain: Gain | None = Field(default=None, description="Below 0: better than before.")


class ReadBy(Part):
    """A model's numbers by one reader."""

    model: str = Field(description="Its name.")
    reader: ReaderKind = Field(description="As `coevolve remid --reader`.")
    remi: Figure = Field(description="R-EMI in distribution.")
    remid: Figure | None = Field(default=None, description="Mean R-EMID; null if none is shifted.")


class Truth(Part):
    """What is estimated against what is known."""

    models: Count = Field(description="Whose exact values are known.")
    remi: dict[str, Correlation] = Field(description="Over models, in distribution; by statistic.")
    remid: dict[str, Correlation] = Field(description="Over models, mean R-EMID.")
    pairs: Count = Field(description="Model x shifted subset pairs.")
    remid_pairs: dict[str, Correlation] = Field(description="R-EMID over these.")
    told: Count = Field(description="Pairs whose exact R-EMID is far enough from 0.")
    right: Count = Field(description="Of those, pairs whose estimate has its sign.")


class Compared(Part):
    """A model and where it comes from."""

    name: str = Field(description="In tables.")
    remedy: str | None = Field(default=None, description="The way in which it was trained.")
    start: str | None = Field(default=None, description="The model that it began as.")
    reward: str | None = Field(default=None, description="Identity of the estimator it was for.")
    responses: str = Field(description="The file.")


class CompareResults(Document):
    """Models x subsets x measures."""

    marks: ClassVar = ("schema",)
    schema_id: Literal["coevolve.compare/1"] = Field(alias="schema", description="And version.")
    name: str = Field(description="Of the grid.")
    seed: int = Field(description="Of the choice of pairs and of all that is drawn.")
    estimator: str = Field(description="Its folder, or its name on a hub.")
    estimator_identity: str | None = Field(description="`identity` of its manifest.")
    data_fingerprint: str | None = Field(description="Of the test rows.")
    flags: list[str] = Field(description="What to mind when reading these numbers.")
    form: Form
    normalisation: Divided
    unit: Unit
    reader: ReaderKind = Field(description="As `coevolve remid --reader`.")
    reasoning: Chosen | None = Field(default=None, description="How it was chosen.")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(description="Of intervals.")
    models: Annotated[list[Compared], Field(min_length=1)] = Field(description="As in the grid.")
    rows: Annotated[list[Ranking], Field(min_length=1)]
    """In distribution, subset by subset, means over the subsets of a shift,
    and the average of all.
    """
    shifts: Ranking | None = Field(default=None, description="Mean over models, the worst first.")
    remedies: list[Remedy] = Field(default_factory=list, description="The best by R-EMID first.")
    readers: list[ReadBy] = Field(default_factory=list, description="Where others read as well.")
    judge: JudgeComparison | None = Field(default=None, description="As `judge.json` of remid.")
    truth: Truth | None = Field(default=None, description="In the synthetic world.")

    @property
    def names(self) -> tuple[str, str]:
        """(R-EMI, R-EMID), or without the R where no reasoning was shown."""
        return names_of(self.reasoning)

    def called(self, measure: MeasureName) -> str:
        """One of `names`."""
        return self.names[measure == "remid"]

    def exact(self) -> dict[tuple[str, str], float]:
        """True values by (model, row of `coevolve remid`), as `coevolve.remid.results.Exact`."""
        return {
            (place.name, row.subset): place.exact
            for row in self.rows
            for place in row.places
            if row.subset is not None and place.exact is not None
        }

    def model_post_init(self, _: object) -> None:
        """Every row has every model."""
        for row in self.rows:
            there = [place.name for place in row.places]
            require_same(f"rows: {row.row!r}", there, [model.name for model in self.models])
