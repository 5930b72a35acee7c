"""The phases of a round: what each trains on, and what rewards it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coevolve.data.example import Example
from coevolve.prompts import core_features
from coevolve.recipe import Recipe
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role
from coevolve.training.engines import SftRow, run_grpo, run_sft, steps_of
from coevolve.training.evaluation import golden_responses
from coevolve.training.record import Advance, Record
from coevolve.training.scorers import ConnectorScore, EstimatorScore
from coevolve.training.seeds import derive_seed


class TrainerReport(TrainerCallback):
    """Hands a trainer's figures and its progress to the record."""

    def __init__(self, record: Record, advance: Advance, context: dict[str, Any], prefix: str):
        self.record, self.advance, self.context, self.prefix = record, advance, context, prefix

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs: Any
    ) -> None:
        values = {f"{self.prefix}/{name}": value for name, value in (logs or {}).items()}
        self.record.log({**self.context, f"{self.prefix}/phase_step": state.global_step, **values})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.advance(1)


@dataclass
class Trainee:
    """What the phases work on.

    Attributes:
        reasoning: for each training example the reasoning that the estimator is trained with.
        chosen: indices of the training examples that the last refresh drew; all of them before the first.
        updates: optimizer steps taken so far, by role; rolled-back ones count.
        rounds: the estimator's updates in each round, for baselines that are to have as many.
        where: round and phase, for the record.
    """

    recipe: Recipe
    estimator: ProbabilityEstimator
    train: Sequence[Example]
    reasoning: list[str]
    record: Record
    processes: int = 1
    updates: dict[Role, int] = field(default_factory=lambda: {CONNECTOR: 0, ESTIMATOR: 0})
    rounds: list[int] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)
    chosen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chosen = self.chosen or list(range(len(self.train)))

    def estimator_data(self) -> tuple[list[Example], list[str]]:
        """The examples that the estimator is trained on after a refresh, and their reasonings."""
        return [self.train[i] for i in self.chosen], [self.reasoning[i] for i in self.chosen]


def sft(
    trainee: Trainee, role: Role, rows: Sequence[SftRow], settings: Any, title: str, *labels: str | int, steps: int
) -> None:
    """SFT of a role, shown on the record."""
    with trainee.record.task(f"{title}, {steps} steps", steps) as advance:
        run_sft(
            trainee.estimator.roles,
            role,
            rows,
            settings,
            tokenizer=trainee.estimator.renderer.tokenizer,
            steps=steps,
            seed=derive_seed(trainee.recipe.seed, *labels),
            log_every=trainee.recipe.logging.every,
            callback=TrainerReport(trainee.record, advance, trainee.where, role),
        )


def connector_rows(estimator: ProbabilityEstimator, examples: Sequence[Example], traces: Sequence[str]) -> list[SftRow]:
    """x -> r."""
    render = estimator.renderer
    return [
        SftRow(render.prompt_ids(render.connector(example)), render.response_ids(trace))
        for example, trace in zip(examples, traces, strict=True)
    ]


def estimator_rows(
    estimator: ProbabilityEstimator, examples: Sequence[Example], reasoning: Sequence[str | None]
) -> list[SftRow]:
    """(x, features of r) -> y; with a reasoning of None, x -> y."""
    render = estimator.renderer
    return [
        SftRow(render.prompt_ids(render.estimator(example, text)), render.response_ids(response))
        for example, text, response in zip(examples, reasoning, golden_responses(examples), strict=True)
    ]


def connector_rl(trainee: Trainee, round_index: int) -> None:
    """Phase a: GRPO of the connector; the resident estimator's likelihood of the golden response is the reward."""
    settings = trainee.recipe.connector_rl
    render = trainee.estimator.renderer
    steps = steps_of(settings, len(trainee.train) * settings.num_generations, trainee.processes)
    weights = settings.rewards
    score = ConnectorScore(trainee.estimator, trainee.train, weights.target_words)
    with trainee.record.task(f"connector GRPO, {steps} steps", steps) as advance:
        run_grpo_with_reference(
            trainee,
            CONNECTOR,
            [render.connector(example) for example in trainee.train],
            [
                ("likelihood", score.likelihood, weights.likelihood),
                ("format", score.format, weights.format),
                ("length", score.length, weights.length),
            ],
            settings,
            steps=steps,
            seed=derive_seed(trainee.recipe.seed, "connector_rl", round_index),
            advance=advance,
        )
    trainee.updates[CONNECTOR] += steps


