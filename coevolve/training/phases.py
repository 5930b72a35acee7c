"""The phases of a round: what each trains on, and what rewards it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coevolve.data.example import Example
from coevolve.prompts import core_features
from coevolve.recipe import Recipe
from coevolve.recipe.schema import Grpo, Sft
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role, Weights
from coevolve.training.diagnostics import warnings_in
from coevolve.training.engines import Plan, Segment, SftRow, Watcher, run_grpo, run_sft, steps_of
from coevolve.training.evaluation import golden_responses
from coevolve.training.processes import Processes
from coevolve.training.record import Record, Work
from coevolve.training.scorers import ConnectorScore, EstimatorScore
from coevolve.training.seeds import derive_seed
from coevolve.training.spread import SpreadEstimator

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
"""Figures of a trainer's summary that are about the steps since it was built, or about its rows as one epoch."""


class TrainerReport(TrainerCallback):
    """Hands a trainer's figures and its progress to the record.

    Attributes:
        latest: the figures that it logged last, under the names that they have in the record.
    """

    def __init__(self, record: Record, work: Work, context: dict[str, Any], prefix: str):
        self.record, self.work, self.context, self.prefix = record, work, context, prefix
        self.latest: dict[str, Any] = {}
        self._tokens: float | None = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs: Any
    ) -> None:
        logs = {name: value for name, value in (logs or {}).items() if name not in OF_ONE_SITTING}
        values = {f"{self.prefix}/{name}": value for name, value in logs.items()}
        if values:
            self.record.log({**self.context, f"{self.prefix}/phase_step": state.global_step, **values})
        self.latest.update(values)
        tokens = logs.get("num_tokens")
        if tokens is not None:
            self.work(0, tokens=int(tokens - (self._tokens or 0)))
            self._tokens = tokens

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.work(1)


class RunWatcher(Watcher, Protocol):
    """What looks after a run's phases while they run."""

    def after_part(self) -> None:
        """Between two parts of a phase that trains nothing; may save, raises Interrupted to leave it here."""


