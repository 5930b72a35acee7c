"""From the budget of a training phase to the plan that an engine follows, and back to the state."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from coevolve.scoring.roles import Role
from coevolve.seeds import derive_seed
from coevolve.training.context import Context
from coevolve.training.diagnostics import warnings_in
from coevolve.training.engines import LeftHalfway, Plan, Schedule, Segment, is_own
from coevolve.training.record.record import Record, Work
from coevolve.training.saving import Watch
from coevolve.training.schedule import Budget
from coevolve.training.state import RunState

SPOKEN = ("loss", "reward", "kl")
"""Figures that a person is told, as means over the steps since the last time."""


class TrainerReport(TrainerCallback):
    """Hands a trainer's figures of every step, as `ROLE/NAME`, and its progress to the record, and
    tells a person how it goes `every` so many steps.
    """

    def __init__(
        self, record: Record, work: Work, where: dict[str, Any], role: Role, first: int, every: int
    ):
        self.record, self.work, self.where = record, work, where
        self.role, self.first, self.every = role, first, every
        self._last: deque[dict[str, Any]] = deque(maxlen=every)
        self._tokens = 0.0

    @property
    def latest(self) -> dict[str, float]:
        """Means over the last steps that have the figure; TRL logs None for what is no number."""
        names = dict.fromkeys(name for step in self._last for name in step)
        of = {
            name: [x for step in self._last if (x := step.get(name)) is not None] for name in names
        }
        return {name: sum(values) / len(values) for name, values in of.items() if values}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        # Of the last step comes a summary as well, which is about one sitting and has nothing new.
        if "train_runtime" not in logs:
            values = {f"{self.role}/{name}": x for name, x in logs.items() if name != "epoch"}
            step = state.global_step - self.first
            self.record.log({**self.where, f"{self.role}/phase_step": step, **values})
            self._last.append(values)
            if state.global_step % self.every == 0:
                self._tell(step)
        tokens = logs.get("num_tokens")
        if tokens is not None:
            self.work(0, tokens=int(tokens - self._tokens))
            self._tokens = tokens

    def _tell(self, step: int) -> None:
        latest, names = self.latest, {name: f"{self.role}/{name}" for name in SPOKEN}
        shown = [f"{name} {latest[x]:.4f}" for name, x in names.items() if x in latest]
        if shown:
            self.record.say(f"{self.role}, step {step}: {', '.join(shown)}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.work(1)


@contextmanager
def planned(
    context: Context,
    state: RunState,
    role: Role,
    name: str,
    title: str,
    budget: Budget,
    *,
    carry: bool = True,
    updates: int = 1,
) -> Iterator[Plan]:
    """A training phase of a role, from where it was left. Inside, an engine is to follow the plan,
    and its segment to become the state's; on leaving, the phase is over and the state has what came
    of it.

    Args:
        name: phases of one name are one training in parts: seed, place in the data, optimizer go
            on.
        carry: whether the optimizer's state goes on from, and is left for, phases of the name.
        updates: a phase begins at a multiple of so many steps, with completions of its own.
    """
    recipe, roles, record = context.recipe, context.roles, context.record
    first = math.ceil(state.progress.get(name, 0) / updates) * updates
    if state.segment is None:
        carried = state.optimizers.get(name, {}) if carry else {}
        # A new optimizer still goes on with the value function that there is.
        whole = recipe.rounds.carry_optimizer
        optimizer = {key: value for key, value in carried.items() if whole or is_own(key)}
        state.segment = Segment(step=first, optimizer=optimizer)
    if state.segment.weights:
        roles.load_weights(role, state.segment.weights)
    begun = 0 if budget.done is None else first - budget.done
    length = f"{budget.steps} steps" if budget.tokens is None else f"{budget.tokens} tokens"
    key = str(state.where.get("coevolve/phase", role))
    with record.task(f"{title}, {length}", budget.steps, key=key, where=state.where) as work:
        work(state.segment.step - first)
        report = TrainerReport(record, work, state.where, role, first, recipe.logging.every)
        try:
            yield Plan(
                roles=roles,
                role=role,
                renderer=context.estimator.renderer_of(role),
                processes=context.processes,
                first=first,
                steps=first + budget.steps,
                tokens=budget.tokens,
                schedule=Schedule(begun, budget.schedule),
                seed=derive_seed(recipe.seed, name),
                callback=report,
                watcher=Watch(context, state),
                segment=state.segment,
                token_budget=recipe.evaluation.token_budget,
                folder=record.folder,
                engines=context.engines,
                rl_field=recipe.rl_field(role),
            )
        except LeftHalfway as left:
            state.segment = left.segment
            raise
    for warning in warnings_in(report.latest, recipe.rl_field(role)):
        record.say(f"warning: {warning}")
    segment, state.segment = state.segment, None
    state.pair[role] = segment.weights or roles.weights(role)
    if carry:
        state.optimizers[name] = segment.optimizer
    state.updates[role] += segment.step - first
    state.progress[name] = segment.step
