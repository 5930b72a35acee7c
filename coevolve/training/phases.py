"""The phases of a round: what each trains on, and what rewards it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coevolve.data.example import Example
from coevolve.prompts import core_features
from coevolve.recipe import Recipe
from coevolve.recipe.optimization import Sft
from coevolve.recipe.rl import Grpo
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role, Weights
from coevolve.seeds import derive_seed
from coevolve.training.diagnostics import warnings_in
from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.spread import SpreadEstimator
from coevolve.training.engines import (
    Lazy,
    Plan,
    Schedule,
    Segment,
    SftRow,
    Watcher,
    is_own,
    run_sft,
    steps_of,
)
from coevolve.training.evaluation import golden_responses
from coevolve.training.record.record import Record, Work
from coevolve.training.rewards.registry import CONNECTOR_REWARDS, ESTIMATOR_REWARDS, Judging
from coevolve.training.rewards.scorers import ConnectorBatch, EstimatorBatch
from coevolve.training.rl.ppo import run_rl
from coevolve.training.schedule import Budget, Turn, budget_of, updates_per_batch

REFRESHED_AT_ONCE = 512
"""Reasonings between two moments at which a refresh may be saved or left."""


OF_ONE_SITTING = (
    "epoch",
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
)
"""Figures of a trainer's summary that are about the steps since it was built, or about its rows as
one epoch.
"""


class TrainerReport(TrainerCallback):
    """Hands a trainer's figures and its progress to the record.

    Attributes:
        latest: the figures that it logged last, under the names that they have in the record.
    """

    def __init__(
        self, record: Record, work: Work, context: dict[str, Any], prefix: str, first: int
    ):
        self.record, self.work, self.context, self.prefix, self.first = (
            record,
            work,
            context,
            prefix,
            first,
        )
        self.latest: dict[str, Any] = {}
        self._tokens: float | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs=None,
        **kwargs: Any,
    ) -> None:
        logs = {name: value for name, value in (logs or {}).items() if name not in OF_ONE_SITTING}
        values = {f"{self.prefix}/{name}": value for name, value in logs.items()}
        if values:
            self.record.log(
                {
                    **self.context,
                    f"{self.prefix}/phase_step": state.global_step - self.first,
                    **values,
                }
            )
        self.latest.update(values)
        tokens = logs.get("num_tokens")
        if tokens is not None:
            self.work(0, tokens=int(tokens - (self._tokens or 0)))
            self._tokens = tokens

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.work(1)


class RunWatcher(Watcher, Protocol):
    """What looks after a run's phases while they run."""

    def after_part(self) -> None:
        """Between two parts of a phase that trains nothing; may save, raises Interrupted to leave
        it here.
        """


@dataclass
class Trainee:
    """What the phases work on, and what a checkpoint holds of it.

    Attributes:
        estimator: for work that differs from process to process, as rewards do.
        spread: the same models, for work that all processes share.
        traces: for each training example the teacher's reasoning.
        reasoning: the one that the estimator is trained with.
        chosen: indices of the training examples that the last refresh drew; all of them before the
            first.
        updates: optimizer steps taken so far, by role; rolled-back ones count.
        progress: where the next phase of each name goes on in its data, in optimizer steps;
            rolled-back ones count.
        rounds: the estimator's updates in each round, for baselines that are to have as many.
        where: round and phase, for the record.
        pair: weights of both roles as they are between two phases.
        optimizers: optimizer states to go on with, by phase.
        segment: the training phase under way, if one is.
        texts: what the phase under way has written so far.
    """

    recipe: Recipe
    estimator: ProbabilityEstimator
    spread: SpreadEstimator
    train: Sequence[Example]
    traces: Sequence[str]
    record: Record
    processes: Processes
    watcher: RunWatcher
    updates: dict[Role, int] = field(default_factory=lambda: {CONNECTOR: 0, ESTIMATOR: 0})
    progress: dict[str, int] = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)
    reasoning: list[str] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    pair: dict[Role, Weights] = field(default_factory=dict)
    optimizers: dict[str, Weights] = field(default_factory=dict)
    segment: Segment | None = None
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reasoning = self.reasoning or list(self.traces)
        self.chosen = self.chosen or list(range(len(self.train)))
        self.pair = self.pair or {role: self.estimator.roles.weights(role) for role in ROLES}

    def estimator_data(self) -> tuple[list[Example], list[str]]:
        """The examples that the estimator is trained on after a refresh, and their reasonings."""
        return [self.train[i] for i in self.chosen], [self.reasoning[i] for i in self.chosen]

    def load(self, role: Role, weights: Weights) -> None:
        """Give a role other weights."""
        self.estimator.roles.load_weights(role, weights)
        self.pair[role] = weights


