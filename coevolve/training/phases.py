"""The phases of a round: what each trains on, and what rewards it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import CoevolveError, RecipeError
from coevolve.prompts import core_features
from coevolve.recipe import Recipe
from coevolve.recipe.optimization import Sft
from coevolve.recipe.rl import ConnectorRl, EstimatorRl
from coevolve.recipe.rounds import Kind, Source
from coevolve.recipe.rpm import RpmGrpo
from coevolve.recipe.schema import Writing
from coevolve.registry import Registry, users_code
from coevolve.scoring.estimator import Examples, ProbabilityEstimator, Texts
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role
from coevolve.seeds import SEEDS, derive_seed
from coevolve.training import gate
from coevolve.training.context import Context
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.documents import Written
from coevolve.training.engines import run_sft, steps_of
from coevolve.training.evaluation import golden_responses
from coevolve.training.plans import planned
from coevolve.training.posterior import posterior
from coevolve.training.rewards.batches import ConnectorBatch, EstimatorBatch
from coevolve.training.rewards.phase import Batch, PhaseRewards
from coevolve.training.rewards.registry import CONNECTOR_REWARDS, ESTIMATOR_REWARDS
from coevolve.training.rl.algorithms import run_rl
from coevolve.training.rl.grpo import Rewards
from coevolve.training.rows import Lazy, Rows, SftRow
from coevolve.training.saving import save_if_due
from coevolve.training.schedule import Budget, ScheduledPhase, budget_of
from coevolve.training.state import RunState

REFRESHED_AT_ONCE = 512
"""Reasonings between two moments at which a refresh may be saved or left."""

REWARDS = {CONNECTOR: CONNECTOR_REWARDS, ESTIMATOR: ESTIMATOR_REWARDS}
Show = Callable[[int, str], dict[str, Any]]
"""From the index of a prompt and a completion of it to the texts to be seen, by column."""


def connector_rows(estimator: ProbabilityEstimator, examples: Examples, traces: Texts) -> Rows:
    """x -> r."""
    render = estimator.connector_renderer

    def row(index: int, form: int | None) -> SftRow:
        prompt = render.connector(examples[index])
        return SftRow(render.prompt_ids(prompt), render.response_ids(traces[index]))

    return Rows(len(examples), row)


def estimator_rows(
    estimator: ProbabilityEstimator,
    examples: Examples,
    reasoning: Sequence[Written | None],
    *,
    p_none: float = 0.0,
    seed: int = 0,
) -> Rows:
    """(x, features of r) -> y; with a reasoning of None, x -> y. Of several reasonings, pass after
    pass meets the next; with probability `p_none`, drawn by `seed` at each visit, none is shown.
    """
    render, responses = estimator.renderer, golden_responses(examples)

    def row(index: int, form: int | None) -> SftRow:
        written = None if form is None else reasoning[index]
        text = None if written is None else one_of(written, form or 0)
        prompt = render.estimator(examples[index], text)
        return SftRow(render.prompt_ids(prompt), render.response_ids(responses[index]))

    def form(index: int, place: int) -> int | None:
        if p_none and derive_seed(seed, place) < p_none * SEEDS:
            return None
        several = reasoning[index]
        return place // len(examples) % len(several) if isinstance(several, list) else 0

    return Rows(len(examples), row, form)


def one_of(reasoning: Written, turn: int) -> str:
    """The reasoning, or where there are several the one whose turn it is."""
    return reasoning[turn % len(reasoning)] if isinstance(reasoning, list) else reasoning


def rows_of_estimator(
    context: Context, name: str, reasoning: Sequence[Written | None], examples: Examples = ()
) -> Rows:
    """As the recipe has the estimator trained, reasoning dropout drawn by the training's name."""
    recipe, seed = context.recipe, derive_seed(context.recipe.seed, name, "without reasoning")
    of, p_none = context.estimator, recipe.p_none
    return estimator_rows(of, examples or context.train, reasoning, p_none=p_none, seed=seed)


