"""Traces on disk: collected from a teacher so that nothing is asked twice, or read from a user's
own file.

A file that `collect_traces` writes is a ledger (`coevolve.data.ledger`), one line per trace, as it
arrives:

    {"teacher": {"kind": "rules", ...}, "prompts": "<sha256>"}
    {"sample_ID": "IDTrain-00000", "trace": "[Connections] ...", "example": "<fingerprint>"}

`read_traces` reads such a file too; in one that a user writes, the first line and `example` are
left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from coevolve.data.example import Example, listed, plain_row
from coevolve.data.ledger import Ledger, ReadRow, answers_by_id, digest, index_by_id, is_header
from coevolve.errors import DataError, TeacherError
from coevolve.files import read_jsonl
from coevolve.prompts.reasoning import missing_sections
from coevolve.prompts.sets import PromptSet
from coevolve.teachers.base import Answer, Teacher, require_response

Progress = Callable[[int, int, str], None]
"""Called with the number of examples done, their total, and a note in words."""

_HEADER = ("teacher", "prompts")
_ROW = {"sample_ID", "trace", "example"}


def collect_traces(
    examples: Sequence[Example],
    teacher: Teacher,
    path: str | Path,
    *,
    on_failure: Literal["error", "drop"] = "error",
    progress: Progress | None = None,
    ask: Callable[[Sequence[Example]], Iterator[Answer]] | None = None,
) -> dict[str, str]:
    """The teacher's traces, by sample_ID, in the order of `examples`; only those that the file
    lacks are asked for.

    TeacherError for a teacher out of order, DataError for a file that another teacher or prompt set
    began, or whose examples have changed since.

    Args:
        path: the file to continue or begin. Traces in it for other examples stay there.
        on_failure: `error` stops at the first example without a usable trace. `drop` leaves such
            examples out of the result, and tells `progress` how many; a second start asks again.
        ask: what gives the answers, where it is not the teacher here alone.
    """
    ledger = _ledger(examples, teacher, path)
    traces = ledger.answers
    dropped: list[str] = []
    with ledger.adding() as add:
        for answer in (ask or teacher.answers)(ledger.todo):
            if answer.trace is not None:
                traces[answer.sample_id] = answer.trace
                add(answer.sample_id, trace=answer.trace)
            elif on_failure == "error":
                raise TeacherError(f"{answer.problem}. on_failure: drop goes on without it.")
            else:
                dropped.append(answer.problem)
            if progress is not None:
                note = f"{len(dropped)} dropped" if dropped else ""
                progress(len(traces) + len(dropped), len(examples), note)
    if dropped and not traces:
        raise TeacherError(
            f"The teacher gave no usable trace for any of {len(dropped)} examples. First: "
            f"{dropped[0]}."
        )
    return {name: traces[name] for name in ledger.by_id if name in traces}


def unanswered(examples: Sequence[Example], teacher: Teacher, path: str | Path) -> list[Example]:
    """The examples that `collect_traces` would ask about."""
    return _ledger(examples, teacher, path).todo


def _ledger(
    examples: Sequence[Example], teacher: Teacher, path: str | Path
) -> Ledger[str, Example]:
    for example in examples:
        require_response(example)
    header = dict(zip(_HEADER, (teacher.settings, digest(teacher.prompts.to_dict())), strict=True))
    read_row = _row_reader(teacher.prompts.sections)
    return Ledger(path, header, _HEADER, examples, read_row, _fingerprint)


def read_traces(
    path: str | Path,
    examples: Sequence[Example],
    prompts: PromptSet,
    *,
    known: Sequence[Example] = (),
) -> dict[str, str]:
    """The traces of a JSONL file of `{sample_ID, trace}`, by sample_ID, in the order of `examples`;
    it may have some of `known` ones too, such as those that were held out.
    """
    by_id = index_by_id(examples)
    rows = [(number, plain_row(row)) for number, row in read_jsonl(path)]
    everyone = {example.sample_id: example for example in known} | by_id
    if rows and is_header(rows[0][1], _HEADER):
        rows = rows[1:]
    traces = answers_by_id(
        path, rows, everyone, _row_reader(prompts.sections), _fingerprint, unknown="error"
    )
    missing = [sample_id for sample_id in by_id if sample_id not in traces]
    if missing:
        raise DataError(
            f"{path}: lacks a trace for {len(missing)} of {len(by_id)} examples: "
            f"{listed(missing)}. Add a row for each."
        )
    return {sample_id: traces[sample_id] for sample_id in by_id}


def _row_reader(sections: Sequence[str]) -> ReadRow[str]:
    def read(row: Any, where: str) -> tuple[str, str]:
        sample_id, trace = _checked_row(row, where)
        faulty = missing_sections(trace, sections)
        if faulty:
            raise DataError(
                f"{where}: the trace of {sample_id!r} has {faulty[0]!r} missing, doubled, out of "
                f"order or empty. Accepted is a text with {', '.join(sections)}, each once, in "
                "this order, with something under it."
            )
        return sample_id, trace

    return read


def _checked_row(row: Any, where: str) -> tuple[str, str]:
    accepted = "accepted is an object with sample_ID and trace, both non-empty strings"
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: found {type(row).__name__}; {accepted}.")
    unknown = [field for field in row if field not in _ROW]
    if unknown:
        raise DataError(f"{where}: unknown field {unknown[0]!r}; {accepted}.")
    for field in ("sample_ID", "trace"):
        if field not in row:
            raise DataError(f"{where}: field {field!r} is missing; {accepted}.")
        if not isinstance(row[field], str) or not row[field].strip():
            raise DataError(f"{where}: {field} is {json.dumps(row[field])[:80]}; {accepted}.")
    return row["sample_ID"], row["trace"]


def _fingerprint(example: Example) -> str:
    """Of what a teacher is shown, so that a changed response does not keep its old trace."""
    row = example.to_row()
    row.pop("trace", None)
    return digest(row)[:16]