def refresh(trainee: Trainee, round_index: int) -> None:
    """Phase b: the connector, which never sees y, writes the reasonings that the estimator will be trained with."""
    settings = trainee.recipe.refresh
    rng = np.random.default_rng(derive_seed(trainee.recipe.seed, "refresh", round_index))
    count = min(settings.examples or len(trainee.train), len(trainee.train))
    chosen = np.sort(rng.permutation(len(trainee.train))[:count])
    trainee.chosen = chosen.tolist()
    rewritten = chosen[rng.random(count) >= settings.trace_share].tolist()
    examples = [trainee.train[index] for index in rewritten]
    with trainee.record.task(f"refresh, {len(examples)} reasonings", len(examples)) as advance:
        seed = derive_seed(trainee.recipe.seed, "refresh", round_index, "sampling") if settings.temperature else None
        texts = trainee.estimator.reason(examples, seed=seed, temperature=settings.temperature or 1.0, progress=advance)
    for index, text in zip(rewritten, texts, strict=True):
        trainee.reasoning[index] = text
    sections = trainee.estimator.renderer.prompts.sections
    unparsable = sum(core_features(text, sections) is None for text in texts)
    trainee.record.log({**trainee.where, "refresh/reasonings": len(texts), "refresh/without_features": unparsable})
    if unparsable:
        trainee.record.say(f"refresh: {unparsable} of {len(texts)} reasonings have no core features")


def estimator_sft(trainee: Trainee, round_index: int) -> None:
    """Phase c: SFT of the estimator with the reasonings that it will meet."""
    settings = trainee.recipe.estimator_sft
    examples, reasoning = trainee.estimator_data()
    steps = steps_of(settings, len(examples), trainee.processes)
    rows = estimator_rows(trainee.estimator, examples, reasoning)
    sft(trainee, ESTIMATOR, rows, settings, "estimator SFT", "estimator_sft", round_index, steps=steps)
    trainee.updates[ESTIMATOR] += steps


def estimator_rl(trainee: Trainee, round_index: int) -> None:
    """Phase d: GRPO of the estimator on its own responses, judged; golden likelihood may be added to the loss."""
    settings = trainee.recipe.estimator_rl
    render = trainee.estimator.renderer
    steps = steps_of(settings, len(trainee.train) * settings.num_generations, trainee.processes)
    examples, reasoning = trainee.estimator_data()
    prompts = [render.estimator(example, text) for example, text in zip(examples, reasoning, strict=True)]
    seed = derive_seed(trainee.recipe.seed, "estimator_rl", round_index)
    weights = settings.rewards
    score = EstimatorScore(trainee.estimator, examples, reasoning, weights.judge)
    with trainee.record.task(f"estimator GRPO, {steps} steps", steps) as advance:
        run_grpo_with_reference(
            trainee,
            ESTIMATOR,
            prompts,
            [("match", score.match, weights.match), ("format", score.format, weights.format)],
            settings,
            steps=steps,
            seed=seed,
            advance=advance,
            golden_rows=_shuffled(estimator_rows(trainee.estimator, examples, reasoning), seed),
            golden_nll_weight=settings.golden_nll_weight,
            needs_reference=weights.judge == "likelihood",
        )
    trainee.updates[ESTIMATOR] += steps


def run_grpo_with_reference(
    trainee: Trainee,
    role: Role,
    prompts: Sequence[str],
    named_rewards: list[tuple[str, Callable[..., list[float]], float]],
    settings: Any,
    *,
    steps: int,
    seed: int,
    advance: Advance,
    needs_reference: bool = False,
    **options: Any,
) -> None:
    """GRPO, beside a frozen copy of the role where the KL term or a reward asks for one."""

    def train(reference: Any) -> None:
        run_grpo(
            trainee.estimator.roles,
            role,
            prompts,
            [reward for reward in named_rewards if reward[2]],
            settings,
            renderer=trainee.estimator.renderer,
            steps=steps,
            seed=seed,
            log_every=trainee.recipe.logging.every,
            callback=TrainerReport(trainee.record, advance, trainee.where, role),
            reference=reference if settings.beta else None,
            **options,
        )

    if settings.beta or needs_reference:
        with trainee.estimator.roles.frozen(role) as reference:
            train(reference)
    else:
        train(None)


def _shuffled(rows: Sequence[SftRow], seed: int) -> list[SftRow]:
    return [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
