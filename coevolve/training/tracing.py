"""The traces of the cold start, from whichever teacher the recipe names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.preflight.traces import given_traces
from coevolve.progress import from_totals
from coevolve.prompts import Renderer
from coevolve.recipe import Recipe
from coevolve.teachers import Teacher, collect_traces, make_teacher
from coevolve.training.record.record import Record

Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Tracer:
    """Gets traces r* for examples.

    Attributes:
        corpus: all examples, of which a file may have traces.
        train: the training examples, from which a rule-based teacher learns which words are rare.
        environ: where an endpoint's key is looked up.
        date: ISO; what the chat template of a local teacher shows, if it shows one.
    """

    recipe: Recipe
    corpus: Corpus
    train: Sequence[Example]
    renderer: Renderer
    record: Record
    environ: Mapping[str, str]
    date: str

    def collect(
        self, examples: Sequence[Example], path: Path, *, log: Log
    ) -> tuple[list[Example], list[str]]:
        """The examples that have a trace, and their traces, in order.

        Args:
            path: where a teacher's traces are kept as they arrive.
            log: where the figures go; a run that is resumed has them in its record already.

        Raises:
            DataError: a trace of the dataset or the file is missing or malformed; the example is
                named.
            TeacherError: the teacher gave no usable trace, and the recipe does not say to drop such
                examples.
        """
        settings = self.recipe.traces
        traces = given_traces(self.recipe, examples, self.renderer.prompts, self.corpus)
        if traces is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            title = f"traces from teacher {settings.teacher!r}"
            with self.record.task(title, len(examples)) as advance:
                report = from_totals(advance)
                traces = collect_traces(
                    examples,
                    self._teacher(),
                    path,
                    on_failure=settings.on_failure,
                    progress=lambda done, total, note: report(done),
                )
        kept = [example for example in examples if example.sample_id in traces]
        if len(kept) < len(examples):
            dropped, of = len(examples) - len(kept), len(examples)
            self.record.say(f"traces: {dropped} of {of} examples dropped, without a usable trace")
            log({"data/dropped_without_trace": dropped})
        return kept, [traces[example.sample_id] for example in kept]

    def _teacher(self) -> Teacher:
        return make_teacher(
            self.recipe.traces,
            prompts=self.renderer.prompts,
            renderer=self.renderer,
            train=self.train,
            environ=self.environ,
            seed=self.recipe.seed,
            device=self.recipe.model.device,
            date=self.date,
        )
