"""How the probability of a response is made of the two models: a form.

    log p(y | x) = log sum_k w_k q2(y | x, r_k) - log sum_k w_k

A form gives the weights w_k and, for each k, one reasoning per example, or none. That is all:
`greedy` and `none` have one part, `marginal` has K equal ones that are drawn from q1, and `mixture`
has the part without reasoning beside the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import RecipeError
from coevolve.information.mixture import log_mean, log_mean_of_tokens
from coevolve.scoring.scores import Scores

Source = int | Literal["greedy", "none", "given"]
"""Of a part's texts: the seed by which they are drawn, or what else they are."""
ReasoningKind = Literal["greedy", "sampled", "marginal", "mixture", "none", "given"]
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
        """One per example, written without a look at its response; sampled if a seed is given."""
        ...


@dataclass(frozen=True)
class Reasoning:
    """A form. It moves perplexities by several per cent, so results state it.

    Attributes:
        kind: `greedy`, one reasoning decoded without chance; `sampled`, one drawn from q1(r | x);
            `marginal`, log mean over `samples` drawn ones of q2(y | x, r), for every pair; `none`,
            q2(y | x): EMI instead of R-EMI; `mixture`, `weight` times q2(y | x, r) plus the rest
            times q2(y | x), r being the greedy one, or of K `samples` each with its share of the
            weight; `given`, one that was written elsewhere.
        samples: K; a form of K parts is to be compared with mixtures of K only.
        seed: of what is drawn.
        weight: of reasoning in `mixture`.
        texts: of `given`, sample_ID -> reasoning.
        sha256: of `given`, of the file that they came from, for results.
    """

    kind: ReasoningKind = "greedy"
    samples: int = 1
    seed: int = 0
    weight: float | None = None
    texts: Mapping[str, str] = field(default_factory=dict, hash=False)
    sha256: str | None = None

    def __post_init__(self) -> None:
        kinds = get_args(ReasoningKind)
        if self.kind not in kinds:
            accepted = ", ".join(map(repr, kinds))
            raise RecipeError(f"reasoning is {self.kind!r}; accepted are {accepted}.")
        is_count = type(self.samples) is int and self.samples >= 1
        if not is_count or (self.samples > 1 and self.kind not in ("marginal", "mixture")):
            accepted = "integers from 1 up, and more than one for 'marginal' and 'mixture' only"
            found = f"reasoning {self.kind!r} with {self.samples!r} samples"
            raise RecipeError(f"{found}; accepted are {accepted}.")
        is_share = type(self.weight) in (int, float) and 0 <= (self.weight or 0) <= 1
        if is_share != (self.kind == "mixture") or not (is_share or self.weight is None):
            found = f"reasoning {self.kind!r} with weight {self.weight!r}"
            raise RecipeError(f"{found}; accepted is a number from 0 to 1, for 'mixture' only.")

    @property
    def name(self) -> str:
        """`greedy`, `marginal_4`, ..."""
        several = self.kind == "marginal" or self.samples > 1
        return f"{self.kind}_{self.samples}" if several else self.kind

    @property
    def is_written(self) -> bool:
        """Whether the connector writes any of it."""
        return self.kind not in ("none", "given")

    @property
    def steps(self) -> int:
        """How often each example is worked on: once for every reasoning, once for every score."""
        return sum(1 + (source not in ("none", "given")) for _, source in self._parts())

    @property
    def weights(self) -> list[float]:
        """Of each part, relative to one another."""
        return [weight for weight, _ in self._parts()]

    def write(
        self, connector: Connector, examples: Sequence[Example], advance: Advance | None = None
    ) -> list[list[str | None]]:
        """For each part one reasoning, or None, per example; `advance` is told of those written."""
        told: dict[str, Any] = {} if advance is None else {"progress": advance}

        def texts(source: Source) -> list[str | None]:
            if source == "none":
                return [None] * len(examples)
            if source == "given":
                return [self.texts[example.sample_id] for example in examples]
            drawn: dict[str, Any] = {} if source == "greedy" else {"seed": source}
            return list(connector.reason(examples, **told, **drawn))

        return [texts(source) for _, source in self._parts()]

    def values(self) -> dict[str, Any]:
        """For manifests and results: what makes it repeatable."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.kind in ("sampled", "marginal") or self.samples > 1:
            found |= {"samples": self.samples, "seed": self.seed}
        if self.weight is not None:
            found["weight"] = self.weight
        return found if self.sha256 is None else {**found, "sha256": self.sha256}

    def __str__(self) -> str:
        several = f"{self.samples} sampled per context (seed {self.seed})"
        reasoned = f"log mean over {several}" if self.samples > 1 else "one per context, greedy"
        return {
            "greedy": "one per context, greedy",
            "sampled": f"one per context, sampled (seed {self.seed})",
            "marginal": f"log mean over {several}",
            "mixture": f"{reasoned}, with weight {self.weight or 0:.4g}, beside none",
            "none": "none, q2(y | x)",
            "given": f"one per context, given (SHA-256 {self.sha256})",
        }[self.kind]

    def _parts(self) -> list[tuple[float, Source]]:
        """(relative weight, source) of each part that has weight."""
        if self.kind in ("greedy", "none", "given"):
            return [(1.0, self.kind)]
        drawn: list[Source] = [self.seed + k for k in range(self.samples)]
        if self.weight is None:
            return [(1.0, seed) for seed in drawn]
        shown: list[Source] = drawn if self.samples > 1 else ["greedy"]
        parts = [(self.weight, source) for source in shown]
        parts.append((self.samples * (1 - self.weight), "none"))
        return [part for part in parts if part[0]]


def combine(weights: Sequence[float], scores: Sequence[Scores]) -> Scores:
    """The scores of each response or pair by a form, from those by each of its parts."""
    if len(scores) == 1:
        return scores[0]
    return Scores(log_mean(weights, [one.sum for one in scores]), scores[0].tokens)


def combine_tokens(
    weights: Sequence[float], scores: Sequence[Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """As `combine`, of token log-probabilities."""
    return list(scores[0]) if len(scores) == 1 else log_mean_of_tokens(weights, scores)
