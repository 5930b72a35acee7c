"""The traces of the cold start, from whichever teacher the recipe names.

When a teacher has been asked about all examples, `NAME.kept.json` beside its traces says which of
them have one. From then on the traces on disk are all that a run needs, and its examples are those:
no teacher is built, loaded or asked again, whatever has become of it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.data.ledger import digest
from coevolve.documents import Document, read_document
from coevolve.errors import ArtifactError
from coevolve.files import write_json
from coevolve.preflight.traces import given_traces
from coevolve.progress import from_totals
from coevolve.prompts import Renderer
from coevolve.recipe import Recipe
from coevolve.recipe.schema import Traces
from coevolve.teachers import (
    Answer,
    DivisibleTeacher,
    LocalTeacher,
    Teacher,
    collect_traces,
    make_teacher,
    read_traces,
    unanswered,
)
from coevolve.training.distributed.processes import Processes
from coevolve.training.record.record import Record

Log = Callable[[Mapping[str, Any]], None]
Ask = Callable[[Sequence[Example]], Iterator[Answer]]
TRACES = "traces.jsonl"
"""Of the training examples, in a run's directory."""


class Kept(Document):
    """`NAME.kept.json`: which examples a teacher gave a usable trace of."""

    asked: str
    """SHA-256 of what it was asked: the recipe's section and the examples."""
    sample_IDs: list[str]
    """Of the examples with a trace."""


def kept_file(traces: Path) -> Path:
    """What says which examples have a trace in a file of them."""
    return traces.with_suffix(".kept.json")


@dataclass(frozen=True)
class Tracer:
    """Gets traces r* for examples; a rule-based teacher learns from `train` which words are rare.

    Where the teacher's work can be divided, all processes share it, and the main one writes.
    """

    recipe: Recipe
    corpus: Corpus
    train: Sequence[Example]
    renderer: Renderer
    record: Record
    environ: Mapping[str, str]
    date: str
    processes: Processes

    def collect(
        self, examples: Sequence[Example], path: Path, *, log: Log
    ) -> tuple[list[Example], list[str]]:
        """The examples that have a trace, and their traces, in order; a teacher's are kept in
        `path`. A collective call.

        Raises DataError, naming the example, for a trace that is missing or malformed, TeacherError
        where the teacher gave none, and the recipe does not say to drop such examples.
        """
        processes = self.processes

        def look() -> dict[str, str] | None:
            given = given_traces(self.recipe, examples, self.renderer.prompts, self.corpus)
            return self._on_disk(examples, path) if given is None else given

        # The others look when there is something: disks remember what was not there.
        found = processes.on_main(look)
        if processes.gather(found is None)[0]:
            self._ask(examples, path)
        traces = processes.on_main_first(lambda: look() if found is None else found)
        assert traces is not None  # they were asked for
        kept = [example for example in examples if example.sample_id in traces]
        if len(kept) < len(examples):
            dropped, of = len(examples) - len(kept), len(examples)
            self.record.say(f"traces: {dropped} of {of} examples dropped, without a usable trace")
            log({"data/dropped_without_trace": dropped})
        return kept, [traces[example.sample_id] for example in kept]

    def _on_disk(self, examples: Sequence[Example], path: Path) -> dict[str, str] | None:
        """Traces of a teacher that was asked before about all of the examples; else None."""
        if not (path.is_file() and kept_file(path).is_file()):
            return None
        remedy = "Delete it to have the teacher asked about what is missing."
        kept = read_document(kept_file(path), Kept, remedy=remedy, error=ArtifactError)
        if kept.asked != self._question(examples):
            return None
        names = set(kept.sample_IDs)
        chosen = [example for example in examples if example.sample_id in names]
        known = [*self.corpus.examples, *examples]
        return read_traces(path, chosen, self.renderer.prompts, known=known)

    def _question(self, examples: Sequence[Example]) -> str:
        # Whoever runs the model, it is the same teacher.
        engine = {x for x in Traces.model_fields if "vllm" in x}
        settings = self.recipe.traces.model_dump(mode="json", exclude={"on_failure", *engine})
        prompts = self.renderer.prompts.to_dict()
        return digest([settings, prompts, *(example.to_row() for example in examples)])

    def _ask(self, examples: Sequence[Example], path: Path) -> None:
        """Have `path` filled by the teacher, and say what it was asked."""
        processes, make = self.processes, self._teacher
        teacher = processes.on_main(make)
        todo: Sequence[Example] = ()
        if processes.gather(processes.count > 1 and isinstance(teacher, DivisibleTeacher))[0]:
            teacher = processes.together(lambda: teacher or make())
            left = processes.on_main(lambda: unanswered(examples, teacher, path)) or ()
            names = processes.gather({example.sample_id for example in left})[0]
            todo = [example for example in examples if example.sample_id in names]

        def own(asked: Sequence[Example]) -> Iterator[Answer]:
            if isinstance(teacher, DivisibleTeacher) and processes.count > 1:
                asked = teacher.share(asked, processes.rank, processes.count)
            if teacher is not None:
                yield from teacher.answers(asked)

        def work() -> None:
            if processes.main:
                assert teacher is not None
                self._keep(examples, path, teacher, own)
            else:
                deque(processes.pooled(own(todo)), maxlen=0)

        try:
            processes.together(work)
        finally:
            if isinstance(teacher, LocalTeacher):
                teacher.close()

    def _keep(self, examples: Sequence[Example], path: Path, teacher: Teacher, own: Ask) -> None:
        title = f"traces from teacher {self.recipe.traces.teacher!r}"
        with self.record.task(title, len(examples)) as advance:
            report = from_totals(advance)
            traces = collect_traces(
                examples,
                teacher,
                path,
                on_failure=self.recipe.traces.on_failure,
                progress=lambda done, total, note: report(done),
                ask=lambda asked: self.processes.pooled(own(asked)),
            )
        document = Kept(asked=self._question(examples), sample_IDs=list(traces))
        write_json(kept_file(path), document.values())

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
            poll=self.processes.stop.poll,
        )
