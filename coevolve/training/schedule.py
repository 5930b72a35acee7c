"""The recipe's rounds as a list of phases, and how long each of them is.

An entry is one phase in one round, or a part of it where a phase goes on until the held-out measure
stops improving. Rounds of one update each and rounds of an epoch each are lists of different
length, and nothing else.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from coevolve.recipe import Recipe
from coevolve.recipe.optimization import Optimization
from coevolve.recipe.rl import Grpo
from coevolve.recipe.rounds import Phase, Source
from coevolve.training.engines import steps_of


@dataclass(frozen=True)
class ScheduledPhase:
    """A phase in its place; `round` and `part` count from 1.

    Attributes:
        label: the name, with its place in the round where it comes more than once.
        estimator_sft_follows: so that a connector which looks worse need not be judged yet.
        gated: whether the pair is evaluated after it.
        on: what SFT trains on; None is what its role trains on without a posterior sample.
    """

    round: int
    phase: Phase
    label: str
    part: int = 1
    last_part: bool = True
    estimator_sft_follows: bool = False
    gated: bool = False
    on: Source | None = None

    @property
    def name(self) -> str:
        """As the run's stages and checkpoints call it."""
        parts = f"-part-{self.part}" if self.phase.until else ""
        return f"round-{self.round}-{self.label}{parts}"


@dataclass(frozen=True)
class Budget:
    """How long a training phase goes on, and what its learning rate's schedule is about.

    Attributes:
        steps: of the optimizer; with `tokens`, which end it with the step that reaches them, the
            most.
        schedule: steps that warm-up and decay go over.
        done: of these, those before this phase; None for all of the run under the phase's name.
    """

    steps: int
    schedule: int
    done: int | None = 0
    tokens: int | None = None


def scheduled_phases(recipe: Recipe) -> Iterator[ScheduledPhase]:
    """All phases of a run, in order."""
    rounds = recipe.rounds
    names = [phase.name for phase in rounds.phases]
    for index in range(1, rounds.count + 1):
        due = [number for number, phase in enumerate(rounds.phases) if index % phase.every == 0]
        for number in due:
            phase = rounds.phases[number]
            label = phase.name if names.count(phase.name) == 1 else f"{phase.name}-{number + 1}"
            later = [names[other] for other in due if other > number]
            judged = phase.trains and (phase.until is not None or not rounds.explicit_gates)
            for part in range(1, phase.parts + 1):
                yield ScheduledPhase(
                    round=index,
                    phase=phase,
                    label=label,
                    part=part,
                    last_part=part == phase.parts,
                    estimator_sft_follows="estimator_sft" in later,
                    gated=judged or phase.kind == "evaluate",
                    on=rounds.source_of(number) if phase.kind == "sft" else None,
                )


def budget_of(
    recipe: Recipe, scheduled: ScheduledPhase, settings: Optimization, examples_per_epoch: int
) -> Budget:
    """The budget of a phase that trains by `settings`; in RL, an epoch counts completions."""
    phase, steps = scheduled.phase, _steps(scheduled, settings, examples_per_epoch)
    if phase.tokens is not None:
        # A prompt has a token at least, and so has what follows it.
        most = math.ceil(phase.tokens / (2 * settings.train_batch_size))
        return Budget(most, schedule=most, tokens=phase.tokens)
    if recipe.rounds.lr_schedule == "run":
        unit = settings.updates_per_batch if isinstance(settings, Grpo) else 1
        planned = [
            math.ceil(_steps(other, settings, examples_per_epoch) / unit) * unit
            for other in scheduled_phases(recipe)
            if other.phase.name == phase.name
        ]
        return Budget(steps, schedule=sum(planned), done=None)
    if phase.until is None:
        return Budget(steps, schedule=steps)
    done = (scheduled.part - 1) * phase.until.steps
    return Budget(steps, schedule=phase.until.at_most, done=done)


def _steps(scheduled: ScheduledPhase, settings: Optimization, examples_per_epoch: int) -> int:
    phase = scheduled.phase
    if phase.until is not None:
        left = phase.until.at_most - (scheduled.part - 1) * phase.until.steps
        return min(phase.until.steps, left)
    return phase.steps or steps_of(settings, examples_per_epoch)
