"""Before the first round: both roles learn by SFT what they will be.

The estimator can begin as q2(y | x), and can learn to read on what it will meet: reasonings of
connectors that were not trained on the examples that they write for (cross-fitting). What a
connector writes for an example that it was trained on is the teacher's, and knows the response.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from coevolve.errors import RecipeError
from coevolve.recipe.optimization import Sft
from coevolve.recipe.schema import CrossFit
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role
from coevolve.seeds import derive_seed
from coevolve.training.context import Context
from coevolve.training.phases import (
    connector_rows,
    estimator_rows,
    rows_of_estimator,
    sft,
    write_reasonings,
)
from coevolve.training.rows import Rows
from coevolve.training.state import DIRECT, UNTRAINED, RunState


def connector(context: Context, state: RunState) -> None:
    """The connector, on the teacher's reasonings."""
    _train_connector(context, state, "cold_connector", range(len(context.train)))


def cross_fit(context: Context, state: RunState, part: int) -> None:
    """A connector, on all parts of the examples but one."""
    others = sorted(set(range(len(context.train))) - set(parts_of(context)[part]))
    _train_connector(context, state, f"cold_connector_{part + 1}", others)


def cross_write(context: Context, state: RunState, part: int) -> None:
    """It writes reasonings for that part, except where the teacher's are to be kept."""
    settings, seed = _cross_fit(context), partial(derive_seed, context.recipe.seed, "cross_fit")
    anew = np.random.default_rng(seed("traces")).random(len(context.train)) >= settings.trace_share
    rows = [index for index in parts_of(context)[part] if anew[index]]
    state.where = {"coevolve/round": 0, "coevolve/phase": "cold_start"}
    write_reasonings(context, state, rows, settings, seed, f"cold start: part {part + 1}")


def parts_of(context: Context) -> list[list[int]]:
    """The training examples divided for cross-fitting, by seed; RecipeError: there are too few."""
    count, settings = len(context.train), _cross_fit(context)
    if problem := settings.too_few(count):
        raise RecipeError(problem)
    order = np.random.default_rng(derive_seed(context.recipe.seed, "cross_fit")).permutation(count)
    return [
        sorted(order[part :: settings.cross_fit].tolist()) for part in range(settings.cross_fit)
    ]


def direct(context: Context, state: RunState) -> None:
    """The estimator as q2(y | x)."""
    settings, nothing = context.recipe.cold_start.direct, [None] * len(context.train)
    assert settings is not None  # since the stage is there
    rows = estimator_rows(context.estimator, context.train, nothing)
    _train(context, state, ESTIMATOR, "cold_direct", rows, settings)
    state.keep(DIRECT)


def estimator(context: Context, state: RunState) -> None:
    """The estimator, on the teacher's reasonings or on those that were written since."""
    settings, name = context.recipe.cold_start, "cold_estimator"
    if settings.refresh:
        state.cold_reasoning = list(state.reasoning)
    rows = rows_of_estimator(context, name, state.reasoning)
    _train(context, state, ESTIMATOR, name, rows, settings.estimator)


def _train_connector(context: Context, state: RunState, name: str, indices: Sequence[int]) -> None:
    if state.segment is None:
        state.load(context.roles, CONNECTOR, state.kept[UNTRAINED][CONNECTOR])
    examples = [context.train[index] for index in indices]
    traces = [context.traces[index] for index in indices]
    rows = connector_rows(context.estimator, examples, traces)
    _train(context, state, CONNECTOR, name, rows, context.recipe.cold_start.connector)


def _train(
    context: Context, state: RunState, role: Role, name: str, rows: Rows, settings: Sft
) -> None:
    state.where = {"coevolve/round": 0, "coevolve/phase": "cold_start"}
    title = f"cold start: {name.removeprefix('cold_').replace('_', ' ')} SFT"
    sft(context, state, role, name, title, rows, settings, carry=False)


def _cross_fit(context: Context) -> CrossFit:
    settings = context.recipe.cold_start.refresh
    assert settings is not None  # since the stage is there
    return settings
