"""A whole run: traces, cold start, gated rounds, baselines, export, R-EMID.

Deviations from the published procedure: every phase is gated on held-out perplexity and rolled back if it made it
worse; the gate looks at a part of IDTrain that nothing trains on, never at a test split.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.data.responses import read_responses
from coevolve.errors import ArtifactError, RecipeError
from coevolve.files import write_json
from coevolve.progress import from_totals, quieten_libraries
from coevolve.prompts import Renderer
from coevolve.recipe import Recipe, recipe_values
from coevolve.remid.evaluate import evaluate_remid
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role
from coevolve.training import phases
from coevolve.training.baselines import continue_cold_start
from coevolve.training.checkpoints import RUN, save_checkpoint, start_run
from coevolve.training.engines import steps_of
from coevolve.training.evaluation import evaluate, golden_responses
from coevolve.training.export import export_estimator, training_facts
from coevolve.training.gate import Gate
from coevolve.training.known_truth import KnownTruth
from coevolve.training.outcome import Outcome
from coevolve.training.phases import Trainee
from coevolve.training.record import Record
from coevolve.training.setup import (
    Base,
    Dialogues,
    build_estimator,
    build_renderer,
    load_corpus,
    prepare_base,
    split_dialogues,
    world_seed,
)
from coevolve.training.tracing import Tracer

PHASES: Mapping[str, tuple[Callable[[Trainee, int], None], Role | None]] = {
    "connector_rl": (phases.connector_rl, CONNECTOR),
    "refresh": (phases.refresh, None),
    "estimator_sft": (phases.estimator_sft, ESTIMATOR),
    "estimator_rl": (phases.estimator_rl, ESTIMATOR),
}


def train(
    recipe: Recipe, output_dir: str | Path, *, environ: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Run the recipe and return what `results.json` holds.

    Args:
        recipe: checked already.
        output_dir: a new or empty directory.
        environ: where a teacher's key is looked up, under the name that the recipe gives.

    Raises:
        ArtifactError: the directory holds a run.
        DataError, RecipeError, TooLongError: before anything is trained.
    """
    folder = Path(output_dir)
    if (folder / RUN).exists():
        raise ArtifactError(f"{folder} holds a run already. Give another --output-dir, or delete that one.")
    folder.mkdir(parents=True, exist_ok=True)
    quieten_libraries()
    state = PartialState()
    if state.num_processes > 1:
        raise RecipeError(
            f"{state.num_processes} processes were launched; a run takes one so far. Use launch/one_gpu.yaml or "
            "launch/one_cpu.yaml, or --num_processes 1."
        )
    record = Record(folder, main=state.is_main_process)
    try:
        return Run(recipe, folder, record, state, environ).go()
    finally:
        record.close()


