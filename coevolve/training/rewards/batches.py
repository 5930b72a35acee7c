"""A batch of completions as all rewards of a role see it, with what the resident models say of it.

Rewards share the passes of the models: each is made when the first reward asks for it, and kept as
long as the batch. One value stands for each completion, None where a completion cannot be judged.
One that was cut off counts as empty, since nobody can know what it would have become.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np

from coevolve.errors import TooLongError
from coevolve.prompts import core_features
from coevolve.scoring.batching import Ids
from coevolve.scoring.estimator import Examples, ProbabilityEstimator, Texts
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, REFERENCE, Role
from coevolve.training.distributed.processes import Processes
from coevolve.training.evaluation import golden_responses
from coevolve.training.rewards import functions as rewards
from coevolve.training.rewards.registry import CONNECTOR_REWARDS, ESTIMATOR_REWARDS, Reward

T = TypeVar("T")
Value = TypeVar("Value")


class ConnectorBatch:
    """Reasonings of the connector: N completions as TRL gives them, of `examples[index]`.

    Args:
        token_weighting: of the rewards that are means over the golden response's tokens.
        group: G, completions of one prompt, side by side in the batch of all processes together.

    Attributes:
        texts: N texts; None where one is cut off or empty.
        features: N texts; None where there are no core features, so that it is not `usable`.
        log_uniform: what a uniform guess over the vocabulary gets, nats per token.
    """

    def __init__(
        self,
        estimator: ProbabilityEstimator,
        examples: Examples,
        completion_ids: Sequence[Ids],
        index: Ids,
        *,
        target_words: int,
        token_weighting: Literal["none", "change"] = "none",
        group: int = 1,
        processes: Processes | None = None,
    ):
        self.estimator, self.target_words = estimator, target_words
        prompts = estimator.renderer.prompts
        self.token_weighting, self.group, self.processes = token_weighting, group, processes
        self.sections, self.instruction = prompts.sections, prompts.instruction
        self.examples = [examples[row] for row in index]
        self.texts = finished_texts(estimator, CONNECTOR, completion_ids)
        self.features = [core_features(text or "", self.sections) for text in self.texts]
        self.usable = [features is not None for features in self.features]
        self.figures = {"unparsable_completions": 1 - sum(self.usable) / len(self.usable)}
        self.log_uniform = -math.log(len(estimator.renderer.tokenizer))

    @cached_property
    def golden(self) -> list[np.ndarray | None]:
        """N arrays (T,): log q2 of the golden response's tokens, nats, given r's core features.

        None without features, or where behind them the response does not fit the model.
        """
        return _filled_in(self.usable, self._golden(_indices(self.usable)))

    @cached_property
    def weights(self) -> Sequence[np.ndarray | float]:
        """N arrays (T,), 1 on average: what each token of the golden response counts."""
        if self.token_weighting == "none":
            return [1.0] * len(self.texts)

        def of_group(rows: Sequence[np.ndarray | None]) -> list[np.ndarray | float]:
            judged = [row for row in rows if row is not None]
            return [rewards.change_weights(np.stack(judged)) if judged else 1.0] * len(rows)

        return of_groups(self.processes, self.group, self.golden, of_group)

    @cached_property
    def bound_credits(self) -> list[float | None]:
        """What each adds to its group's K-sample bound; one not judged is a uniform guess."""
        ids = map(self.estimator.renderer.response_ids, golden_responses(self.examples))
        rows = [
            (None if x is None else float(x.sum()), len(y) * self.log_uniform)
            for x, y in zip(self.golden, ids, strict=True)
        ]

        def of_group(rows: Sequence[tuple[float | None, float]]) -> list[float | None]:
            log_probs = np.array([uniform if x is None else x for x, uniform in rows])
            credits = rewards.bound_credits(log_probs).tolist()
            return [None if x is None else y for (x, _), y in zip(rows, credits, strict=True)]

        return of_groups(self.processes, self.group, rows, of_group)

    @cached_property
    def unaided(self) -> list[np.ndarray]:
        """N arrays (T,): the same without reasoning, as `p_none` trains it, once per example."""
        distinct = {example.sample_id: example for example in self.examples}
        examples = list(distinct.values())
        nothing = [None] * len(examples)
        scores = self.estimator.token_log_probs(examples, golden_responses(examples), nothing)
        by_id = dict(zip(distinct, scores, strict=True))
        return [by_id[example.sample_id] for example in self.examples]

    def columns(self) -> dict[str, list[Any]]:
        """What a user's reward gets beside what TRL gives it."""
        return _columns(self.examples)

    def _golden(self, rows: Sequence[int]) -> Sequence[np.ndarray | None]:
        examples = [self.examples[row] for row in rows]
        try:
            texts = [self.texts[row] for row in rows]
            return self.estimator.token_log_probs(examples, golden_responses(examples), texts)
        except TooLongError:
            # The data was checked with room for a reasoning, so this is rare; each is asked alone.
            return [None] if len(rows) == 1 else [x for row in rows for x in self._golden([row])]