def run_phase(
    trainee: Trainee,
    role: Role,
    name: str,
    title: str,
    budget: Budget,
    train: Callable[[Plan], None],
    *,
    carry: bool = True,
    updates: int = 1,
) -> list[dict[str, Any]]:
    """A training phase of a role, from where it was left to its end; returns samples of what it
    wrote last.

    Args:
        name: phases of one name are one training, done in parts: seed, place in the data and
            optimizer go on.
        carry: go on with the optimizer's state as well, and leave it for the next phase of the
            name.
        updates: a phase begins at a multiple of so many steps, with completions of its own.
    """
    first = math.ceil(trainee.progress.get(name, 0) / updates) * updates
    if trainee.segment is None:
        carried, whole = (
            trainee.optimizers.get(name, {}) if carry else {},
            trainee.recipe.rounds.carry_optimizer,
        )
        # A new optimizer, where one is asked for, still goes on with the value function that there
        # is.
        optimizer = {key: value for key, value in carried.items() if whole or is_own(key)}
        trainee.segment = Segment(step=first, optimizer=optimizer)
    segment = trainee.segment
    if segment.weights:
        trainee.estimator.roles.load_weights(role, segment.weights)
    key = trainee.where.get("coevolve/phase", role)
    length = f"{budget.steps} steps" if budget.tokens is None else f"{budget.tokens} tokens"
    with trainee.record.task(
        f"{title}, {length}", budget.steps, key=key, where=trainee.where
    ) as work:
        work(segment.step - first)
        report = TrainerReport(trainee.record, work, trainee.where, role, first)
        train(
            Plan(
                roles=trainee.estimator.roles,
                role=role,
                renderer=trainee.estimator.renderer_of(role),
                processes=trainee.processes,
                first=first,
                steps=first + budget.steps,
                tokens=budget.tokens,
                schedule=Schedule(
                    0 if budget.done is None else first - budget.done, budget.schedule
                ),
                seed=derive_seed(trainee.recipe.seed, name),
                log_every=trainee.recipe.logging.every,
                callback=report,
                watcher=trainee.watcher,
                segment=segment,
                token_budget=trainee.recipe.evaluation.token_budget,
                folder=trainee.record.folder,
            )
        )
    for warning in warnings_in(report.latest):
        trainee.record.say(f"warning: {warning}")
    trainee.pair[role] = segment.weights or trainee.estimator.roles.weights(role)
    if carry:
        trainee.optimizers[name] = segment.optimizer
    trainee.updates[role] += segment.step - first
    trainee.progress[name] = segment.step
    trainee.segment = None
    return segment.samples


def sft(
    trainee: Trainee,
    role: Role,
    name: str,
    title: str,
    rows: Sequence[SftRow],
    settings: Sft,
    budget: Budget | None = None,
    *,
    carry: bool = True,
) -> None:
    """SFT of a role; the budget is by default that of the settings, the rest as in `run_phase`."""
    steps = steps_of(settings, len(rows))
    budget = budget or Budget(steps, schedule=steps)
    run_phase(
        trainee, role, name, title, budget, lambda plan: run_sft(plan, rows, settings), carry=carry
    )


