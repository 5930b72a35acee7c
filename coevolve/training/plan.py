"""What a run will do, by its recipe and the number of its examples, before it does it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coevolve.recipe import Recipe
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role
from coevolve.training.engines import steps_of
from coevolve.training.schedule import ScheduledPhase, budget_of, scheduled_phases


@dataclass(frozen=True)
class Step:
    """A part of a run.

    Attributes:
        role: whose updates they are.
        updates, rows: of the optimizer, and rows (completions in RL) of each.
        texts, tokens: how many are written, and of how many tokens each at most.
    """

    what: str
    updates: int = 0
    rows: int = 0
    texts: int = 0
    tokens: int = 0
    role: Role | None = None


def plan(recipe: Recipe, train: int, validation: int, tests: int) -> list[Step]:
    """All parts in order, for so many examples. A phase that may stop early counts in full, and so
    does a posterior sample, which leaves out examples without a candidate that ends.
    """
    cold, phases = list(_cold_start(recipe, train)), list(_rounds(recipe, train))
    gates = validation * (1 + _written_anew(recipe))
    reasoning, samples = recipe.model.max_reasoning_tokens, recipe.evaluation.marginal_samples
    judged = [Step("evaluation on held-out examples", texts=gates, tokens=reasoning)]
    each = tests * (1 + samples)
    judged.append(Step("evaluation on test examples", texts=each, tokens=reasoning))
    return [*cold, *phases, *judged, *_baselines(recipe, train, each, phases)]


def _cold_start(recipe: Recipe, train: int) -> Iterator[Step]:
    cold, reasoning = recipe.cold_start, recipe.model.max_reasoning_tokens
    parts = cold.refresh.cross_fit if cold.refresh else 0
    for part in range(parts):
        size = len(range(part, train, parts))
        what = f"cold start: connector {part + 1} of {parts}"
        steps = steps_of(cold.connector, train - size)
        assert cold.refresh is not None  # since there are parts
        texts = round(size * (1 - cold.refresh.trace_share)) * cold.refresh.samples
        yield Step(what, steps, cold.connector.train_batch_size, texts, reasoning)
    if cold.refresh is None or cold.refresh.connector == "all":
        steps = steps_of(cold.connector, train)
        yield Step("cold start: connector", steps, cold.connector.train_batch_size)
    for name, settings in (("direct", cold.direct), ("estimator", cold.estimator)):
        if settings is not None:
            steps = steps_of(settings, train)
            yield Step(f"cold start: {name}", steps, settings.train_batch_size)


def _rounds(recipe: Recipe, train: int) -> Iterator[Step]:
    drawn = {
        "posterior": (recipe.posterior.examples or train, recipe.posterior.samples),
        "refresh": (recipe.refresh.examples or train, recipe.refresh.samples),
    }
    for scheduled in scheduled_phases(recipe):
        phase, what = scheduled.phase, f"round {scheduled.round}: {scheduled.label}"
        if phase.kind in drawn:
            examples, samples = drawn[phase.kind]
            texts = min(examples, train) * samples
            yield Step(what, texts=texts, tokens=recipe.model.max_reasoning_tokens)
        elif phase.trains:
            yield _training(recipe, scheduled, what, train)
        elif phase.kind == "custom":
            yield Step(what)


def _written_anew(recipe: Recipe) -> int:
    """How many gates have a changed connector write for the held-out examples."""
    count, changed = 0, False
    for scheduled in scheduled_phases(recipe):
        changed |= scheduled.phase.trains and scheduled.phase.role == CONNECTOR
        if scheduled.gated and changed:
            count, changed = count + 1, False
    return count


def _training(recipe: Recipe, scheduled: ScheduledPhase, what: str, train: int) -> Step:
    phase, settings = scheduled.phase, getattr(recipe, scheduled.phase.name)
    if phase.kind == "rl":
        budget = budget_of(recipe, scheduled, settings, train * settings.num_generations)
        batches = math.ceil(budget.steps / settings.updates_per_batch)
        texts = batches * settings.updates_per_generation * settings.train_batch_size
        room = settings.max_completion_length
        return Step(what, budget.steps, settings.train_batch_size, texts, room, phase.role)
    rows = train
    if scheduled.on == "refreshed":
        rows = min(recipe.refresh.examples or train, train)
    if scheduled.on == "posterior":
        rows = min(recipe.posterior.examples or train, train) * recipe.posterior.resampled
    budget = budget_of(recipe, scheduled, settings, rows)
    return Step(what, budget.steps, settings.train_batch_size, role=phase.role)


def _baselines(recipe: Recipe, train: int, each: int, phases: Sequence[Step]) -> Iterator[Step]:
    wanted, reasoning = recipe.baselines, recipe.model.max_reasoning_tokens
    settings = recipe.estimator_sft or recipe.cold_start.estimator
    updates = sum(step.updates for step in phases if step.role == ESTIMATOR)
    if wanted.without_corl:
        yield Step("without_corl", updates, settings.train_batch_size, each, reasoning)
    elif wanted.oracle:
        yield Step("without_corl, for the oracle", updates, settings.train_batch_size)
    for member in range(max(wanted.ensemble, 1) if wanted.without_reasoning else 0):
        cold = recipe.cold_start
        own = steps_of(cold.estimator, train) + updates
        if member and cold.direct:
            own += steps_of(cold.direct, train)
        what = "without_reasoning" + (f" {member + 1}" if member else "")
        yield Step(what, own, cold.estimator.train_batch_size)