class EstimatorBatch:
    """Responses of the estimator, as `ConnectorBatch`; `reasoning` is what the estimator was shown.

    Attributes:
        texts: N texts; None where one is cut off or empty, so that it is not `usable`.
    """

    figures: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        estimator: ProbabilityEstimator,
        examples: Examples,
        reasoning: Texts,
        completion_ids: Sequence[Ids],
        index: Ids,
        *,
        judge: Literal["base", "overlap", "likelihood"],
        group: int,
        processes: Processes,
    ):
        self.estimator, self.render = estimator, estimator.renderer
        self.examples = [examples[row] for row in index]
        self.reasoning = [reasoning[row] for row in index]
        self.ids = completion_ids
        self.texts = finished_texts(estimator, ESTIMATOR, completion_ids)
        self.usable = [text is not None for text in self.texts]
        self.judge, self.group, self.processes = judge, group, processes
        self._index = index

    @cached_property
    def match(self) -> list[float | None]:
        """min(1, judged candidate / judged golden response)."""
        rows, texts = self._usable_ones()
        if self.judge == "overlap":
            golden = golden_responses([self.examples[row] for row in rows])
            values = list(map(rewards.word_overlap, texts, golden))
        elif self.judge == "likelihood":
            values = self._ratios([float(np.mean(x)) for x in self.reference if x is not None])
        else:
            values = self._ratios(self._judged(rows, texts))
        return _filled_in(self.usable, values)

    @cached_property
    def reference(self) -> list[np.ndarray | None]:
        """N arrays (T,): log-probabilities of the response's tokens, nats, as the phase began."""
        rows, texts = self._usable_ones()
        return _filled_in(self.usable, self._asked(rows, texts))

    @cached_property
    def kernel_scores(self) -> list[float | None]:
        """Each response's part in its group's kernel score; None for no usable response."""
        golden = map(self.render.response_ids, golden_responses(self.examples))
        mine = [
            (None if text is None else list(ids)[:-1], of[:-1])
            for text, ids, of in zip(self.texts, self.ids, golden, strict=True)
        ]
        return of_groups(self.processes, self.group, mine, self._group_scores)

    def columns(self) -> dict[str, list[Any]]:
        """What a user's reward gets beside what TRL gives it."""
        return {**_columns(self.examples), "reasoning": list(self.reasoning)}

    def _usable_ones(self) -> tuple[list[int], list[str]]:
        rows = _indices(self.usable)
        return rows, [self.texts[row] or "" for row in rows]

    def _group_scores(
        self, rows: Sequence[tuple[list[int] | None, list[int]]]
    ) -> list[float | None]:
        def alike(one: list[int] | None, other: list[int] | None) -> float:
            return 0.0 if one is None or other is None else rewards.similarity(one, other)

        to_golden = np.array([alike(ids, golden) for ids, golden in rows])
        among = np.array([[alike(one, other) for other, _ in rows] for one, _ in rows])
        scores = rewards.kernel_scores(to_golden, among).tolist()
        return [None if ids is None else x for (ids, _), x in zip(rows, scores, strict=True)]

    def _ratios(self, candidates: Sequence[float]) -> list[float]:
        """min(1, P(candidate) / P(golden)); a group's golden response is judged once."""
        usable = _indices(self.usable)
        first: dict[int, int] = {}
        for row in usable:
            first.setdefault(self._index[row], row)
        asked = [first[example] for example in sorted(first)]
        responses = golden_responses([self.examples[row] for row in asked])
        golden = dict(zip(sorted(first), self._judged(asked, responses), strict=True))
        return [
            rewards.match_ratio(value, golden[self._index[row]])
            for row, value in zip(usable, candidates, strict=True)
        ]

    def _judged(self, rows: Sequence[int], responses: Sequence[str]) -> list[float]:
        """What the judge thinks of each response, as a log-probability in nats."""
        if self.judge == "likelihood":
            return [float(values.mean()) for values in self._asked(rows, responses)]
        # P(the frozen base answers that all of it is matched), the end of its answer included.
        shown = [self.reasoning[row] for row in rows]
        prompts = [self.render.judge(*of) for of in zip(shown, responses, strict=True)]
        targets = [self.render.response_ids(self.render.prompts.judge_match)] * len(prompts)
        return [float(values.sum()) for values in self._scores(None, prompts, targets)]

    def _asked(self, rows: Sequence[int], responses: Sequence[str]) -> list[np.ndarray]:
        """Token log-probabilities of responses under the estimator as the phase began, nats."""
        prompts = [self.render.estimator(self.examples[row], self.reasoning[row]) for row in rows]
        targets = [self.render.response_ids(response) for response in responses]
        return self._scores(REFERENCE, prompts, targets)

    def _scores(
        self, actor: Literal["ref"] | None, prompts: Texts, targets: Sequence[Ids]
    ) -> list[np.ndarray]:
        with self.estimator.roles.acting(actor) as model:
            return score_rows(
                model,
                [self.render.prompt_ids(prompt) for prompt in prompts],
                targets,
                pad_id=self.render.tokenizer.pad_token_id,
                token_budget=self.estimator.token_budget,
                poll=self.estimator.poll,
            )


