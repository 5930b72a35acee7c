"""A batch of a role-playing model's responses, as an exported estimator sees it."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from coevolve.data.example import Example
from coevolve.scoring.batching import Ids
from coevolve.scoring.by_form import ByForm
from coevolve.scoring.estimator import Examples, ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR
from coevolve.seeds import derive_seed
from coevolve.training.evaluation import golden_responses
from coevolve.training.rewards.batches import finished_texts
from coevolve.training.rewards.registry import RPM_REWARDS, Reward

END_OF_THINKING = "</think>"


class Others:
    """Other contexts of each example's subset, drawn by seed: always the same ones.

    An example that is alone in its subset has those of all.
    """

    def __init__(self, examples: Examples, count: int, seed: int):
        self.examples, self.count, self.seed = examples, count, seed
        self._of_tag: dict[str, list[int]] = {}
        for place, example in enumerate(examples):
            self._of_tag.setdefault(example.subset, []).append(place)

    def of(self, place: int) -> list[Example]:
        tagged = self._of_tag[self.examples[place].subset]
        eligible = tagged if len(tagged) > 1 else range(len(self.examples))
        others = [other for other in eligible if other != place]
        rng = np.random.default_rng(derive_seed(self.seed, "contexts", place))
        chosen = rng.permutation(len(others))[: self.count]
        return [self.examples[others[index]] for index in chosen]


class ResponseBatch:
    """N completions as TRL gives them, to `examples[index]`; a thought before one is no part of it.

    Attributes:
        texts: N responses; None where one is cut off, empty or, with `thinking`, without a thought.
    """

    figures: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        model: ProbabilityEstimator,
        judge: ByForm,
        examples: Examples,
        others: Others,
        completion_ids: Sequence[Ids],
        index: Ids,
        *,
        thinking: bool,
    ):
        self.judge, self.others, self.index = judge, others, index
        self.examples = [examples[row] for row in index]
        written = finished_texts(model, CONNECTOR, completion_ids)
        self.texts = [response_of(text, thinking) for text in written]
        self.usable = [text is not None for text in self.texts]

    @cached_property
    def likelihood(self) -> list[float | None]:
        """exp(mean token log q2(y | x, r))."""
        return [None if x is None else math.exp(x / n) for x, n in self._own]

    @cached_property
    def information(self) -> list[float | None]:
        """log q2(y | x, r) - log-mean over other contexts of the subset, nats per response."""
        rows = [row for row, use in enumerate(self.usable) if use]
        others = {row: self.others.of(self.index[row]) for row in rows}
        contexts = [context for row in rows for context in others[row]]
        responses = [self.texts[row] or "" for row in rows for _ in others[row]]
        rest = iter(self.judge.log_prob(contexts, responses).sum.tolist() if contexts else ())
        values: list[float | None] = [None] * len(self.texts)
        for row in rows:
            of_others = [next(rest) for _ in others[row]]
            own = self._own[row][0]
            assert own is not None
            values[row] = own - float(np.logaddexp.reduce(of_others) - math.log(len(of_others)))
        return values

    def columns(self) -> dict[str, list[Any]]:
        """What a user's reward gets beside what TRL gives it."""
        rows = [example.to_row() for example in self.examples]
        return {
            "example": rows,
            "golden_response": golden_responses(self.examples),
            "reasoning": self.texts,
        }

    @cached_property
    def _own(self) -> list[tuple[float | None, int]]:
        """log q2(y | x, r), nats, and tokens."""
        rows = [row for row, use in enumerate(self.usable) if use]
        found: list[tuple[float | None, int]] = [(None, 1)] * len(self.texts)
        if rows:
            texts = [self.texts[row] or "" for row in rows]
            scores = self.judge.log_prob([self.examples[row] for row in rows], texts)
            of_rows = zip(rows, scores.sum.tolist(), scores.tokens.tolist(), strict=True)
            for row, total, tokens in of_rows:
                found[row] = total, tokens
        return found


def response_of(text: str | None, thinking: bool) -> str | None:
    """What a completion says; None for nothing, and for no thought where there is to be one."""
    if text is None or (thinking and END_OF_THINKING not in text):
        return None
    return text.rpartition(END_OF_THINKING)[2].strip() or None


RPM_REWARDS.register("likelihood")(Reward(lambda batch, given: batch.likelihood))
RPM_REWARDS.register("information")(
    # Whatever is no response says nothing of its context; a response may say less than that, and is
    # worth a nat more all the same.
    Reward(lambda batch, given: batch.information, bounded=False, below=1.0)
)