def connector_rows(
    estimator: ProbabilityEstimator, examples: Sequence[Example], traces: Sequence[str]
) -> Sequence[SftRow]:
    """x -> r."""
    render = estimator.connector_renderer

    def row(index: int) -> SftRow:
        prompt = render.connector(examples[index])
        return SftRow(render.prompt_ids(prompt), render.response_ids(traces[index]))

    return Lazy(len(examples), row)


def estimator_rows(
    estimator: ProbabilityEstimator, examples: Sequence[Example], reasoning: Sequence[str | None]
) -> Sequence[SftRow]:
    """(x, features of r) -> y; with a reasoning of None, x -> y."""
    render, responses = estimator.renderer, golden_responses(examples)

    def row(index: int) -> SftRow:
        prompt = render.estimator(examples[index], reasoning[index])
        return SftRow(render.prompt_ids(prompt), render.response_ids(responses[index]))

    return Lazy(len(examples), row)


def connector_rl(trainee: Trainee, turn: Turn) -> None:
    """Phase a: GRPO of the connector; the resident estimator's likelihood of the golden response is
    the reward.
    """
    settings = trainee.recipe.connector_rl
    render = trainee.estimator.connector_renderer
    judging = Judging(
        "connector_rl.rewards",
        settings.rewards,
        CONNECTOR_REWARDS,
        partial(
            ConnectorBatch,
            trainee.estimator,
            trainee.train,
            target_words=settings.rewards.target_words,
        ),
        trainee.processes,
    )
    prompts = Lazy(len(trainee.train), lambda index: render.connector(trainee.train[index]))
    written = rl(trainee, CONNECTOR, turn, prompts, judging.functions(), settings)
    show_samples(
        trainee,
        "connector_rl",
        written,
        lambda sample: {
            "context": last_turn(trainee.train[sample["index"]]),
            "reasoning": sample["completion"],
            "response": trainee.train[sample["index"]].golden_response,
        },
    )


def refresh(trainee: Trainee, turn: Turn) -> None:
    """Phase b: the connector, which never sees y, writes the reasonings that the estimator will be
    trained with.
    """
    settings = trainee.recipe.refresh
    rng = np.random.default_rng(derive_seed(trainee.recipe.seed, "refresh", turn.round))
    count = min(settings.examples or len(trainee.train), len(trainee.train))
    chosen = np.sort(rng.permutation(len(trainee.train))[:count])
    rewritten = chosen[rng.random(count) >= settings.trace_share].tolist()
    seed = (
        derive_seed(trainee.recipe.seed, "refresh", turn.round, "sampling")
        if settings.temperature
        else None
    )
    texts = trainee.texts
    title = f"refresh, {len(rewritten)} reasonings"
    with trainee.record.task(title, len(rewritten), key="refresh", where=trainee.where) as advance:
        advance(len(texts))
        while len(texts) < len(rewritten):
            part = [
                trainee.train[index]
                for index in rewritten[len(texts) : len(texts) + REFRESHED_AT_ONCE]
            ]
            texts += trainee.spread.reason(
                part, seed=seed, temperature=settings.temperature or 1.0, progress=advance
            )
            trainee.watcher.after_part()
    trainee.chosen = chosen.tolist()
    for index, text in zip(rewritten, texts, strict=True):
        trainee.reasoning[index] = text
    sections = trainee.estimator.renderer.prompts.sections
    unparsable = sum(core_features(text, sections) is None for text in texts)
    trainee.record.log(
        {**trainee.where, "refresh/reasonings": len(texts), "refresh/without_features": unparsable}
    )
    if unparsable:
        trainee.record.say(
            f"refresh: {unparsable} of {len(texts)} reasonings have no core features"
        )
    trainee.texts = []


def estimator_sft(trainee: Trainee, turn: Turn) -> None:
    """Phase c: SFT of the estimator with the reasonings that it will meet."""
    rows = estimator_rows(trainee.estimator, *trainee.estimator_data())
    _sft_in_turn(trainee, ESTIMATOR, turn, rows, trainee.recipe.estimator_sft)