@dataclass
class Trainee:
    """What the phases work on, and what a checkpoint holds of it.

    Attributes:
        estimator: for work that differs from process to process, as rewards do.
        spread: the same models, for work that all processes share.
        reasoning: for each training example the reasoning that the estimator is trained with.
        chosen: indices of the training examples that the last refresh drew; all of them before the first.
        updates: optimizer steps taken so far, by role; rolled-back ones count.
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
    reasoning: list[str]
    record: Record
    processes: Processes
    watcher: RunWatcher
    updates: dict[Role, int] = field(default_factory=lambda: {CONNECTOR: 0, ESTIMATOR: 0})
    rounds: list[int] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)
    chosen: list[int] = field(default_factory=list)
    pair: dict[Role, Weights] = field(default_factory=dict)
    optimizers: dict[str, Weights] = field(default_factory=dict)
    segment: Segment | None = None
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
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
    trainee: Trainee, role: Role, title: str, steps: int, seed: int, train: Callable[[Plan], None], *, carry: str | None
) -> list[dict[str, Any]]:
    """A training phase of a role, from where it was left to its end; returns samples of what it wrote last.

    Args:
        carry: under this name the optimizer's state is found and left for the next such phase; None for neither.
    """
    if trainee.segment is None:
        carried = trainee.optimizers.get(carry, {}) if trainee.recipe.rounds.carry_optimizer else {}
        trainee.segment = Segment(optimizer=dict(carried))
    segment = trainee.segment
    if segment.weights:
        trainee.estimator.roles.load_weights(role, segment.weights)
    key = trainee.where.get("coevolve/phase", role)
    with trainee.record.task(f"{title}, {steps} steps", steps, key=key, where=trainee.where) as work:
        work(segment.step)
        report = TrainerReport(trainee.record, work, trainee.where, role)
        train(
            Plan(
                roles=trainee.estimator.roles,
                role=role,
                renderer=trainee.estimator.renderer_of(role),
                processes=trainee.processes,
                steps=steps,
                seed=seed,
                log_every=trainee.recipe.logging.every,
                callback=report,
                watcher=trainee.watcher,
                segment=segment,
                token_budget=trainee.recipe.evaluation.token_budget,
            )
        )
    for warning in warnings_in(report.latest):
        trainee.record.say(f"warning: {warning}")
    trainee.pair[role] = segment.weights or trainee.estimator.roles.weights(role)
    if carry is not None:
        trainee.optimizers[carry] = segment.optimizer
    trainee.updates[role] += steps
    trainee.segment = None
    return segment.samples


def sft(
    trainee: Trainee,
    role: Role,
    rows: Sequence[SftRow],
    settings: Sft,
    title: str,
    *labels: str | int,
    steps: int | None = None,
    carry: str | None = None,
) -> None:
    """SFT of a role.

    Args:
        labels: what the seed is derived from, beside the run's own.
        steps: optimizer steps, where they are not those of the settings.
    """
    run_phase(
        trainee,
        role,
        title,
        steps_of(settings, len(rows)) if steps is None else steps,
        derive_seed(trainee.recipe.seed, *labels),
        lambda plan: run_sft(plan, rows, settings),
        carry=carry,
    )


def connector_rows(estimator: ProbabilityEstimator, examples: Sequence[Example], traces: Sequence[str]) -> list[SftRow]:
    """x -> r."""
    render = estimator.connector_renderer
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
    render = trainee.estimator.connector_renderer
    weights = settings.rewards
    score = ConnectorScore(trainee.estimator, trainee.train, weights.target_words)
    rewards = [
        ("likelihood", score.likelihood, weights.likelihood),
        ("format", score.format, weights.format),
        ("length", score.length, weights.length),
    ]
    prompts = [render.connector(example) for example in trainee.train]
    written = grpo(trainee, CONNECTOR, "connector_rl", round_index, prompts, rewards, settings)
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


def refresh(trainee: Trainee, round_index: int) -> None:
    """Phase b: the connector, which never sees y, writes the reasonings that the estimator will be trained with."""
    settings = trainee.recipe.refresh
    rng = np.random.default_rng(derive_seed(trainee.recipe.seed, "refresh", round_index))
    count = min(settings.examples or len(trainee.train), len(trainee.train))
    chosen = np.sort(rng.permutation(len(trainee.train))[:count])
    rewritten = chosen[rng.random(count) >= settings.trace_share].tolist()
    seed = derive_seed(trainee.recipe.seed, "refresh", round_index, "sampling") if settings.temperature else None
    texts = trainee.texts
    title = f"refresh, {len(rewritten)} reasonings"
    with trainee.record.task(title, len(rewritten), key="refresh", where=trainee.where) as advance:
        advance(len(texts))
        while len(texts) < len(rewritten):
            part = [trainee.train[index] for index in rewritten[len(texts) : len(texts) + REFRESHED_AT_ONCE]]
            texts += trainee.spread.reason(part, seed=seed, temperature=settings.temperature or 1.0, progress=advance)
            trainee.watcher.after_part()
    trainee.chosen = chosen.tolist()
    for index, text in zip(rewritten, texts, strict=True):
        trainee.reasoning[index] = text
    sections = trainee.estimator.renderer.prompts.sections
    unparsable = sum(core_features(text, sections) is None for text in texts)
    trainee.record.log({**trainee.where, "refresh/reasonings": len(texts), "refresh/without_features": unparsable})
    if unparsable:
        trainee.record.say(f"refresh: {unparsable} of {len(texts)} reasonings have no core features")
    trainee.texts = []


def estimator_sft(trainee: Trainee, round_index: int) -> None:
    """Phase c: SFT of the estimator with the reasonings that it will meet."""
    rows = estimator_rows(trainee.estimator, *trainee.estimator_data())
    settings, name = trainee.recipe.estimator_sft, "estimator_sft"
    sft(trainee, ESTIMATOR, rows, settings, "estimator SFT", name, round_index, carry=name)


def estimator_rl(trainee: Trainee, round_index: int) -> None:
    """Phase d: GRPO of the estimator on its own responses, judged; golden likelihood may be added to the loss."""
    settings = trainee.recipe.estimator_rl
    render = trainee.estimator.renderer
    examples, reasoning = trainee.estimator_data()
    weights = settings.rewards
    score = EstimatorScore(trainee.estimator, examples, reasoning, weights.judge)
    rows = estimator_rows(trainee.estimator, examples, reasoning)
    order = np.random.default_rng(derive_seed(trainee.recipe.seed, "golden", round_index)).permutation(len(rows))
    written = grpo(
        trainee,
        ESTIMATOR,
        "estimator_rl",
        round_index,
        [render.estimator(example, text) for example, text in zip(examples, reasoning, strict=True)],
        [("match", score.match, weights.match), ("format", score.format, weights.format)],
        settings,
        golden_rows=[rows[index] for index in order],
        golden_nll_weight=settings.golden_nll_weight,
        needs_reference=weights.judge == "likelihood",
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
        {**texts(sample), **{name: value for name, value in sample.items() if name not in ("index", "completion")}}
        for sample in written[: trainee.recipe.logging.samples]
    ]
    if rows:
        values = [list(row.values()) for row in rows]
        trainee.record.samples(f"samples/{phase}", list(rows[0]), values, where=trainee.where)


def last_turn(example: Example) -> str:
    """The user's turn that is to be answered."""
    return example.dialogue[-1].text


def grpo(
    trainee: Trainee,
    role: Role,
    name: str,
    round_index: int,
    prompts: Sequence[str],
    named_rewards: list[tuple[str, Callable[..., list[float]], float]],
    settings: Grpo,
    *,
    needs_reference: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """GRPO of a role, beside a frozen copy of it as the phase began where the KL term or a reward asks for one."""

    def train(plan: Plan) -> None:
        with trainee.estimator.roles.frozen(role, trainee.pair[role]) if frozen else nullcontext() as reference:
            reference = reference if settings.beta else None
            run_grpo(plan, prompts, wanted, settings, reference=reference, **options)

    wanted = [reward for reward in named_rewards if reward[2]]
    frozen = bool(settings.beta) or needs_reference
    steps = steps_of(settings, len(prompts) * settings.num_generations)
    seed = derive_seed(trainee.recipe.seed, name, round_index)
    return run_phase(trainee, role, f"{role} GRPO", steps, seed, train, carry=name)
