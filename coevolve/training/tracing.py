"""The traces of the cold start, from whichever teacher the recipe names."""

from collections.abc import Sequence
from pathlib import Path

from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.prompts import Renderer, missing_sections
from coevolve.recipe import Recipe
from coevolve.teachers.base import Teacher
from coevolve.training.record import Record


def collect(
    recipe: Recipe, examples: Sequence[Example], renderer: Renderer, folder: Path, record: Record
) -> tuple[list[Example], list[str]]:
    """The examples that have a trace, and their traces, in order.

    Raises:
        DataError: a trace of the dataset or the file is missing or malformed; the example is named.
        TeacherError: the teacher gave no usable trace, and the recipe does not say to drop such examples.
    """
    if recipe.traces.teacher == "dataset":
        traces = {example.sample_id: _own_trace(example, renderer) for example in examples}
    elif recipe.traces.teacher == "file":
        from coevolve.teachers.traces import read_traces

        traces = read_traces(recipe.traces.path, examples, renderer.prompts)
    else:
        from coevolve.teachers.traces import collect_traces

        with record.task(f"traces from teacher {recipe.traces.teacher!r}", len(examples)) as advance:
            traces = collect_traces(
                examples,
                build_teacher(recipe, examples, renderer),
                folder / "traces.jsonl",
                on_failure=recipe.traces.on_failure,
                progress=advance,
            )
    kept = [example for example in examples if example.sample_id in traces]
    if len(kept) < len(examples):
        record.say(f"traces: {len(examples) - len(kept)} of {len(examples)} examples dropped, without a usable trace")
        record.log({"data/dropped_without_trace": len(examples) - len(kept)})
    return kept, [traces[example.sample_id] for example in kept]


def build_teacher(recipe: Recipe, examples: Sequence[Example], renderer: Renderer) -> Teacher:
    """The teacher that the recipe names."""
    settings = recipe.traces
    if settings.teacher == "rules":
        from coevolve.teachers.rules import RuleTeacher

        return RuleTeacher(renderer.prompts, examples, keywords=settings.keywords, max_keywords=settings.max_keywords)
    from coevolve.teachers.chat import EndpointTeacher, LocalTeacher

    if settings.teacher == "local":
        return LocalTeacher.load(settings.model, renderer, max_new_tokens=settings.max_new_tokens)
    return EndpointTeacher(
        renderer,
        base_url=settings.base_url,
        model=settings.model,
        api_key_env=settings.api_key_env,
        max_tokens=settings.max_new_tokens,
    )


def _own_trace(example: Example, renderer: Renderer) -> str:
    if example.trace is None:
        raise DataError(
            f"sample_ID {example.sample_id!r}: no trace, and traces.teacher is 'dataset'. Use another teacher."
        )
    faulty = missing_sections(example.trace, renderer.prompts.sections)
    if faulty:
        raise DataError(
            f"sample_ID {example.sample_id!r}: trace: section {faulty[0]!r} is missing, doubled, empty or out of order."
        )
    return example.trace
