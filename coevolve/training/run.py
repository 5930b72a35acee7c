"""A whole run: traces, cold start, gated rounds, baselines, export, R-EMID.

A run is a list of stages, each done once. After every stage, and now and then inside a long one,
all that the rest depends on is written down; a run that is started again finds its place, and does
from there on what it would have done without the interruption, to the bit.

Deviations from the published procedure: every phase is gated on held-out perplexity and rolled back
if it made it worse; the gate looks at a part of IDTrain that nothing trains on, never at a test
split.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState

from coevolve.data.corpus import Corpus
from coevolve.errors import ArtifactError
from coevolve.files import write_json
from coevolve.outputs import RUN, claim
from coevolve.preflight.checks import Check, preflight
from coevolve.preflight.dialogues import Dialogues, LeftOut, Renderers, world_seed
from coevolve.preflight.traces import fit_traces
from coevolve.preflight.training import TRAINING, Training
from coevolve.progress import from_totals, quieten_libraries
from coevolve.recipe import Recipe, recipe_values
from coevolve.remid.evaluate import evaluate_remid
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.models import choose_device
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role, Weights
from coevolve.seeds import derive_seed
from coevolve.training import phases
from coevolve.training.baselines import continue_cold_start
from coevolve.training.checkpoints import Checkpoint, CheckpointWriter, newest_checkpoint
from coevolve.training.diagnostics import diagnose, drift, warnings_in
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.distributed.spread import SpreadEstimator
from coevolve.training.distributed.stopping import Stop
from coevolve.training.engines import Segment
from coevolve.training.evaluation import Evaluated, evaluate, golden_responses
from coevolve.training.export import export_estimator, require_parents, training_facts
from coevolve.training.gate import Gate
from coevolve.training.known_truth import KnownTruth
from coevolve.training.outcome import Outcome
from coevolve.training.phases import PHASES, Trainee
from coevolve.training.record.facts import environment_facts
from coevolve.training.record.record import Record
from coevolve.training.rewards.custom import check_rewards
from coevolve.training.run_folder import Found, RunFolder, has_checkpoints
from coevolve.training.schedule import Turn, turns_of
from coevolve.training.setup import Origins, build_estimator, build_renderers, prepare_origins
from coevolve.training.tracing import Log, Tracer

SAVING_SHARE = 20
"""Between two stages of a round a checkpoint is written if the last one took less than this part of
the time since.
"""


def train(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
    resume: str | Path = "auto",
    force: bool = False,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Run the recipe, from its beginning or from where it was left, and return what `results.json`
    holds.

    Args:
        recipe: checked already.
        output_dir: a directory of this run's own; all processes of it must see the same one.
        environ: where a teacher's key is looked up, under the name that the recipe gives, and
            wandb's project, name and entity.
        resume: `auto` goes on with the run that the directory holds, if there is one; `never`
            refuses such a directory; a path is the checkpoint to go on from.
        force: go on although the recipe has changed in what is trained.
        stop: asked now and then whether to leave.

    Raises:
        Interrupted: the run was asked to stop; it is saved.
        ArtifactError: the directory is in use, holds a run that cannot be resumed, or cannot be
            written.
        DataError, RecipeError, RewardError, TooLongError: before anything is trained.
        RewardError: a reward gave something else than one finite number for each completion; it is
            named.
        ProcessError: another process failed or died; it is named.
    """
    quieten_libraries()
    output = Check("output", lambda draft: _claimed(output_dir))
    rewards = Check("rewards", lambda draft: check_rewards(draft.recipe))
    asks_teacher = not has_checkpoints(Path(output_dir))
    inputs = preflight(Training(recipe, environ, asks_teacher), (output, rewards, *TRAINING))
    # Each trainer runs the garbage collector twice; it need not look at the libraries' own half a
    # million objects.
    gc.freeze()
    state = PartialState(cpu=choose_device(recipe.model.device).type == "cpu")
    processes = Processes(state.device, stop or Stop())
    folder = RunFolder(Path(output_dir), processes)
    failure: Exception | None = None
    try:
        with folder.held():
            found = folder.find(recipe, resume, force=force)
            record = Record(folder.path, main=processes.main)
            try:
                named = resume not in ("auto", "never")
                return Run(inputs, folder, record, processes, found, named=named).go()
            except Exception as error:
                failure = processes.explain(error)
                folder.say_failed(failure)
                raise failure from (None if failure is error else error)
            finally:
                record.close(
                    exit_code=0 if failure is None or isinstance(failure, Interrupted) else 1
                )
    except Exception as error:
        failure = error
        raise
    finally:
        processes.close(None if isinstance(failure, Interrupted) else failure)


