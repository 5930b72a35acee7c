"""Traces that need no teacher to be asked, and whether they leave an example within the room."""

from collections.abc import Mapping, Sequence

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.errors import DataError, TooLongError
from coevolve.preflight.dialogues import LeftOut, Needs, Renderers
from coevolve.prompts import PromptSet, missing_sections
from coevolve.recipe import Recipe
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR
from coevolve.teachers.traces import read_traces


def given_traces(
    recipe: Recipe, examples: Sequence[Example], prompts: PromptSet, corpus: Corpus
) -> dict[str, str] | None:
    """The data's own traces or a user's file's, by sample_ID, or DataError; None: ask a teacher."""
    if recipe.traces.teacher == "dataset":
        return {example.sample_id: _own_trace(example, prompts) for example in examples}
    if recipe.traces.teacher == "file":
        assert recipe.traces.path is not None  # as the recipe requires
        return read_traces(recipe.traces.path, examples, prompts, known=corpus.examples)
    return None


def fit_traces(
    recipe: Recipe,
    examples: Sequence[Example],
    traces: Sequence[str],
    renderers: Renderers,
    needs: Mapping[str, Needs],
) -> tuple[list[Example], list[str], LeftOut | None]:
    """The examples that fit `model.max_length` with their trace, these, and what was left out;
    TooLongError where that is not accepted, or nothing fits.
    """
    connector, estimator = renderers[CONNECTOR], renderers[ESTIMATOR]
    kept, longer = [], {}
    for example, trace in zip(examples, traces, strict=True):
        need = needs[example.sample_id]
        shown = len(estimator.prompt_ids(estimator.estimator(example, trace))) + need.response
        size = max(need.connector + len(connector.response_ids(trace)), shown)
        if size > recipe.model.max_length:
            longer[example.sample_id] = size
        else:
            kept.append((example, trace))
    if longer and (recipe.data.over_long == "error" or not kept):
        worst = max(longer, key=longer.__getitem__)
        raise TooLongError(
            f"sample_ID {worst!r}: needs {longer[worst]} tokens with its trace; model.max_length "
            f"is {recipe.model.max_length}, which {len(longer)} of {len(examples)} exceed. Raise "
            "it, or set data.over_long=drop."
        )
    left_out = LeftOut("IDTrain", "do not fit with their trace", len(examples), list(longer))
    fitting, theirs = [example for example, _ in kept], [trace for _, trace in kept]
    return fitting, theirs, left_out if longer else None


def _own_trace(example: Example, prompts: PromptSet) -> str:
    if example.trace is None:
        why = "no trace, and traces.teacher is 'dataset'. Use another teacher"
        raise DataError(f"sample_ID {example.sample_id!r}: {why}.")
    faulty = missing_sections(example.trace, prompts.sections)
    if faulty:
        why = f"section {faulty[0]!r} is missing, doubled, empty or out of order"
        raise DataError(f"sample_ID {example.sample_id!r}: trace: {why}.")
    return example.trace