class Run:
    """One run in progress."""

    def __init__(self, recipe: Recipe, folder: Path, record: Record, state: PartialState, environ: Mapping[str, str]):
        self.recipe, self.folder, self.record, self.state = recipe, folder, record, state
        self.began = time.monotonic()
        corpus = self._read_data()
        self.base: Base = prepare_base(recipe, folder)
        self.renderer: Renderer = build_renderer(recipe, self.base)
        self.data: Dialogues = split_dialogues(recipe, corpus, self.renderer, record)
        self.truth = KnownTruth(world_seed(recipe), recipe.data.world.strength, corpus) if recipe.data.world else None
        self.responses = self._read_responses()
        self.tracer = Tracer(recipe, self.data.train, self.renderer, record, environ)
        self.outcome = Outcome(recipe)
        if state.is_main_process:
            start_run(folder, recipe, self.base, self.data.fingerprint)
            if self.truth is not None:
                self.truth.write(folder / "world")
        if recipe.logging.report_to:
            record.start_wandb(project=recipe.logging.project, name=recipe.name, config=recipe_values(recipe))

    def go(self) -> dict[str, Any]:
        """Everything, in order."""
        examples, traces = self.tracer.collect(self.data.train, self.folder / "traces.jsonl")
        estimator = build_estimator(self.recipe, self.base, self.renderer)
        untrained = estimator.roles.weights(ESTIMATOR)
        trainee = Trainee(
            self.recipe, estimator, examples, list(traces), self.record, processes=self.state.num_processes
        )
        self._cold_start(trainee, traces)
        cold = {role: estimator.roles.weights(role) for role in ROLES}
        for index in range(1, self.recipe.rounds.count + 1):
            self._round(trainee, index)
        trained = {role: estimator.roles.weights(role) for role in ROLES}
        self._evaluate_tests(estimator, "full")
        self._export(trainee)
        self._remid(estimator)
        self._baselines(trainee, cold, untrained, examples, traces)
        for role in ROLES:
            estimator.roles.load_weights(role, trained[role])
        return self._finish()

    # Parts, in the order in which they come.

    def _read_data(self) -> Corpus:
        self.record.say(f"coevolve: recipe {self.recipe.name}, seed {self.recipe.seed}")
        corpus = load_corpus(self.recipe)
        sizes = ", ".join(f"{split} {len(examples)}" for split, examples in corpus.splits.items())
        self.record.say(f"data: {corpus.source}: {sizes}")
        return corpus

    def _read_responses(self) -> dict[str, dict[str, str]]:
        """Responses of the models to be judged, read before anything is trained."""
        examples = self.data.test_examples
        responses = {}
        for name, path in self.recipe.remid.responses.items():
            texts = read_responses(path, self.data.corpus_test_examples)
            by_id = {x.sample_id: text for x, text in zip(self.data.corpus_test_examples, texts, strict=True)}
            responses[name] = {example.sample_id: by_id[example.sample_id] for example in examples}
        if self.truth is not None:
            wanted = {example.sample_id for example in examples}
            for name, by_id in self.truth.responses().items():
                responses[name] = {key: text for key, text in by_id.items() if key in wanted}
        return responses

    def _cold_start(self, trainee: Trainee, traces: Sequence[str]) -> None:
        trainee.where = {"coevolve/round": 0, "coevolve/phase": "cold_start"}
        rows = {
            CONNECTOR: phases.connector_rows(trainee.estimator, trainee.train, traces),
            ESTIMATOR: phases.estimator_rows(trainee.estimator, trainee.train, traces),
        }
        for role in ROLES:
            settings = getattr(self.recipe.cold_start, role)
            steps = steps_of(settings, len(rows[role]), trainee.processes)
            phases.sft(trainee, role, rows[role], settings, f"cold start: {role} SFT", "cold", role, steps=steps)
            trainee.updates[role] += steps
        self.gate = Gate(trainee, self.data.validation, self.recipe.rounds.gate_tolerance)
        self.outcome.gates = self.gate.verdicts
        self._checkpoint(trainee, "0-cold-start")

    def _round(self, trainee: Trainee, index: int) -> None:
        updates = trainee.updates[ESTIMATOR]
        for position, name in enumerate(self.recipe.rounds.phases):
            trainee.where = {"coevolve/round": index, "coevolve/phase": name}
            self.record.say(f"round {index} of {self.recipe.rounds.count}: {name}")
            run_phase, role = PHASES[name]
            run_phase(trainee, index)
            if role is not None:
                later = self.recipe.rounds.phases[position + 1 :]
                self.gate.judge(index, name, role, may_wait="estimator_sft" in later)
        trainee.rounds.append(trainee.updates[ESTIMATOR] - updates)
        self._checkpoint(trainee, f"{index}-round-{index}")

    def _evaluate_tests(self, estimator: ProbabilityEstimator, name: str, *, without_reasoning: bool = False) -> None:
        for split, examples in self.data.tests.items():
            reasoning = [None] * len(examples) if without_reasoning else None
            evaluated = evaluate(
                estimator, examples, self.record, f"{name}: {split}, {len(examples)} examples", reasoning=reasoning
            )
            self.outcome.perplexity(name, split, examples, evaluated.scores)
            self.record.log({"coevolve/phase": name, f"eval/perplexity/{split}": evaluated.perplexity})
        self._evaluate_marginal(estimator, name, without_reasoning)

    def _evaluate_marginal(self, estimator: ProbabilityEstimator, name: str, without_reasoning: bool) -> None:
        samples = self.recipe.evaluation.marginal_samples
        if not samples or without_reasoning:
            return
        for split, examples in self.data.tests.items():
            title = f"{name}: {split}, log-mean over {samples} sampled reasonings"
            with self.record.task(title, 2 * samples * len(examples)) as advance:
                scores = estimator.log_prob_marginal(
                    examples,
                    golden_responses(examples),
                    samples=samples,
                    seed=self.recipe.seed,
                    progress=advance,
                )
            self.outcome.perplexity(f"{name}_marginal_{samples}", split, examples, scores)

    def _baselines(
        self,
        trainee: Trainee,
        cold: Mapping[Role, Any],
        untrained: Any,
        examples: Sequence[Example],
        traces: Sequence[str],
    ) -> None:
        roles, wanted = trainee.estimator.roles, self.recipe.baselines
        if wanted.without_corl or wanted.oracle:
            for role in ROLES:
                roles.load_weights(role, cold[role])
            trainee.where = {"coevolve/phase": "without_corl"}
            continue_cold_start(trainee, examples, traces, "without_corl")
            if wanted.without_corl:
                self._evaluate_tests(trainee.estimator, "without_corl")
            if wanted.oracle:
                self._evaluate_oracle(trainee.estimator)
        if wanted.without_reasoning:
            roles.load_weights(ESTIMATOR, untrained)
            trainee.where = {"coevolve/phase": "without_reasoning"}
            nothing = [None] * len(examples)
            rows = phases.estimator_rows(trainee.estimator, examples, nothing)
            settings = self.recipe.cold_start.estimator
            steps = steps_of(settings, len(rows), trainee.processes)
            title = "without_reasoning: estimator SFT"
            phases.sft(trainee, ESTIMATOR, rows, settings, title, "without_reasoning", steps=steps)
            continue_cold_start(trainee, examples, nothing, "without_reasoning")
            self._evaluate_tests(trainee.estimator, "without_reasoning", without_reasoning=True)

    def _evaluate_oracle(self, estimator: ProbabilityEstimator) -> None:
        """The ceiling: the teacher's own features of the test responses, which no connector can know."""
        for split, examples in self.data.tests.items():
            kept, traces = self.tracer.collect(examples, self.folder / "oracle" / f"{split}.jsonl")
            evaluated = evaluate(estimator, kept, self.record, f"oracle: {split}", reasoning=traces)
            self.outcome.perplexity("oracle", split, kept, evaluated.scores)

    def _checkpoint(self, trainee: Trainee, name: str) -> None:
        if self.state.is_main_process:
            save_checkpoint(self.folder / "checkpoints" / name, trainee.estimator.roles, self._facts(trainee))
        self.state.wait_for_everyone()

    def _facts(self, trainee: Trainee) -> dict[str, Any]:
        return {
            "updates": dict(trainee.updates),
            "held_out_perplexity": {
                "form": "one greedy reasoning per example",
                "validation": self.gate.best.held_out.perplexity,
                **self.outcome.perplexities().get("full", {}),
            },
        }

    def _export(self, trainee: Trainee) -> None:
        if self.state.is_main_process:
            facts = training_facts(self.recipe, self.data.fingerprint, "end of the run", self._facts(trainee))
            export_estimator(self.folder / "estimator", trainee.estimator, self.recipe, self.base, facts)
        self.state.wait_for_everyone()
        self.record.say(f"exported the probability estimator to {self.folder / 'estimator'}")

    def _remid(self, estimator: ProbabilityEstimator) -> None:
        if not self.responses:
            return
        corpus = Corpus(
            splits={split: tuple(rows) for split, rows in self.data.tests.items()}, source=self.data.corpus.source
        )
        total = len(self.data.test_examples)
        with self.record.task(f"R-EMID of {len(self.responses)} models, {total} contexts", total) as advance:
            report = from_totals(advance)
            results = evaluate_remid(
                estimator,
                corpus,
                self.responses,
                negatives=self.recipe.remid.negatives,
                seed=self.recipe.seed,
                progress=lambda what, done, total: report(done),
            )
        self.outcome.remid = results
        self.outcome.exact = self.truth.exact_remid() if self.truth else None

    def _finish(self) -> dict[str, Any]:
        if self.truth is not None:
            self.outcome.floors = self.truth.floors()
        results = self.outcome.results(seconds=time.monotonic() - self.began)
        if self.state.is_main_process:
            write_json(self.folder / "results.json", results)
            self.outcome.show(self.record.console)
            self.record.say(f"results: {self.folder / 'results.json'}")
        return results
