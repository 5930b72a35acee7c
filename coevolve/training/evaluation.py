"""Held-out perplexity of golden responses, and what stands beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from coevolve.data.example import Example
from coevolve.information.perplexity import perplexity
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.scores import Scores
from coevolve.training.record import Record


@dataclass(frozen=True)
class Evaluated:
    """Scores of the golden responses of some examples, with the reasonings they were scored with."""

    scores: Scores
    reasoning: Sequence[str | None]

    @property
    def perplexity(self) -> float:
        """exp(-sum of log-probabilities / number of tokens), over all responses together."""
        return perplexity(self.scores)


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
        reasoning: what to show the estimator; by default what the connector writes greedily. A list of None asks
            the question without reasoning.
    """
    total = len(examples) * (2 if reasoning is None else 1)
    with record.task(title, total) as advance:
        if reasoning is None:
            reasoning = estimator.reason(examples, progress=advance)
        scores = estimator.log_prob(examples, golden_responses(examples), reasoning, progress=advance)
    return Evaluated(scores, reasoning)
