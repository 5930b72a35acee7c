"""What the full run is compared with, trained update for update like its estimator."""

from collections.abc import Sequence

from coevolve.recipe import Recipe
from coevolve.scoring.roles import ESTIMATOR, ROLES, Role
from coevolve.training.context import Context
from coevolve.training.engines import Rows
from coevolve.training.phases import estimator_rows, rows_of_estimator, sft
from coevolve.training.schedule import Budget
from coevolve.training.state import COLD, DIRECT, UNTRAINED, RunState


def baseline_parts(recipe: Recipe) -> int:
    """In how many trainings the baselines do as many updates as the rounds: one for each
    learning-rate schedule.
    """
    rounds = recipe.rounds
    return rounds.count if rounds.lr_schedule == "phase" else min(rounds.count, 1)


def go_back(context: Context, state: RunState, name: str, roles: Sequence[Role] = ROLES) -> None:
    """Give roles the weights that were kept under a name."""
    for role in roles:
        state.load(context.roles, role, state.kept[name][role])


def without_corl(context: Context, state: RunState, part: int) -> None:
    """The pair after the cold start, its estimator trained on as long as by the rounds."""
    if part == 1 and state.segment is None:
        go_back(context, state, COLD)
    state.where = {"coevolve/phase": "without_corl"}
    reasoning = state.cold_reasoning or context.traces
    rows = rows_of_estimator(context, "without_corl", reasoning)
    _continue(context, state, "without_corl", part, rows)


def without_reasoning_cold(context: Context, state: RunState) -> None:
    """The cold start of q2(y | x), on top of the direct one if there is one."""
    if state.segment is None:
        begun = DIRECT if context.recipe.cold_start.direct else UNTRAINED
        go_back(context, state, begun, (ESTIMATOR,))
    state.where = {"coevolve/phase": "without_reasoning"}
    name, title = "cold_without_reasoning", "without_reasoning: estimator SFT"
    settings = context.recipe.cold_start.estimator
    sft(context, state, ESTIMATOR, name, title, _direct(context), settings, carry=False)


def without_reasoning(context: Context, state: RunState, part: int) -> None:
    """q2(y | x), trained as long as the pair."""
    _continue(context, state, "without_reasoning", part, _direct(context))


def _direct(context: Context) -> Rows:
    """x -> y."""
    return estimator_rows(context.estimator, context.train, [None] * len(context.train))


def _continue(context: Context, state: RunState, label: str, part: int, rows: Rows) -> None:
    """SFT of the estimator for as many further updates as the rounds gave it, whether by SFT or by
    RL.

    Where each phase has a learning-rate schedule of its own, part by part for each round, so that
    the baseline's rate decays as far, and goes on with the optimizer's state as the rounds do.
    """
    recipe, parts = context.recipe, baseline_parts(context.recipe)
    steps = state.rounds[part - 1] if parts == len(state.rounds) else sum(state.rounds)
    if steps:
        settings = recipe.estimator_sft or recipe.cold_start.estimator
        title = f"{label}: estimator SFT, part {part} of {parts}"
        budget = Budget(steps, schedule=steps)
        sft(context, state, ESTIMATOR, label, title, rows, settings, budget)
