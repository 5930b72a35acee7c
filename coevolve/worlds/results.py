"""What `coevolve truth --json` writes: the schema. Nats per response."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from coevolve.documents import Document, Part
from coevolve.remid.results import ChosenReasoning, Count, Number, RowShift, Split, Unit


class TruthRow(Part):
    """An estimate beside its exact value."""

    seed: int = Field(description="Of the world.")
    split: Split
    shift: RowShift
    policy: str = Field(description="The role-playing model; `golden` for the golden responses.")
    same_code: bool = Field(description="Whether it says what golden ones say, if less surely.")
    source: Literal["estimator", "ideal", "own", "fitted", "best"] = Field(
        description="Whose conditional scored."
    )
    measure: str = Field(description="A form, or the difference of entropies with the exact p(y).")
    information: Number = Field(description="Mutual information, estimated.")
    exact_information: Number = Field(description="Mutual information.")
    readable_information: Number = Field(description="What the ideal estimator can read of it.")
    emi: Number | None = Field(description="EMI, estimated; null for `golden`.")
    emi_error: Number | None = Field(description="Its standard error.")
    exact_emi: Number = Field(description="EMI.")
    emid: Number | None = Field(description="EMID, estimated; null in distribution.")
    emid_error: Number | None = Field(description="Its standard error.")
    exact_emid: Number | None = Field(description="EMID.")


class TruthResults(Document):
    """Estimates beside exact values."""

    marks: ClassVar = ("schema",)
    schema_id: Literal["coevolve.truth/1"] = Field(alias="schema", description="And version.")
    unit: Unit
    test: Annotated[Count, Field(description="Fresh examples per split.")]
    reasoning: ChosenReasoning | None = None
    """Of the estimators; absent before version 0.4, null where it differs from run to run."""
    rows: list[TruthRow] = Field(description="By world, split, policy, source and measure.")
