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
    same_code: bool
    """Whether it says what golden responses say, more or less surely."""
    source: Literal["estimator", "ideal", "own"]
    """Whose conditional scored: the one audited, the world's, or the policy's own."""
    measure: str
    """A form of mutual information, or the difference of entropies with the exact p(y)."""
    information: Number = Field(description="Mutual information, estimated.")
    exact_information: Number = Field(description="Mutual information.")
    readable_information: Number
    """What the world's own conditional can read of it."""
    emi: Number | None = Field(description="EMI, estimated; null for `golden`.")
    emi_error: Number | None = Field(description="Its standard error.")
    exact_emi: Number = Field(description="EMI.")
    emid: Number | None
    """EMID, estimated; null for `golden` and in distribution."""
    emid_error: Number | None = Field(description="Its standard error.")
    exact_emid: Number | None = Field(description="EMID.")


class TruthResults(Document):
    """Estimates beside exact values."""

    marks: ClassVar = ("schema",)
    schema_id: Literal["coevolve.truth/1"] = Field(alias="schema")
    """What the file is, and of which version."""
    unit: Unit
    test: Annotated[Count, Field(description="Fresh examples per split.")]
    reasoning: ChosenReasoning | None = None
    """Of the estimators; absent before version 0.4, null where it differs from run to run."""
    rows: list[TruthRow] = Field(description="By world, split, policy, source and measure.")
