"""The protocol by which the condition r of a score q2(y | x, r) is chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import RecipeError
from coevolve.scoring.scores import Scores

if TYPE_CHECKING:
    from coevolve.remid.results import ChosenReasoning

ReasoningKind = Literal["greedy", "sampled", "marginal", "none", "given"]
Advance = Callable[[int], None]


class Connector(Protocol):
    """The part of an estimator that writes reasonings."""

    def reason(
        self,
        examples: Sequence[Example],
        *,
        seed: int | None = None,
        progress: Advance | None = None,
    ) -> list[str]:
        """One reasoning per example, written without a look at its response; sampled if a seed is
        given.
        """
        ...


@dataclass(frozen=True)
class Reasoning:
    """How r is chosen; it moves perplexities by 6 to 8 %, so results state it.

    Attributes:
        kind: `greedy`, one decoded without chance; `sampled`, one drawn from q1(r | x); `marginal`,
            log mean over `samples` drawn ones of q2(y | x, r), for every pair; `none`, q2(y | x):
            EMI instead of R-EMI; `given`, one that was written elsewhere.
        samples: K of `marginal`; a mixture of K is to be compared with mixtures of K only.
        seed: of what is drawn.
        texts: of `given`, sample_ID -> reasoning.
        sha256: of `given`, of the file that they came from, for results.
    """

    kind: ReasoningKind = "greedy"
    samples: int = 1
    seed: int = 0
    texts: Mapping[str, str] = field(default_factory=dict, hash=False)
    sha256: str | None = None

    def __post_init__(self) -> None:
        kinds = get_args(ReasoningKind)
        if self.kind not in kinds:
            raise RecipeError(
                f"reasoning is {self.kind!r}; accepted are {', '.join(map(repr, kinds))}."
            )
        is_count = type(self.samples) is int and self.samples >= 1
        if not is_count or (self.samples > 1 and self.kind != "marginal"):
            raise RecipeError(
                f"reasoning {self.kind!r} with {self.samples!r} samples; accepted are integers "
                "from 1 up, and more than one for 'marginal' only."
            )

    @property
    def is_written(self) -> bool:
        """Whether the connector writes it."""
        return self.kind in ("greedy", "sampled", "marginal")

    def write(
        self, connector: Connector, examples: Sequence[Example], advance: Advance | None = None
    ) -> list[list[str | None]]:
        """K lists of one reasoning per example; `advance` is told of each that is written."""
        if self.kind == "none":
            return [[None] * len(examples)]
        if self.kind == "given":
            return [[self.texts[example.sample_id] for example in examples]]
        told: dict[str, Any] = {} if advance is None else {"progress": advance}
        if self.kind == "greedy":
            return [list(connector.reason(examples, **told))]
        seeds = [self.seed + k for k in range(self.samples)]
        return [list(connector.reason(examples, seed=seed, **told)) for seed in seeds]

    def describe(self) -> "ChosenReasoning":
        """For results: what makes the protocol repeatable."""
        from coevolve.remid.results import ChosenReasoning  # scoring does without pydantic

        if self.kind == "given":
            return ChosenReasoning(kind=self.kind, sha256=self.sha256)
        if not self.is_written or self.kind == "greedy":
            return ChosenReasoning(kind=self.kind)
        return ChosenReasoning(kind=self.kind, samples=self.samples, seed=self.seed)


def mixture(scores: Sequence[Scores]) -> Scores:
    """log mean over K reasonings of q2(y | x, r), for each response or pair."""
    if len(scores) == 1:
        return scores[0]
    sums = [one.sum for one in scores]
    return Scores(np.logaddexp.reduce(sums, axis=0) - np.log(len(sums)), scores[0].tokens)
