"""The method: a list of stages, each done once, and the loop that does them.

Cold start of both roles; rounds of phases, each judged by the gate; the final pair measured and
exported; baselines trained for as long. After every stage, and now and then inside a long one, the
state is saved; a run that is started again finds its place, and does from there on what it would
have done without the interruption, to the bit.

Deviations from the published procedure: every phase is gated on held-out perplexity and rolled back
if it made it worse; the gate looks at a part of IDTrain that nothing trains on, never at a test
split. Baselines get no worse a deal: what their last updates spoiled is undone as well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from coevolve.errors import CoevolveError, OutOfMemoryError
from coevolve.scoring.foreign import is_out_of_memory
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.roles import ROLES
from coevolve.training import baselines, cold_start, forms, gate, results
from coevolve.training.context import Context
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.evaluation import (
    diagnose_round,
    evaluate_form,
    evaluate_oracle,
    evaluate_split,
)
from coevolve.training.outcome import ENSEMBLE
from coevolve.training.phases import run_phase
from coevolve.training.saving import save, save_if_cheap
from coevolve.training.schedule import scheduled_phases
from coevolve.training.state import COLD, TRAINED, RunState

Finish = Callable[[Context, RunState], dict[str, Any]]


class Stage(NamedTuple):
    """A part of a run that is done once: `work(context, state, *arguments)`."""

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    trained: bool = False
    """Whether it is about the pair as it was trained, whatever is in the models by then."""


def run(
    context: Context, state: RunState, whole: Sequence[Stage], finish: Finish
) -> dict[str, Any]:
    """Do every stage of the `whole` that is not done, in order; `results.json`'s values.
    Interrupted: it is saved.
    """
    say_status = context.folder.say_status
    baselines.forget_those_left(state, [stage.name for stage in whole])
    for stage in whole:
        if stage.name in state.done:
            continue
        state.stage = stage.name
        say_status("running", stage=stage.name, where=state.where)
        try:
            context.processes.agree()
            with trained_pair(context, state) if stage.trained else nullcontext():
                stage.work(context, state, *stage.arguments)
            state.done.append(stage.name)
            # Rounds may be single updates.
            (save_if_cheap if stage.name.startswith("round-") else save)(context, state)
        except Interrupted:
            name, reason = save(context, state), context.processes.stop.reason
            where, left = state.where, {"checkpoint": name, "reason": reason}
            say_status("interrupted", stage=stage.name, where=where, **left)
            raise
        except Exception as error:
            raise _explained(error, stage.name) from error
    return finish(context, state)


def _explained(error: Exception, stage: str) -> Exception:
    """What to raise for an error in a stage: what to lower, where memory came to an end."""
    if isinstance(error, CoevolveError) or not is_out_of_memory(error):
        return error
    words = " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__
    return OutOfMemoryError(
        f"{stage}: out of memory: {words}. Lower per_device_train_batch_size of the phase or "
        "evaluation.token_budget, set gradient_checkpointing, or use a device with more; the same "
        "command with these goes on from what was saved."
    )


def stages(context: Context) -> list[Stage]:
    """The whole run, in order."""
    return [
        *_cold_start(context),
        *_rounds(context),
        Stage("trained", end_training),
        *(stage._replace(trained=True) for stage in _of_trained(context)),
        *_without_corl(context),
        *_without_reasoning(context),
        *([Stage("truth", results.compare_with_truth)] if context.truth else []),
    ]


@contextmanager
def trained_pair(context: Context, state: RunState) -> Iterator[None]:
    """The trained pair in the models, which a changed run may need when the baselines are there."""
    pair = dict(state.pair)
    baselines.go_back(context, state, TRAINED)
    try:
        yield
    finally:
        for role in ROLES:
            state.load(context.roles, role, pair[role])


def end_training(context: Context, state: RunState) -> None:
    """What comes is measured on the pair as it is, and changes it no more."""
    state.keep(TRAINED)
    state.trained_updates = dict(state.updates)


def _cold_start(context: Context) -> list[Stage]:
    settings, stages = context.recipe.cold_start, []
    for part in range(settings.refresh.cross_fit if settings.refresh else 0):
        name = f"cold-start-connector-{part + 1}"
        stages.append(Stage(name, cold_start.cross_fit, (part,)))
        stages.append(Stage(f"{name}-writes", cold_start.cross_write, (part,)))
    if settings.refresh is None or settings.refresh.connector == "all":
        stages.append(Stage("cold-start-connector", cold_start.connector))
    if settings.direct:
        stages.append(Stage("cold-start-direct", cold_start.direct))
    stages.append(Stage("cold-start-estimator", cold_start.estimator))
    return [*stages, Stage("cold-start-gate", gate.start)]


def _rounds(context: Context) -> list[Stage]:
    rounds = []
    by_round = groupby(scheduled_phases(context.recipe), key=lambda scheduled: scheduled.round)
    for index, of_round in by_round:
        phases = list(of_round)
        for scheduled in phases:
            if scheduled.phase.kind != "evaluate":
                rounds.append(Stage(scheduled.name, run_phase, (scheduled,)))
            if scheduled.gated:
                rounds.append(Stage(f"{scheduled.name}-gate", gate.judge, (scheduled,)))
        if any(scheduled.gated for scheduled in phases):
            rounds.append(Stage(f"round-{index}-diagnosis", diagnose_round, (index,)))
    return rounds


def _of_trained(context: Context) -> list[Stage]:
    tests = context.data.tests
    return [
        *_evaluation(context, "full"),
        Stage("form", forms.choose_form),
        *(Stage(f"full-forms-{split}", forms.evaluate_forms, ("full", split)) for split in tests),
        Stage("export", results.export),
        *([Stage("remid", results.judge_models)] if context.responses else []),
    ]


def _evaluation(context: Context, name: str) -> list[Stage]:
    tests, samples = context.data.tests, context.recipe.evaluation.marginal_samples
    evaluation = [Stage(f"{name}-{split}", evaluate_split, (name, split)) for split in tests]
    if samples:
        form = Reasoning("marginal", samples, context.recipe.seed)
        evaluation += [
            Stage(f"{name}-marginal-{split}", evaluate_form, (name, split, form)) for split in tests
        ]
    return evaluation


def _without_corl(context: Context) -> list[Stage]:
    recipe, tests, name = context.recipe, context.data.tests, baselines.WITHOUT_CORL
    if not (recipe.baselines.without_corl or recipe.baselines.oracle):
        return []
    parts = range(1, baselines.baseline_parts(recipe) + 1)
    shown = tests if recipe.baselines.oracle else ()
    return [
        *_gated(name, [Stage(f"{name}-{part}", baselines.without_corl, (part,)) for part in parts]),
        *([] if parts else [Stage(f"{name}-0", baselines.go_back, (COLD,))]),
        *(_evaluation(context, name) if recipe.baselines.without_corl else []),
        *(Stage(f"oracle-{split}", evaluate_oracle, (split,)) for split in shown),
    ]


def _gated(label: str, trainings: Sequence[Stage]) -> list[Stage]:
    """A baseline's trainings, each judged."""
    stages = []
    for place, training in enumerate(trainings, 1):
        last = place == len(trainings)
        judged = Stage(f"{training.name}-gate", baselines.keep_best, (label, last))
        stages += [training, judged]
    return stages


def _without_reasoning(context: Context) -> list[Stage]:
    recipe, tests, stages = context.recipe, context.data.tests, []
    size = max(recipe.baselines.ensemble, 1) if recipe.baselines.without_reasoning else 0
    parts = range(1, baselines.baseline_parts(recipe) + 1)
    evaluate = partial(evaluate_split, without_reasoning=True)
    for member in range(1, size + 1):
        name = baselines.member_name(member)
        if member > 1 and recipe.cold_start.direct:
            stages.append(Stage(f"{name}-direct", baselines.member_direct, (member,)))
        trained = [Stage(f"{name}-0", baselines.without_reasoning_cold, (member,))]
        trained += [Stage(f"{name}-{p}", baselines.without_reasoning, (p, member)) for p in parts]
        stages += _gated(name, trained) if parts else trained
        stages += [Stage(f"{name}-{split}", evaluate, (name, split)) for split in tests]
    if size > 1:
        name = f"{ENSEMBLE}{size}"
        stages += [Stage(f"{name}-{split}", baselines.ensemble, (split,)) for split in tests]
    return stages
