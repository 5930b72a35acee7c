"""Rewards that ask the resident models: from a batch of completions, as TRL hands them over, to one value each.

A completion that was cut off counts as empty, since nobody can know what it would have become.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import RewardError
from coevolve.prompts import Renderer, core_features
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.roles import REFERENCE
from coevolve.training import rewards
from coevolve.training.evaluation import golden_responses


class ConnectorScore:
    """The connector's rewards for a batch of completions, as TRL calls them."""

    def __init__(self, estimator: ProbabilityEstimator, examples: Sequence[Example], target_words: int):
        self.estimator = estimator
        self.examples = examples
        self.render = estimator.connector_renderer
        self.sections = self.render.prompts.sections
        self.target_words = target_words

    def likelihood(
        self, *, completion_ids: list[list[int]], index: list[int], log_metric: Any, **_: Any
    ) -> list[float]:
        texts = finished_texts(self.render, completion_ids)
        usable = [i for i, text in enumerate(texts) if core_features(text, self.sections) is not None]
        log_metric("unparsable_completions", 1 - len(usable) / len(texts))
        examples = [self.examples[index[i]] for i in usable]
        scores = self.estimator.log_prob(examples, golden_responses(examples), [texts[i] for i in usable])
        values = [0.0] * len(texts)
        for i, mean in zip(usable, scores.mean, strict=True):
            values[i] = rewards.likelihood(mean)
        return _finite("likelihood", values)

    def format(self, *, completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [rewards.reasoning_format(text, self.sections) for text in finished_texts(self.render, completion_ids)]

    def length(self, *, completion_ids: list[list[int]], **_: Any) -> list[float]:
        texts = finished_texts(self.render, completion_ids)
        return [rewards.features_length(text, self.sections, self.target_words) for text in texts]


class EstimatorScore:
    """The estimator's rewards for a batch of completions, as TRL calls them."""

    def __init__(
        self, estimator: ProbabilityEstimator, examples: Sequence[Example], reasoning: Sequence[str], judge: str
    ):
        self.estimator = estimator
        self.examples = examples
        self.reasoning = reasoning
        self.render = estimator.renderer
        self.judge = judge

    def match(self, *, completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float]:
        texts = finished_texts(self.render, completion_ids)
        usable = [i for i, text in enumerate(texts) if text]
        values = [0.0] * len(texts)
        if self.judge == "overlap":
            golden = golden_responses([self.examples[row] for row in index])
            judged = [rewards.word_overlap(texts[i], golden[i]) for i in usable]
        else:
            judged = self._match_ratios([index[i] for i in usable], [texts[i] for i in usable])
        for i, value in zip(usable, judged, strict=True):
            values[i] = value
        return _finite("match", values)

    def format(self, *, completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [rewards.response_format(text, bool(text)) for text in finished_texts(self.render, completion_ids)]

    def _match_ratios(self, rows: list[int], responses: list[str]) -> list[float]:
        """min(1, P(candidate) / P(golden)); a group shares its golden response, which is judged once."""
        distinct = sorted(set(rows))
        golden = golden_responses([self.examples[row] for row in distinct])
        reference = dict(zip(distinct, self._log_prob(distinct, golden), strict=True))
        judged = self._log_prob(rows, responses)
        return [rewards.match_ratio(value, reference[row]) for row, value in zip(rows, judged, strict=True)]

    def _log_prob(self, rows: list[int], responses: list[str]) -> list[float]:
        """What the judge thinks of each response, as a log-probability in nats."""
        render, reasoning = self.render, [self.reasoning[row] for row in rows]
        if self.judge == "base":
            # P(the judge answers that all of it is matched), the end of its answer included.
            prompts = [render.judge(text, response) for text, response in zip(reasoning, responses, strict=True)]
            targets = [render.response_ids(render.prompts.judge_match)] * len(rows)
            actor, per_token = None, False
        else:
            prompts = [render.estimator(self.examples[row], text) for row, text in zip(rows, reasoning, strict=True)]
            targets = [render.response_ids(response) for response in responses]
            actor, per_token = REFERENCE, True
        with self.estimator.roles.acting(actor) as model:
            values = score_rows(
                model,
                [render.prompt_ids(prompt) for prompt in prompts],
                targets,
                pad_id=render.tokenizer.pad_token_id,
                token_budget=self.estimator.token_budget,
                poll=self.estimator.poll,
            )
        return [float(value.mean() if per_token else value.sum()) for value in values]


def finished_texts(render: Renderer, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """The completions' texts; empty where the end of the turn was not reached."""
    return [render.decode(ids) if ids and ids[-1] == render.end_of_turn_id else "" for ids in completion_ids]


def _finite(name: str, values: list[float]) -> list[float]:
    for place, value in enumerate(values):
        if not np.isfinite(value):
            raise RewardError(f"reward {name!r} gave {value} for completion {place} of the batch; it must be finite.")
    return values