def connector_rl(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """Phase a: RL of the connector, for the likelihood that the resident estimator gives."""
    settings, train = context.recipe.connector_rl, context.train
    assert settings is not None  # a recipe has the section of each of its phases
    gate.require_content(context, state, settings.least_content)
    render = context.estimator.connector_renderer
    read = partial(
        ConnectorBatch,
        context.estimator,
        train,
        target_words=settings.rewards.target_words,
        token_weighting=settings.rewards.token_weighting,
        group=settings.num_generations,
        processes=context.processes,
    )
    prompts = Lazy(len(train), lambda index: render.connector(train[index]))

    def show(index: int, completion: str) -> dict[str, Any]:
        golden = train[index].golden_response
        return {"context": last_turn(train[index]), "reasoning": completion, "response": golden}

    rewards = _rewards(context, CONNECTOR, settings, read)
    of = _rl_of_round(context, scheduled, settings, len(prompts))
    rl(context, state, CONNECTOR, *of, prompts, rewards, settings, show)


def refresh(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """Phase b: the connector, which never sees y, writes what the estimator is trained with."""
    settings, train = context.recipe.refresh, context.train
    seed = partial(derive_seed, context.recipe.seed, "refresh", scheduled.round)
    rng = np.random.default_rng(seed())
    count = min(settings.examples or len(train), len(train))
    chosen = np.sort(rng.permutation(len(train))[:count])
    rewritten = chosen[rng.random(count) >= settings.trace_share].tolist()
    write_reasonings(context, state, rewritten, settings, seed, "refresh")
    state.chosen = chosen.tolist()
    gate.note_refresh(state)


def write_reasonings(
    context: Context,
    state: RunState,
    rows: Sequence[int],
    settings: Writing,
    seed: Callable[..., int],
    title: str,
) -> None:
    """The connector writes some rows' reasonings anew; `seed` makes a seed from labels."""
    texts = write_texts(context, state, rows, settings, seed, f"{title}, {{}} reasonings")
    record, sections = context.record, context.estimator.renderer.prompts.sections
    unparsable = sum(core_features(text, sections) is None for text in texts)
    figures = {"refresh/reasonings": len(texts), "refresh/without_features": unparsable}
    record.log({**state.where, **figures, **(gate.content(context, texts) if texts else {})})
    if unparsable:
        record.say(f"refresh: {unparsable} of {len(texts)} reasonings have no core features")


def write_texts(
    context: Context,
    state: RunState,
    rows: Sequence[int],
    settings: Writing,
    seed: Callable[..., int],
    title: str,
) -> list[str]:
    """The connector's texts of some rows, for `state.reasoning`; a title with their number."""
    texts, total, record = state.texts, len(rows) * settings.samples, context.record
    title = title.format(total)
    task = record.task(title, total, key="refresh", where=state.where)
    with task as advance, context.distributed.writing():
        advance(len(texts))
        while len(texts) < total:
            sample, first = divmod(len(texts), len(rows))
            labels = ("sampling", sample) if sample else ("sampling",)
            texts += context.distributed.reason(
                [context.train[index] for index in rows[first : first + REFRESHED_AT_ONCE]],
                seed=seed(*labels) if settings.temperature else None,
                temperature=settings.temperature or 1.0,
                progress=advance,
            )
            save_if_due(context, state)
    state.texts = []
    for place, index in enumerate(rows):
        written = texts[place :: len(rows)]
        state.reasoning[index] = written[0] if len(written) == 1 else written
    return texts


def estimator_sft(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """Phase c: SFT of the estimator with the reasonings that it will meet."""
    examples, reasoning = _reasonings(context, state, scheduled.on or "refreshed")
    rows = rows_of_estimator(context, scheduled.phase.name, reasoning, examples)
    _sft_of_round(context, state, ESTIMATOR, scheduled, rows)


def connector_sft(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """SFT of the connector, on a posterior sample or, against RL's drift, on the traces again."""
    examples, several = _reasonings(context, state, scheduled.on or "traces")
    texts = [one_of(written, scheduled.round - 1) for written in several]
    rows = connector_rows(context.estimator, examples, texts)
    _sft_of_round(context, state, CONNECTOR, scheduled, rows)


def estimator_rl(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """Phase d: RL of the estimator on its own judged responses, perhaps with a golden term."""
    settings, render = context.recipe.estimator_rl, context.estimator.renderer
    assert settings is not None
    examples, several = _refreshed(context, state)
    reasoning = [one_of(texts, scheduled.round - 1) for texts in several]
    read = partial(
        EstimatorBatch,
        context.estimator,
        examples,
        reasoning,
        judge=settings.rewards.judge,
        group=settings.num_generations,
        processes=context.processes,
    )
    rows = rows_of_estimator(context, scheduled.phase.name, several, examples)
    prompts = Lazy(len(rows), lambda index: render.estimator(examples[index], reasoning[index]))
    order = np.random.default_rng(derive_seed(context.recipe.seed, "golden")).permutation(len(rows))

    shuffled = Rows(
        len(rows),
        lambda index, form: rows.make(order[index], form),
        lambda index, place: rows.form(order[index], place),
    )

    def show(index: int, completion: str) -> dict[str, Any]:
        shown = {"context": last_turn(examples[index]), "reasoning": reasoning[index]}
        return {**shown, "response": completion}

    golden: dict[str, Any] = {
        "golden_rows": shuffled,
        "golden_nll_weight": settings.golden_nll_weight,
    }
    rewards = _rewards(context, ESTIMATOR, settings, read)
    of = _rl_of_round(context, scheduled, settings, len(prompts))
    rl(context, state, ESTIMATOR, *of, prompts, rewards, settings, show, **golden)


def sft(
    context: Context,
    state: RunState,
    role: Role,
    name: str,
    title: str,
    rows: Rows,
    settings: Sft,
    budget: Budget | None = None,
    *,
    carry: bool = True,
) -> None:
    """SFT of a role; the budget is by default that of the settings, the rest as in `planned`."""
    steps = steps_of(settings, len(rows))
    budget = budget or Budget(steps, schedule=steps)
    with planned(context, state, role, name, title, budget, carry=carry) as plan:
        state.segment = run_sft(plan, rows, settings)


def rl(
    context: Context,
    state: RunState,
    role: Role,
    name: str,
    budget: Budget,
    prompts: Sequence[str],
    rewards: Rewards,
    settings: ConnectorRl | EstimatorRl | RpmGrpo,
    show: Show,
    **options: Any,
) -> None:
    """RL of a role, beside a frozen copy of it as the phase began where KL or a reward asks for
    one; otherwise as `run_grpo`. The first of what it wrote last go into the samples.
    """
    title = f"{role} {settings.algorithm.rpartition(':')[2].upper()}"
    frozen = settings.kl_weight or settings.rewards.asks_reference
    copy = context.roles.frozen(role, state.pair[role]) if frozen else nullcontext()
    updates = settings.updates_per_batch
    with planned(context, state, role, name, title, budget, updates=updates) as plan, copy as held:
        reference = held if settings.kl_weight else None
        segment = run_rl(plan, prompts, rewards, settings, reference=reference, **options)
        state.segment = segment
    samples = [dict(sample) for sample in segment.samples[: context.recipe.logging.samples]]
    rows = [show(x.pop("index"), x.pop("completion")) | x for x in samples]
    if rows:
        values = [list(row.values()) for row in rows]
        context.record.samples(f"samples/{name}", list(rows[0]), values, where=state.where)


def last_turn(example: Example) -> str:
    """The user's turn that is to be answered."""
    return example.dialogue[-1].text


def _rewards(
    context: Context,
    role: Role,
    settings: ConnectorRl | EstimatorRl,
    read: Callable[..., Batch],
) -> Rewards:
    field, named = f"{role}_rl.rewards", REWARDS[role]
    return PhaseRewards(field, settings.rewards, named, read, context.processes).functions()


def _sft_of_round(
    context: Context, state: RunState, role: Role, scheduled: ScheduledPhase, rows: Rows
) -> None:
    settings: Sft = getattr(context.recipe, scheduled.phase.name)
    budget = budget_of(context.recipe, scheduled, settings, len(rows))
    sft(context, state, role, scheduled.phase.name, f"{role} SFT", rows, settings, budget)


def _rl_of_round(
    context: Context, scheduled: ScheduledPhase, settings: ConnectorRl | EstimatorRl, prompts: int
) -> tuple[str, Budget]:
    completions = prompts * settings.num_generations
    return scheduled.phase.name, budget_of(context.recipe, scheduled, settings, completions)


def _reasonings(
    context: Context, state: RunState, on: Source
) -> tuple[Examples, Sequence[Written]]:
    """The examples of an SFT, and their reasonings."""
    if on == "posterior":
        places, texts = zip(*state.posterior, strict=True)
        return [context.train[i] for i in places], texts
    return (context.train, context.traces) if on == "traces" else _refreshed(context, state)


def _refreshed(context: Context, state: RunState) -> tuple[list[Example], list[Written]]:
    """The examples that the estimator is trained on after a refresh, and their reasonings."""
    return [context.train[i] for i in state.chosen], [state.reasoning[i] for i in state.chosen]


@dataclass(frozen=True)
class PhaseEntry:
    """Who does the work of a phase (it changes state and models), and which role it trains."""

    run: Callable[[Context, RunState, ScheduledPhase], None]
    role: Role | None
    kind: Kind


def _of_user(function: Callable[..., Any], where: str) -> PhaseEntry:
    def run(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
        with users_code(where, RecipeError, passing=(Interrupted, CoevolveError)):
            function(context=context, state=state, scheduled=scheduled)

    return PhaseEntry(run, None, "custom")


PHASES: Registry[PhaseEntry] = Registry(
    "rounds.phases",
    accepted="a function (context, state, scheduled) that changes the state and the models",
    given=("context", "state", "scheduled"),
    adopt=_of_user,
)
"""Every phase by its name in a recipe; `evaluate`, which does nothing but be judged, has none."""
for _name, _entry in {
    "posterior": PhaseEntry(posterior, None, "posterior"),
    "connector_rl": PhaseEntry(connector_rl, CONNECTOR, "rl"),
    "connector_sft": PhaseEntry(connector_sft, CONNECTOR, "sft"),
    "refresh": PhaseEntry(refresh, None, "refresh"),
    "estimator_sft": PhaseEntry(estimator_sft, ESTIMATOR, "sft"),
    "estimator_rl": PhaseEntry(estimator_rl, ESTIMATOR, "rl"),
}.items():
    PHASES.register(_name)(_entry)


def check_phases(recipe: Recipe) -> None:
    """Find the recipe's own phases, before anything is trained. Raises as `Registry.get`."""
    for phase in recipe.rounds.phases if recipe.rounds.count else ():
        if phase.kind != "evaluate":
            PHASES.get(phase.entry)


def run_phase(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """A phase in its place in the rounds, unless it has nothing more to gain."""
    if gate.has_stopped(state, scheduled):
        return
    index, name = scheduled.round, scheduled.phase.name
    state.where = {"coevolve/round": index, "coevolve/phase": name}
    context.record.say(f"round {index} of {context.recipe.rounds.count}: {scheduled.label}")
    before = state.updates[ESTIMATOR]
    PHASES[scheduled.phase.entry].run(context, state, scheduled)
    state.rounds += [0] * (index - len(state.rounds))
    state.rounds[index - 1] += state.updates[ESTIMATOR] - before