ESTIMATOR_REWARDS.register("match")(Reward(lambda batch, given: batch.match))
ESTIMATOR_REWARDS.register("kernel_score")(
    Reward(lambda x, given: x.kernel_scores, lambda x: rewards.lowest_kernel_score(x.group))
)
CONNECTOR_REWARDS.register("bound")(
    Reward(lambda x, given: x.bound_credits, lambda x: rewards.lowest_bound_credit(x.group))
)


def of_groups(
    processes: Processes | None,
    size: int,
    mine: Sequence[T],
    values: Callable[[Sequence[T]], Sequence[Value]],
) -> list[Value]:
    """A value for each of this process's rows, by groups of `size`, maybe on two processes."""
    shares = [mine] if processes is None else processes.gather(list(mine))
    everywhere = [row for share in shares for row in share]
    first = sum(len(share) for share in shares[: processes.rank if processes else 0])
    before = first % size
    found = [
        value
        for start in range(first - before, first + len(mine), size)
        for value in values(everywhere[start : start + size])
    ]
    return found[before : before + len(mine)]


def finished_texts(
    estimator: ProbabilityEstimator, role: Role, completion_ids: Sequence[Ids]
) -> list[str | None]:
    """The completions' texts; None for one that is cut off or empty."""
    render, stops = estimator.renderer_of(role), estimator.stop_ids(role)
    ended = [ids if ids and ids[-1] in stops else None for ids in completion_ids]
    return [None if ids is None else render.decode(ids) or None for ids in ended]


def _columns(examples: Examples) -> dict[str, list[Any]]:
    rows = [example.to_row() for example in examples]
    return {"example": rows, "golden_response": golden_responses(examples)}


def _indices(usable: Sequence[bool]) -> list[int]:
    return [row for row, use in enumerate(usable) if use]


def _filled_in(usable: Sequence[bool], values: Iterable[Any]) -> list[Any]:
    """The values of the usable ones, one after the other, and None for the rest."""
    rest = iter(values)
    return [next(rest) if use else None for use in usable]
