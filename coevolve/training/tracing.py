"""The traces of the cold start, from whichever teacher the recipe names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.progress import from_totals
from coevolve.prompts import Renderer, missing_sections
from coevolve.recipe import Recipe
from coevolve.teachers.base import Teacher
from coevolve.teachers.chat import EndpointTeacher, LocalTeacher
from coevolve.teachers.rules import RuleTeacher
from coevolve.teachers.traces import collect_traces, read_traces
from coevolve.training.record.record import Record
from coevolve.training.setup import Log


class Tracer:
    """Gets traces r* for examples.

    Args:
        train: the training examples, from which a rule-based teacher learns which words are rare.
        environ: where an endpoint's key is looked up.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[Example],
        renderer: Renderer,
        record: Record,
        environ: Mapping[str, str],
    ):
        self.recipe, self.train, self.renderer, self.record, self.environ = recipe, train, renderer, record, environ

    def collect(self, examples: Sequence[Example], path: Path, *, log: Log) -> tuple[list[Example], list[str]]:
        """The examples that have a trace, and their traces, in order.

        Args:
            path: where a teacher's traces are kept as they arrive.
            log: where the figures go; a run that is resumed has them in its record already.

        Raises:
            DataError: a trace of the dataset or the file is missing or malformed; the example is named.
            TeacherError: the teacher gave no usable trace, and the recipe does not say to drop such examples.
        """
        settings = self.recipe.traces
        if settings.teacher == "dataset":
            traces = {example.sample_id: self._own_trace(example) for example in examples}
        elif settings.teacher == "file":
            traces = read_traces(settings.path, examples, self.renderer.prompts)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.record.task(f"traces from teacher {settings.teacher!r}", len(examples)) as advance:
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
            dropped = len(examples) - len(kept)
            self.record.say(f"traces: {dropped} of {len(examples)} examples dropped, without a usable trace")
            log({"data/dropped_without_trace": dropped})
        return kept, [traces[example.sample_id] for example in kept]

    def _teacher(self) -> Teacher:
        settings, prompts = self.recipe.traces, self.renderer.prompts
        if settings.teacher == "rules":
            return RuleTeacher(prompts, self.train, keywords=settings.keywords, max_keywords=settings.max_keywords)
        if settings.teacher == "local":
            return LocalTeacher.load(
                settings.model,
                prompts,
                device=self.recipe.model.device,
                max_new_tokens=settings.max_new_tokens,
                seed=self.recipe.seed,
            )
        return EndpointTeacher(
            settings.base_url,
            settings.model,
            self.renderer,
            api_key_env=settings.api_key_env,
            environ=self.environ,
            max_tokens=settings.max_new_tokens,
        )

    def _own_trace(self, example: Example) -> str:
        if example.trace is None:
            raise DataError(
                f"sample_ID {example.sample_id!r}: no trace, and traces.teacher is 'dataset'. Use another teacher."
            )
        faulty = missing_sections(example.trace, self.renderer.prompts.sections)
        if faulty:
            raise DataError(
                f"sample_ID {example.sample_id!r}: trace: section {faulty[0]!r} is missing, doubled, empty or out of "
                "order."
            )
        return example.trace