@dataclass(frozen=True)
class Stage:
    """A part of a run that is done once."""

    name: str
    work: Callable[[], None]


class Run:
    """One run in progress."""

    def __init__(
        self,
        inputs: Training,
        folder: RunFolder,
        record: Record,
        processes: Processes,
        found: Found,
        *,
        named: bool = False,
    ):
        checkpoint = found.checkpoint
        self.recipe = recipe = inputs.recipe
        self.folder, self.record, self.processes = folder, record, processes
        self.data: Dialogues = inputs.data
        record.resume(record.state() if checkpoint is None else checkpoint.state["record"])
        log = record.log if checkpoint is None else _logged_already
        self._say_data(inputs, log)
        self.origins: Origins = processes.on_main_first(
            lambda: prepare_origins(recipe, folder.path, say=record.say)
        )
        date = folder.template_date(checkpoint)
        self.renderers: Renderers = build_renderers(recipe, self.origins, date)
        corpus = self.data.corpus
        self.truth = (
            KnownTruth(world_seed(recipe), recipe.data.world.strength, corpus)
            if recipe.data.world
            else None
        )
        self.responses = inputs.responses | self._world_responses()
        self.outcome = Outcome(recipe)
        found = folder.begin(recipe, self.origins, corpus, date, found)
        if self.truth is not None:
            processes.on_main(lambda: self.truth.write(folder.path / "world"))
        self._start_trackers(inputs.environ)

        # A base model that cannot be scored is refused here, before a teacher is asked. A teacher
        # on this machine may then need the memory for itself.
        estimator = self._build_estimator()
        if recipe.traces.teacher == "local":
            estimator = None
            gc.collect()
        self.tracer = Tracer(
            recipe,
            corpus,
            self.data.train,
            self.renderers[ESTIMATOR],
            record,
            inputs.environ,
            date=date,
        )
        path = folder.path / "traces.jsonl"
        traced = processes.on_main_first(
            lambda: self.tracer.collect(self.data.train, path, log=log)
        )
        self.examples, self.traces, longer = fit_traces(
            recipe, *traced, self.renderers, inputs.sifted.needs
        )
        self._say_left_out([longer] if longer else [], log)
        estimator = estimator or self._build_estimator()
        self.trainee = Trainee(
            recipe=recipe,
            estimator=estimator,
            spread=SpreadEstimator(estimator, processes),
            train=self.examples,
            traces=self.traces,
            record=record,
            processes=processes,
            watcher=self,
        )
        self.gate = Gate(self.trainee, self.data.validation, recipe.rounds.gate_tolerance)
        self.outcome.gates = self.gate.verdicts
        self.kept: dict[str, dict[Role, Weights]] = {"untrained": dict(self.trainee.pair)}
        self.done: list[str] = []
        self.probe: Evaluated | None = None
        self.trained_updates: dict[Role, int] = {}
        self.saved, self.saving_took = time.monotonic(), 0.0
        self.writer = CheckpointWriter(folder.path, recipe.checkpoints.keep)
        if checkpoint is not None:
            self._restore(self._fitting(checkpoint, named=named), found.redo)

    def go(self) -> dict[str, Any]:
        """Every stage that is not done yet, in order."""
        for stage in self.stages():
            if stage.name in self.done:
                continue
            self.stage = stage.name
            self.folder.say_status("running", stage=stage.name, where=self.trainee.where)
            try:
                self.processes.agree()
                stage.work()
                self.done.append(stage.name)
                worth_saving = not stage.name.startswith("round-") or self._is_worth_saving()
            except Interrupted:
                saved = self._save(self.trainee.segment)
                reason = self.processes.stop.reason
                self.folder.say_status(
                    "interrupted",
                    stage=stage.name,
                    where=self.trainee.where,
                    checkpoint=saved,
                    reason=reason,
                )
                raise
            if worth_saving:
                self._save(None)
        results = self._finish()
        self.folder.say_status("finished", stage="", where={})
        return results

    def stages(self) -> list[Stage]:
        """The whole run, in order."""
        recipe, stages = self.recipe, []

        def add(name: str, work: Callable[..., None], *arguments: Any, **options: Any) -> None:
            stages.append(Stage(name, lambda: work(*arguments, **options)))

        for role in ROLES:
            add(f"cold-start-{role}", self._cold_start, role)
        add("cold-start-gate", self._first_gate)
        for index, turns in groupby(turns_of(recipe), key=lambda turn: turn.round):
            judged = False
            for turn in turns:
                if turn.phase.trains or turn.phase.kind == "refresh":
                    add(turn.name, self._phase, turn)
                if turn.gated:
                    add(f"{turn.name}-gate", self._judge, turn)
                    judged = True
            if judged:
                add(f"round-{index}-diagnosis", self._diagnose, index)
        add("trained", self._training_ends)
        self._add_evaluation(add, "full")
        add("export", self._export)
        if self.responses:
            add("remid", self._remid)
        if recipe.baselines.without_corl or recipe.baselines.oracle:
            for part in range(1, self._baseline_parts + 1):
                add(f"without_corl-{part}", self._without_corl, part)
            if not recipe.rounds.count:
                add("without_corl-0", self._take, "cold", ROLES)
            if recipe.baselines.without_corl:
                self._add_evaluation(add, "without_corl")
            if recipe.baselines.oracle:
                for split in self.data.tests:
                    add(f"oracle-{split}", self._oracle, split)
        if recipe.baselines.without_reasoning:
            add("without_reasoning-0", self._without_reasoning_cold)
            for part in range(1, self._baseline_parts + 1):
                add(f"without_reasoning-{part}", self._without_reasoning, part)
            self._add_evaluation(add, "without_reasoning", without_reasoning=True)
        if self.truth is not None:
            add("truth", self._exact)
        return stages

    @property
    def _baseline_parts(self) -> int:
        """In how many trainings the baselines do as many updates as the rounds: one for each
        learning-rate schedule.
        """
        rounds = self.recipe.rounds
        return rounds.count if rounds.lr_schedule == "phase" else min(rounds.count, 1)

    def _add_evaluation(
        self, add: Callable[..., None], name: str, *, without_reasoning: bool = False
    ) -> None:
        for split in self.data.tests:
            add(f"{name}-{split}", self._evaluate, name, split, without_reasoning=without_reasoning)
        if self.recipe.evaluation.marginal_samples and not without_reasoning:
            for split in self.data.tests:
                add(f"{name}-marginal-{split}", self._evaluate_marginal, name, split)

    # What looks after the phases (engines.Watcher, phases.RunWatcher).

    def after_step(self, step: int, capture: Callable[[], Segment]) -> None:
        every = self.recipe.checkpoints.every_steps
        (due,) = self.processes.agree(self._is_due() or (every is not None and step % every == 0))
        if due:
            self._save(capture())

    def after_part(self) -> None:
        (due,) = self.processes.agree(self._is_due())
        if due:
            self._save(None)

    def between(self) -> None:
        self.processes.agree()

    def poll(self) -> None:
        self.processes.stop.poll()

    def _is_worth_saving(self) -> bool:
        """Whether a checkpoint costs little beside what it would save: rounds may be single
        updates.
        """
        (worth,) = self.processes.agree(
            time.monotonic() - self.saved >= SAVING_SHARE * self.saving_took
        )
        return worth

    def _is_due(self) -> bool:
        return (
            self.processes.main
            and time.monotonic() - self.saved >= 60 * self.recipe.checkpoints.every_minutes
        )

    # Saving and finding one's place.

    def _save(self, segment: Segment | None) -> str:
        """Write a checkpoint; returns its name on the main process. A collective call."""
        trainee = self.trainee
        tensors: dict[str, Weights] = {}
        for role in ROLES:
            tensors[str(role)] = trainee.pair[role]
        for name, pair in self.kept.items():
            if name != "untrained":  # which follows from the seed
                tensors.update({f"{name}-{role}": weights for role, weights in pair.items()})
        tensors.update(
            {f"optimizer-{name}": state for name, state in trainee.optimizers.items() if state}
        )
        if self.gate.best is not None:
            tensors.update(
                {f"best-{role}": weights for role, weights in self.gate.best.weights.items()}
            )
            optimizers = self.gate.best.optimizers.items()
            tensors.update({f"best-optimizer-{name}": state for name, state in optimizers if state})
        under_way = None
        if segment is not None:
            under_way = {
                "step": segment.step,
                "figures": segment.figures,
                "rollouts": len(segment.rollouts),
            }
            tensors["segment-weights"] = segment.weights
            tensors["segment-optimizer"] = segment.optimizer
            for rank, rollouts in enumerate(segment.rollouts):
                tensors[f"segment-rollouts-{rank}"] = rollouts
        state = {
            "done": self.done,
            "stage": self.stage,
            "processes": self.processes.count,
            "segment": under_way,
            "texts": trainee.texts,
            "reasoning": trainee.reasoning,
            "chosen": trainee.chosen,
            "updates": trainee.updates,
            "progress": trainee.progress,
            "trained_updates": self.trained_updates,
            "rounds": trainee.rounds,
            "where": trainee.where,
            "gate": self.gate.state(),
            "outcome": self.outcome.state(),
            "record": self.record.state(),
            "parents": {role: origin.parent() for role, origin in self.origins.items()},
            "probe": None if self.probe is None else self.probe.to_json(),
            "facts": self._facts(),
        }
        began = time.monotonic()
        name = self.stage if segment is None else f"{self.stage}-step-{segment.step}"
        tensors = {group: weights for group, weights in tensors.items() if weights}
        path = self.processes.on_main(
            lambda: self.writer.write(
                name, state, tensors, best=segment is None and self.gate.holds_best
            )
        )
        self.saved = time.monotonic()
        self.saving_took = self.saved - began
        return path.name if path else ""

    def _fitting(self, checkpoint: Checkpoint, *, named: bool) -> Checkpoint:
        """The checkpoint, or else the newest before it that fits; one that a person `named` must
        fit.
        """
        while True:
            try:
                checkpoint.require_fit(
                    len(self.examples), len(self.data.validation), self.trainee.pair
                )
                return checkpoint
            except ArtifactError as error:
                if named:
                    raise
                self.record.say(f"damaged checkpoint, not used: {error}")
            checkpoint = newest_checkpoint(self.folder.path, self.record.say, before=checkpoint)
            self.record.resume(checkpoint.state["record"])

    def _restore(self, checkpoint: Checkpoint, redo: Sequence[str]) -> None:
        state, tensors, trainee = checkpoint.state, checkpoint.tensors, self.trainee
        require_parents(checkpoint, self.origins)
        self.done = [
            name for name in state["done"] if not any(fnmatch(name, pattern) for pattern in redo)
        ]
        self.probe = None if state["probe"] is None else Evaluated.from_json(state["probe"])
        trainee.reasoning[:] = state["reasoning"]
        trainee.chosen = state["chosen"]
        # What is under way is of the first stage to come; in another recipe that may be another
        # one, which begins anew.
        comes = next(
            (stage.name for stage in self.stages() if stage.name not in state["done"]), None
        )
        under_way = state["segment"] if comes == state["stage"] else None
        trainee.texts = state["texts"] if comes == state["stage"] else []
        trainee.updates = state["updates"]
        trainee.progress = state["progress"]
        self.trained_updates = state["trained_updates"]
        trainee.rounds = state["rounds"]
        trainee.where = state["where"]
        trainee.optimizers = _named(tensors, "optimizer-")
        for name in ("cold", "trained"):
            pair = {
                role: tensors[f"{name}-{role}"] for role in ROLES if f"{name}-{role}" in tensors
            }
            if pair:
                self.kept[name] = pair
        for role in ROLES:
            trainee.load(role, tensors[role])
        if state["gate"] is not None:
            best = {role: tensors[f"best-{role}"] for role in ROLES}
            # One object where it is one pair, so that it is known as the best and written once.
            best |= {role: tensors[role] for role in ROLES if _same(tensors[role], best[role])}
            self.gate.restore(state["gate"], best, _named(tensors, "best-optimizer-"))
        self.outcome.restore(state["outcome"], self.data.tests)
        if under_way is not None:
            rollouts = [
                tensors.get(f"segment-rollouts-{rank}", {}) for rank in range(under_way["rollouts"])
            ]
            trainee.segment = Segment(
                step=under_way["step"],
                weights=tensors.get("segment-weights", {}),
                optimizer=tensors.get("segment-optimizer", {}),
                rollouts=rollouts,
                figures=under_way["figures"],
            )
        if "export" in self.done and not (self.folder.path / "estimator").exists():
            self.done.remove("export")
        self._add_rounds()
        self.record.say(f"resumed from {checkpoint.folder.name}")
        if state["processes"] != self.processes.count:
            self.record.say(
                f"{self.processes.count} processes go on from {state['processes']}: the same prompts and batches; "
                "sums are taken in another order, so figures agree up to rounding"
            )

    def _add_rounds(self) -> None:
        """Rounds that were added to the recipe come before what was done with the pair that had
        been final.
        """
        added = any(
            stage.name.startswith("round-") and stage.name not in self.done
            for stage in self.stages()
        )
        if added and "trained" in self.done:
            self.done = self.done[: self.done.index("trained")]
            trainee = self.trainee
            self._take("trained", ROLES)
            trainee.updates = dict(self.trained_updates)
            trainee.optimizers = {
                name: state for name, state in trainee.optimizers.items() if name in PHASES
            }
            trainee.progress = {
                name: step for name, step in trainee.progress.items() if name in PHASES
            }
            trainee.segment, trainee.texts = None, []
            self.outcome.forget()

    # Stages, in the order in which they come.

    def _cold_start(self, role: Role) -> None:
        trainee = self.trainee
        trainee.where = {"coevolve/round": 0, "coevolve/phase": "cold_start"}
        build = phases.connector_rows if role == CONNECTOR else phases.estimator_rows
        rows = build(trainee.estimator, trainee.train, self.traces)
        settings = getattr(self.recipe.cold_start, role)
        phases.sft(
            trainee, role, f"cold_{role}", f"cold start: {role} SFT", rows, settings, carry=False
        )

    def _first_gate(self) -> None:
        self._keep("cold")
        self.gate.start()
        self.probe = self.gate.best.held_out

    def _phase(self, turn: Turn) -> None:
        trainee, index, name = self.trainee, turn.round, turn.phase.name
        if self.gate.has_stopped(turn):
            return
        trainee.where = {"coevolve/round": index, "coevolve/phase": name}
        self.record.say(f"round {index} of {self.recipe.rounds.count}: {turn.label}")
        updates = trainee.updates[ESTIMATOR]
        PHASES[name](trainee, turn)
        trainee.rounds += [0] * (index - len(trainee.rounds))
        trainee.rounds[index - 1] += trainee.updates[ESTIMATOR] - updates
        if name == "refresh":
            self.gate.note_refresh()

    def _judge(self, turn: Turn) -> None:
        if not self.gate.has_stopped(turn):
            self.gate.judge(turn)

    def _diagnose(self, index: int) -> None:
        """What shows whether the pair evolves as it should, on held-out examples."""
        trainee, examples = self.trainee, self.data.validation
        golden, spread = golden_responses(examples), trainee.spread
        title = f"round {index}: diagnosis on {len(examples)} held-out examples"
        with self.record.task(title, 1) as advance:
            reasoning = self.gate.best.held_out.reasoning
            seed = derive_seed(self.recipe.seed, "diagnosis", index)
            values = diagnose(spread, examples, golden, reasoning, seed=seed)
            values |= drift(
                self.probe.scores, spread.log_prob(examples, golden, self.probe.reasoning)
            )
            advance(1)
        self.record.log({"coevolve/round": index, **values})
        for warning in warnings_in(values):
            self.record.say(f"warning: {warning}")

    def _keep(self, name: str) -> None:
        self.kept[name] = dict(self.trainee.pair)

    def _training_ends(self) -> None:
        self._keep("trained")
        self.trained_updates = dict(self.trainee.updates)

    def _take(self, name: str, roles: tuple[Role, ...]) -> None:
        for role in roles:
            self.trainee.load(role, self.kept[name][role])

    def _evaluate(self, name: str, split: str, *, without_reasoning: bool) -> None:
        examples = self.data.tests[split]
        reasoning = [None] * len(examples) if without_reasoning else None
        title = f"{name}: {split}, {len(examples)} examples"
        evaluated = evaluate(
            self.trainee.spread, examples, self.record, title, reasoning=reasoning
        ).measurable(title)
        self.outcome.perplexity(name, split, examples, evaluated.scores)
        self.record.log({"coevolve/phase": name, f"eval/perplexity/{split}": evaluated.perplexity})

    def _evaluate_marginal(self, name: str, split: str) -> None:
        examples, samples = self.data.tests[split], self.recipe.evaluation.marginal_samples
        title = f"{name}: {split}, log-mean over {samples} sampled reasonings"
        with self.record.task(title, 2 * samples * len(examples)) as advance:
            scores = self.trainee.spread.log_prob_marginal(
                examples,
                golden_responses(examples),
                samples=samples,
                seed=self.recipe.seed,
                progress=advance,
            )
        self.outcome.perplexity(f"{name}_marginal_{samples}", split, examples, scores)

    def _without_corl(self, part: int) -> None:
        if part == 1 and self.trainee.segment is None:
            self._take("cold", ROLES)
        self.trainee.where = {"coevolve/phase": "without_corl"}
        parts = self._baseline_parts
        continue_cold_start(self.trainee, self.examples, self.traces, "without_corl", part, parts)

    def _without_reasoning_cold(self) -> None:
        trainee = self.trainee
        if trainee.segment is None:
            self._take("untrained", (ESTIMATOR,))
        trainee.where = {"coevolve/phase": "without_reasoning"}
        rows = phases.estimator_rows(trainee.estimator, self.examples, [None] * len(self.examples))
        settings = self.recipe.cold_start.estimator
        name, title = "cold_without_reasoning", "without_reasoning: estimator SFT"
        phases.sft(trainee, ESTIMATOR, name, title, rows, settings, carry=False)

    def _without_reasoning(self, part: int) -> None:
        nothing = [None] * len(self.examples)
        parts = self._baseline_parts
        continue_cold_start(self.trainee, self.examples, nothing, "without_reasoning", part, parts)

    def _oracle(self, split: str) -> None:
        """The ceiling: the teacher's own features of the test responses, which no connector can
        know.
        """
        path = self.folder.path / "oracle" / f"{split}.jsonl"
        kept, traces = self.processes.on_main_first(
            lambda: self.tracer.collect(self.data.tests[split], path, log=self.record.log)
        )
        evaluated = evaluate(
            self.trainee.spread, kept, self.record, f"oracle: {split}", reasoning=traces
        )
        self.outcome.perplexity("oracle", split, kept, evaluated.scores)

    def _export(self) -> None:
        facts = training_facts(self.recipe, self.data.fingerprint, "end of the run", self._facts())
        folder = self.folder.path / "estimator"
        # Elsewhere than in the directory where it began, a run may come here when the baselines are
        # in memory.
        pair = dict(self.trainee.pair)
        self._take("trained", ROLES)
        self.processes.on_main(
            lambda: export_estimator(
                folder, self.trainee.estimator, self.recipe, self.origins, facts
            )
        )
        for role in ROLES:
            self.trainee.load(role, pair[role])
        self.record.say(f"exported the probability estimator to {folder}")
        self.record.artifact(
            folder, name=f"{self.recipe.name}-estimator", type="model", metadata=facts["training"]
        )

    def _remid(self) -> None:
        corpus = Corpus(
            splits={split: tuple(rows) for split, rows in self.data.tests.items()},
            source=self.data.corpus.source,
        )
        total = len(self.data.test_examples)
        with self.record.task(
            f"R-EMID of {len(self.responses)} models, {total} contexts", total
        ) as advance:
            report = from_totals(advance)
            self.outcome.remid = evaluate_remid(
                self.trainee.spread,
                corpus,
                self.responses,
                negatives=self.recipe.remid.negatives,
                seed=self.recipe.seed,
                contexts_at_once=32 * self.processes.count,
                progress=lambda what, done, total: report(done),
            )
        for row in self.outcome.remid["subsets"]:
            values = {
                f"eval/remi/{row['row']}/{name}": model["remi"]
                for name, model in row["models"].items()
            }
            self.record.log({"coevolve/phase": "remid", **values})

    def _exact(self) -> None:
        self.outcome.floors = self.truth.floors()
        self.outcome.exact = self.truth.exact_remid(self.outcome.remid["unit"])

    def _finish(self) -> dict[str, Any]:
        results = self.outcome.results(seconds=self.record.seconds)
        path = self.folder.path / "results.json"
        self.processes.on_main(lambda: write_json(path, results))
        self.outcome.show(self.record.console)
        self.record.say(f"results: {path}")
        return results

    # What they need.

    def _say_data(self, inputs: Training, log: Log) -> None:
        processes = f", {self.processes.count} processes" if self.processes.count > 1 else ""
        self.record.say(f"coevolve: recipe {self.recipe.name}, seed {self.recipe.seed}{processes}")
        splits = self.data.corpus.splits
        sizes = ", ".join(f"{split} {len(examples)}" for split, examples in splits.items())
        self.record.say(f"data: {self.data.corpus.source}: {sizes}")
        self._say_left_out(inputs.sifted.left_out, log)
        for split, limit in self.recipe.data.limit.items():
            if limit < len(splits[split]):
                self.record.say(
                    f"{split}: {limit} of {len(splits[split])} examples, as data.limit says"
                )

    def _say_left_out(self, left_out: Sequence[LeftOut], log: Log) -> None:
        for part in left_out:
            ids = list(part.sample_ids)
            self.record.say(
                f"{part.split}: dropped {len(ids)} of {part.of} examples that {part.why} (first {ids[0]!r})"
            )
            log({"data/dropped_too_long": len(ids), "data/split": part.split, "data/dropped": ids})

    def _world_responses(self) -> dict[str, dict[str, str]]:
        """Those of the policies to be judged, where there is a world."""
        wanted = {example.sample_id for example in self.data.test_examples}
        by_name = {} if self.truth is None else self.truth.responses
        return {
            name: {key: text for key, text in by_id.items() if key in wanted}
            for name, by_id in by_name.items()
        }

    def _build_estimator(self) -> ProbabilityEstimator:
        estimator = build_estimator(
            self.recipe, self.origins, self.renderers, self.processes.device
        )
        estimator.poll = self.processes.stop.poll
        return estimator

    def _start_trackers(self, environ: Mapping[str, str]) -> None:
        self.record.start_trackers(
            self.recipe.logging.report_to,
            project=self.recipe.logging.project,
            name=self.recipe.name,
            config={
                "recipe": recipe_values(self.recipe),
                "data_fingerprint": self.data.fingerprint,
                "parents": {role: origin.parent() for role, origin in self.origins.items()},
                "processes": self.processes.count,
                **environment_facts(),
            },
            environ=environ,
        )

    def _facts(self) -> dict[str, Any]:
        validation = None if self.gate.best is None else self.gate.best.held_out.perplexity
        return {
            "updates": dict(self.trained_updates or self.trainee.updates),
            "held_out_perplexity": {
                "form": "one greedy reasoning per example",
                "validation": validation,
                **self.outcome.perplexities().get("full", {}),
            },
        }


def _claimed(output_dir: str | Path) -> None:
    claim(output_dir, RUN, option="--output-dir")


def _logged_already(values: Mapping[str, Any]) -> None:
    """In place of the record's own, for what a resumed run finds out again."""


def _same(weights: Weights, others: Weights) -> bool:
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name]) for name in weights
    )


def _named(tensors: Mapping[str, Weights], prefix: str) -> dict[str, Weights]:
    return {
        group.removeprefix(prefix): weights
        for group, weights in tensors.items()
        if group.startswith(prefix)
    }