def connector_sft(trainee: Trainee, turn: Turn) -> None:
    """SFT of the connector on the teacher's reasonings once more, where RL leads it too far away
    from them.
    """
    rows = connector_rows(trainee.estimator, trainee.train, trainee.traces)
    _sft_in_turn(trainee, CONNECTOR, turn, rows, trainee.recipe.connector_sft)


def _sft_in_turn(
    trainee: Trainee, role: Role, turn: Turn, rows: Sequence[SftRow], settings: Sft
) -> None:
    budget = budget_of(trainee.recipe, turn, settings, len(rows))
    sft(trainee, role, turn.phase.name, f"{role} SFT", rows, settings, budget)


def estimator_rl(trainee: Trainee, turn: Turn) -> None:
    """Phase d: GRPO of the estimator on its own responses, judged; golden likelihood may be added
    to the loss.
    """
    settings = trainee.recipe.estimator_rl
    render = trainee.estimator.renderer
    examples, reasoning = trainee.estimator_data()
    judging = Judging(
        "estimator_rl.rewards",
        settings.rewards,
        ESTIMATOR_REWARDS,
        partial(
            EstimatorBatch,
            trainee.estimator,
            examples,
            reasoning,
            judge=settings.rewards.judge,
            group=settings.num_generations,
            processes=trainee.processes,
        ),
        trainee.processes,
    )
    rows = estimator_rows(trainee.estimator, examples, reasoning)
    order = np.random.default_rng(derive_seed(trainee.recipe.seed, "golden")).permutation(len(rows))
    written = rl(
        trainee,
        ESTIMATOR,
        turn,
        Lazy(len(examples), lambda index: render.estimator(examples[index], reasoning[index])),
        judging.functions(),
        settings,
        golden_rows=Lazy(len(rows), lambda place: rows[order[place]]),
        golden_nll_weight=settings.golden_nll_weight,
        needs_reference=settings.rewards.asks_reference,
    )
    show_samples(
        trainee,
        "estimator_rl",
        written,
        lambda sample: {
            "context": last_turn(examples[sample["index"]]),
            "reasoning": reasoning[sample["index"]],
            "response": sample["completion"],
        },
    )


def show_samples(
    trainee: Trainee,
    phase: str,
    written: Sequence[dict[str, Any]],
    texts: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Put the first few of what an RL phase wrote last into the table of samples."""
    rows = [
        {
            **texts(sample),
            **{
                name: value for name, value in sample.items() if name not in ("index", "completion")
            },
        }
        for sample in written[: trainee.recipe.logging.samples]
    ]
    if rows:
        values = [list(row.values()) for row in rows]
        trainee.record.samples(f"samples/{phase}", list(rows[0]), values, where=trainee.where)


def last_turn(example: Example) -> str:
    """The user's turn that is to be answered."""
    return example.dialogue[-1].text


def rl(
    trainee: Trainee,
    role: Role,
    turn: Turn,
    prompts: Sequence[str],
    named_rewards: list[tuple[str, Callable[..., list[float]], float]],
    settings: Grpo,
    *,
    needs_reference: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """RL of a role, beside a frozen copy of it as the phase began where the KL term or a reward
    asks for one.
    """

    def train(plan: Plan) -> None:
        with (
            trainee.estimator.roles.frozen(role, trainee.pair[role])
            if frozen
            else nullcontext() as reference
        ):
            reference = reference if settings.kl_weight else None
            run_rl(plan, prompts, named_rewards, settings, reference=reference, **options)

    frozen = bool(settings.kl_weight) or needs_reference
    budget = budget_of(trainee.recipe, turn, settings, len(prompts) * settings.num_generations)
    updates = updates_per_batch(settings)
    return run_phase(
        trainee,
        role,
        turn.phase.name,
        f"{role} {settings.algorithm.upper()}",
        budget,
        train,
        updates=updates,
    )


PHASES: Mapping[str, Callable[[Trainee, Turn], None]] = MappingProxyType(
    {
        "connector_rl": connector_rl,
        "connector_sft": connector_sft,
        "refresh": refresh,
        "estimator_sft": estimator_sft,
        "estimator_rl": estimator_rl,
    }
)
"""What does the work of a phase, by its name."""
