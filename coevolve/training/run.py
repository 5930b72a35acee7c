"""`coevolve train`: a run from its recipe and its directory to the loop that does it (`loop`)."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from accelerate import PartialState

from coevolve.data.corpus import TRAIN_SPLIT, Corpus
from coevolve.data.example import Example
from coevolve.errors import CoevolveError
from coevolve.outputs import RUN, claim
from coevolve.preflight.checks import Check, preflight
from coevolve.preflight.dialogues import LeftOut, Sifted, world_seed
from coevolve.preflight.traces import fit_traces
from coevolve.preflight.training import TRAINING, Training
from coevolve.progress import quieten_libraries
from coevolve.recipe import Recipe, recipe_values
from coevolve.scoring.by_form import ByForm
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.models import choose_device
from coevolve.scoring.roles import ESTIMATOR
from coevolve.training import loop, results
from coevolve.training.checkpoints import CheckpointWriter
from coevolve.training.context import Context
from coevolve.training.distributed.estimator import DistributedEstimator
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.generation import Engines
from coevolve.training.known_truth import KnownTruth
from coevolve.training.phases import check_phases
from coevolve.training.record.facts import environment_facts
from coevolve.training.record.record import Record
from coevolve.training.rewards.registry import check_rewards
from coevolve.training.rl.algorithms import check_algorithms
from coevolve.training.run_folder import ResumePoint, RunFolder
from coevolve.training.saving import restore
from coevolve.training.setup import build_estimator, build_renderers, prepare_origins
from coevolve.training.tracing import TRACES, Log, Tracer, kept_file

T = TypeVar("T")
CHECKS: Sequence[Check[Training]] = (
    Check("rewards", lambda draft: check_rewards(draft.recipe)),
    Check("algorithms", lambda draft: check_algorithms(draft.recipe)),
    Check("phases", lambda draft: check_phases(draft.recipe)),
    *TRAINING,
)
"""Whatever can be known of a recipe and its data before anything is loaded."""


Traced = tuple[Sequence[Example], Sequence[str]]
"""Examples, and a text that is known for each."""


def _traced(inputs: Training, tracer: Tracer, path: Path, record: Record, log: Log) -> Traced:
    """The teacher's reasonings, as far as they fit."""
    given = tracer.collect(inputs.data.train, path, log=log)
    fitting = fit_traces(inputs.recipe, *given, inputs.renderers, inputs.sifted.needs)
    train, traces, longer = fitting
    _say_left_out([longer] if longer else [], record, log)
    return train, traces


@dataclass(frozen=True)
class Job:
    """What a run does: what is looked at before, its stages, and how it ends.

    Attributes:
        traces: the examples it trains on, with a text for each.
        judge: loads an estimator apart, or nothing.
        judges: whether it judges the policies of a synthetic world.
    """

    checks: Sequence[Check[Training]]
    stages: Callable[[Context], Sequence[loop.Stage]]
    finish: loop.Finish
    traces: Callable[[Training, Tracer, Path, Record, Log], Traced] = _traced
    judge: Callable[[Recipe, Processes], ByForm | None] = lambda recipe, processes: None
    judges: bool = True


def train(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
    resume: str | Path = "auto",
    force: bool = False,
    stop: Stop | None = None,
    job: Job | None = None,
) -> dict[str, Any]:
    """Run the recipe from its beginning, or from where it was left; the values of `results.json`.

    Args:
        output_dir: a directory of this run's own; all processes of it must see the same one.
        environ: where a teacher's key, wandb's project, name and entity are looked up.
        resume: `auto` goes on with the run that the directory holds, if there is one; `never`
            refuses such a directory; a path is the checkpoint to go on from.
        force: go on although the recipe has changed in what is trained.
        job: what is done, if not the co-evolution of a pair.

    Raises:
        Interrupted: the run was asked to stop; it is saved.
        ArtifactError: the directory cannot be used, or its run cannot be resumed.
        DataError, RecipeError, RewardError, TooLongError: before anything is trained.
        RewardError: a reward gave something else than a finite number for each completion.
        ProcessError: another process failed or died; it is named.
    """
    quieten_libraries()

    def claimed(draft: Training) -> None:
        claim(output_dir, RUN, option="--output-dir")

    output = Check("output", claimed)
    asks_teacher = not kept_file(Path(output_dir) / TRACES).is_file()
    job = job or Job(CHECKS, loop.stages, results.finish)
    inputs, problem = Training(recipe, environ, asks_teacher), None
    stop = stop or Stop()
    try:
        with stop.raising():
            preflight(inputs, (output, *job.checks))
    except CoevolveError as error:
        # On this machine alone, perhaps, whose files may be others: the rest would wait for it.
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        problem = error
    # Each trainer runs the garbage collector twice; it need not look at the libraries' objects.
    gc.freeze()
    state = PartialState(cpu=choose_device(recipe.model.device).type == "cpu")
    processes = Processes(state.device, stop)
    folder = RunFolder(Path(output_dir), processes)
    failure: BaseException | None = None
    try:
        processes.together(partial(_raise, problem), heed_stop=False)
        with folder.held():
            start = folder.find(recipe, resume, force=force)
            record = Record(folder.path, main=processes.main)
            try:
                with _says_interrupted(folder):
                    context, start = prepare(job, inputs, folder, record, processes, start)
                whole = job.stages(context)
                names = [stage.name for stage in whole]
                named = resume not in ("auto", "never")
                assert context.engines is not None  # prepare has built them
                with closing(context.engines):
                    if start.checkpoint is None:
                        context.engines.reach()
                    begun = restore(context, start, names, named=named)
                    return loop.run(context, begun, whole, job.finish)
            except Exception as error:
                failure = reason = folder.explain(processes.explain(error))
                folder.say_failed(reason)
                raise reason from (None if reason is error else error)
            finally:
                fine = failure is None or isinstance(failure, Interrupted)
                record.close(exit_code=0 if fine else 1)
    except Exception as error:
        failure = error
        raise
    finally:
        processes.close(None if isinstance(failure, Interrupted) else failure)


