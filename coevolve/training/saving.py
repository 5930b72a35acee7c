"""When a run's state is saved, and how a run finds its place again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from coevolve.errors import ArtifactError
from coevolve.scoring.artifact import read_manifest
from coevolve.scoring.roles import ROLES
from coevolve.training.checkpoints import Checkpoint, newest_checkpoint
from coevolve.training.context import Context
from coevolve.training.documents import RecordState
from coevolve.training.engines import Segment
from coevolve.training.export import require_parents
from coevolve.training.outcome import Outcome
from coevolve.training.run_folder import ResumePoint
from coevolve.training.schedule import scheduled_phases
from coevolve.training.state import TRAINED, UNTRAINED, RunState

SAVING_SHARE = 20
"""A checkpoint between a round's stages must have taken less than this part of the time since."""


def save(context: Context, state: RunState) -> str:
    """Write a checkpoint; returns its name on the main process. A collective call."""
    step = "" if state.segment is None else f"-step-{state.segment.step}"
    document = state.document(
        processes=context.processes.count,
        record=RecordState(**context.record.state()),
        parents={role: origin.parent() for role, origin in context.origins.items()},
    )

    def write() -> Path:
        context.folder.require_there()
        best = state.segment is None and state.holds_best
        name, values = f"{state.stage}{step}", document.values()
        return context.checkpoints.write(name, values, state.tensors(), best=best)

    path = context.processes.on_main(write)
    return path.name if path else ""


def save_if_cheap(context: Context, state: RunState) -> None:
    """Save unless a checkpoint costs much beside what it would spare."""
    writer = context.checkpoints
    cheap = writer.seconds_since >= SAVING_SHARE * writer.seconds_taken
    if context.processes.agree(context.processes.main and cheap)[0]:
        save(context, state)


def save_if_due(context: Context, state: RunState) -> None:
    """Save if the last checkpoint is as old as the recipe allows."""
    if _is_due(context):
        save(context, state)


def _is_due(context: Context, *, now: bool = False) -> bool:
    late = context.checkpoints.seconds_since >= 60 * context.recipe.checkpoints.every_minutes
    return context.processes.agree((context.processes.main and late) or now)[0]


@dataclass(frozen=True)
class Watch:
    """Lets a training phase be saved and left while it goes on (`engines.Watcher`)."""

    context: Context
    state: RunState

    def after_step(self, step: int, capture: Callable[[], Segment]) -> None:
        every = self.context.recipe.checkpoints.every_steps
        if _is_due(self.context, now=every is not None and step % every == 0):
            # Of the processes that write nothing, none needs to hold what was captured.
            save(self.context, replace(self.state, segment=capture()))

    def between(self) -> None:
        self.context.processes.agree()

    def poll(self) -> None:
        self.context.processes.stop.poll()


def restore(
    context: Context, start: ResumePoint, stages: Sequence[str], *, named: bool
) -> RunState:
    """The state that a run goes on from, its weights in the models. A checkpoint that a person
    `named` must fit (else ArtifactError); otherwise the newest before it that does is used.
    ArtifactError too for an export that is no longer whole.
    """
    begun = RunState.begin(context.roles, context.traces)
    if start.checkpoint is None:
        return begun
    checkpoint = _fitting(context, begun, start.checkpoint, named=named)
    require_parents(checkpoint, context.origins)
    saved = checkpoint.state
    state = RunState.read(saved, checkpoint.tensors, context.data.tests)
    state.kept[UNTRAINED] = begun.pair
    for role in ROLES:
        state.load(context.roles, role, state.pair[role])
    # What is under way is of the first stage to come; in another recipe that may be another one,
    # which begins anew.
    if saved.stage != next((name for name in stages if name not in saved.done), None):
        state.segment, state.texts = None, []
    exported = (context.folder.path / "estimator").exists() and saved.form is not None
    redo = [*start.redo, *([] if exported else ["export"])]
    state.done = [
        name for name in saved.done if not any(fnmatch(name, pattern) for pattern in redo)
    ]
    if "export" in state.done:
        _require_whole(context.folder.path / "estimator")
    if TRAINED in state.done and any(
        name.startswith("round-") and name not in state.done for name in stages
    ):
        _train_on(context, state)
    context.record.say(f"resumed from {checkpoint.folder.name}")
    if saved.processes != context.processes.count:
        context.record.say(
            f"{context.processes.count} processes go on from {saved.processes}: the same prompts "
            "and batches; sums are taken in another order, so figures agree up to rounding"
        )
    return state


def _require_whole(exported: Path) -> None:
    """Name what an export lacks before anything is written."""
    try:
        read_manifest(exported, verify=False)
    except ArtifactError as error:
        again = f"Or delete {exported}, and this run exports it again."
        raise ArtifactError(f"{error} {again}") from None


def _fitting(
    context: Context, begun: RunState, checkpoint: Checkpoint, *, named: bool
) -> Checkpoint:
    """The checkpoint, or else the newest before it that fits; one that was `named` must fit."""
    while True:
        try:
            checkpoint.require_fit(len(context.train), len(context.data.validation), begun.pair)
            return checkpoint
        except ArtifactError as error:
            if named:
                raise
            context.record.say(f"damaged checkpoint, not used: {error}")
        older = newest_checkpoint(context.folder.path, context.record.say, before=checkpoint)
        assert older is not None  # it raises where none is left
        checkpoint = older
        context.record.resume(checkpoint.state.record.values())


def _train_on(context: Context, state: RunState) -> None:
    """Rounds that were added come before what was done with the pair that had been final."""
    names = {scheduled.phase.name for scheduled in scheduled_phases(context.recipe)}
    state.done = state.done[: state.done.index(TRAINED)]
    for role in ROLES:
        state.load(context.roles, role, state.kept[TRAINED][role])
    state.updates = dict(state.trained_updates)
    state.optimizers = {name: held for name, held in state.optimizers.items() if name in names}
    state.progress = {name: step for name, step in state.progress.items() if name in names}
    state.segment, state.texts, state.outcome = None, [], Outcome()
