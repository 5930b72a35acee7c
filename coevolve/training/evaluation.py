"""Held-out perplexity of golden responses, and what stands beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import DivergenceError
from coevolve.information.perplexity import perplexity
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.scores import Scores
from coevolve.training.record.record import Record


@dataclass(frozen=True)
class Evaluated:
    """Scores of the golden responses of some examples, with the reasonings they were scored with."""

    scores: Scores
    reasoning: Sequence[str | None]

    @property
    def perplexity(self) -> float:
        """exp(-sum of log-probabilities / number of tokens), over all responses together."""
        return perplexity(self.scores)

    def measurable(self, what: str) -> "Evaluated":
        """Itself; raises DivergenceError, naming `what` was evaluated, where its perplexity is
        beyond all numbers.
        """
        if not math.isfinite(self.perplexity):
            raise DivergenceError(
                f"{what}: the perplexity of the golden responses is beyond all numbers, so the training diverged. "
                "Lower the learning rate, or max_grad_norm, of what was trained last, and begin anew."
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        return {"scores": scores_to_json(self.scores), "reasoning": list(self.reasoning)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Evaluated":
        """What `to_json` gave."""
        return cls(scores_from_json(values["scores"]), values["reasoning"])


def scores_to_json(scores: Scores) -> dict[str, list]:
    """As JSON values; a float's shortest decimal form is read back as the same float."""
    return {"sum": scores.sum.tolist(), "tokens": scores.tokens.tolist()}


def scores_from_json(values: Mapping[str, list]) -> Scores:
    """What `scores_to_json` gave."""
    return Scores(
        np.array(values["sum"], dtype=np.float64), np.array(values["tokens"], dtype=np.int64)
    )


def golden_responses(examples: Sequence[Example]) -> list[str]:
    """The golden responses, which a corpus has for every example."""
    responses = [example.golden_response for example in examples]
    assert all(response is not None for response in responses)
    return responses


def evaluate(
    estimator: ProbabilityEstimator,
    examples: Sequence[Example],
    record: Record,
    title: str,
    *,
    reasoning: Sequence[str | None] | None = None,
) -> Evaluated:
    """Score golden responses.

    Args:
        reasoning: what to show the estimator; by default what the connector writes greedily. A list
            of None asks the question without reasoning.
    """
    total = len(examples) * (2 if reasoning is None else 1)
    with record.task(title, total) as advance:
        if reasoning is None:
            reasoning = estimator.reason(examples, progress=advance)
        scores = estimator.log_prob(
            examples, golden_responses(examples), reasoning, progress=advance
        )
    return Evaluated(scores, reasoning)