def _raise(problem: Exception | None) -> None:
    if problem is not None:
        raise problem


@contextmanager
def _says_interrupted(folder: RunFolder) -> Iterator[None]:
    """Where the run is asked to stop before its first stage, its status says so."""
    try:
        yield
    except Interrupted:
        reason = folder.processes.stop.reason
        folder.say_status("interrupted", stage="preparation", where={}, reason=reason)
        raise


def prepare(
    job: Job,
    inputs: Training,
    folder: RunFolder,
    record: Record,
    processes: Processes,
    start: ResumePoint,
) -> tuple[Context, ResumePoint]:
    """Models, traces and all that a run needs; where it goes on, with what a change has it redo."""
    recipe, data, sifted, checkpoint = inputs.recipe, inputs.data, inputs.sifted, start.checkpoint
    assert data is not None and sifted is not None  # preflight has built them
    record.resume(record.state() if checkpoint is None else checkpoint.state.record.values())
    # What a resumed run finds out again is in its record already.
    log = record.log if checkpoint is None else lambda values: None
    _say_data(recipe, data.corpus, sifted, record, log, processes.count)

    def alone(work: Callable[[], T]) -> T:
        with processes.stop.raising():  # nothing of it is to be saved
            return work()

    originate = partial(prepare_origins, recipe, folder.path, say=record.say)
    origins = processes.on_main_first(partial(alone, originate))
    date = folder.template_date(checkpoint)
    renderers = build_renderers(recipe, origins, date)
    start = folder.begin(recipe, origins, data.corpus, date, start)
    truth = None
    if recipe.data.world and job.judges:
        truth = KnownTruth(world_seed(recipe), recipe.data.world.kind, data.corpus)
        processes.on_main(lambda: truth.write(folder.path / "world"))
    record.start_trackers(
        recipe.logging.report_to,
        project=recipe.logging.project,
        name=recipe.name,
        config={
            "recipe": recipe_values(recipe),
            "data_fingerprint": data.fingerprint,
            "parents": {role: origin.parent() for role, origin in origins.items()},
            "processes": processes.count,
            **environment_facts(),
        },
        environ=inputs.environ,
    )
    # A base model that cannot be scored is refused here, before a teacher is asked. A teacher on
    # this machine may then need the memory for itself.
    parts = processes.share_base() if recipe.model.sharded else None
    of = recipe, origins, renderers, processes.device, processes.stop.poll, parts
    load = partial(processes.together, partial(alone, partial(build_estimator, *of)))
    estimator: ProbabilityEstimator | None = load()
    if recipe.traces.teacher == "local":
        estimator = None
        gc.collect()
    prompts, environ = renderers[ESTIMATOR], inputs.environ
    tracer = Tracer(recipe, data.corpus, data.train, prompts, record, environ, date, processes)
    inputs.renderers = renderers  # with the date that the run has
    train, traces = job.traces(inputs, tracer, folder.path / TRACES, record, log)
    judge = processes.together(partial(alone, partial(job.judge, recipe, processes)))
    estimator = estimator or load()
    engines = Engines(recipe, origins, estimator.roles, processes, folder.path)
    context = Context(
        recipe=recipe,
        data=data,
        train=train,
        traces=traces,
        origins=origins,
        estimator=estimator,
        distributed=DistributedEstimator(estimator, processes, engines.writing),
        record=record,
        processes=processes,
        folder=folder,
        checkpoints=CheckpointWriter(folder.path, recipe.checkpoints.keep),
        tracer=tracer,
        judge=judge,
        truth=truth,
        responses=inputs.responses | (truth.responses_to(data.test_examples) if truth else {}),
        engines=engines,
    )
    return context, start


def _say_data(
    recipe: Recipe, corpus: Corpus, sifted: Sifted, record: Record, log: Log, count: int
) -> None:
    processes = f", {count} processes" if count > 1 else ""
    record.say(f"coevolve: recipe {recipe.name}, seed {recipe.seed}{processes}")
    sizes = {split: len(examples) for split, examples in corpus.splits.items()}
    told = ", ".join(f"{split} {size}" for split, size in sizes.items())
    record.say(f"data: {corpus.source}: {told}")
    _say_left_out(sifted.left_out, record, log)
    if recipe.data.part is not None:
        record.say(f"{TRAIN_SPLIT}: part {recipe.data.part} of it, as data.part says")
    for split, limit in recipe.data.limit.items():
        if limit < sizes[split]:
            record.say(f"{split}: {limit} of {sizes[split]} examples, as data.limit says")


def _say_left_out(left_out: Sequence[LeftOut], record: Record, log: Log) -> None:
    for part in left_out:
        ids = list(part.sample_ids)
        dropped = f"dropped {len(ids)} of {part.of} examples that {part.why} (first {ids[0]!r})"
        record.say(f"{part.split}: {dropped}")
        log({"data/dropped_too_long": len(ids), "data/split": part.split, "data/dropped": ids})
