"""Traces on disk: collected from a teacher so that nothing is asked twice, or read from a user's own file.

A file that `collect_traces` writes is JSON Lines: first what wrote it, then one line per trace, as it arrives:

    {"teacher": {"kind": "rules", ...}, "prompts": "<sha256>"}
    {"sample_ID": "IDTrain-00000", "trace": "[Connections] ...", "example": "<fingerprint>"}

`read_traces` reads such a file too; in one that a user writes, the first line and `example` are left out.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from coevolve.data.example import Example
from coevolve.errors import DataError, TeacherError
from coevolve.files import read_jsonl, write_jsonl
from coevolve.prompts.reasoning import missing_sections
from coevolve.prompts.sets import PromptSet
from coevolve.teachers.base import Teacher, require_response

Progress = Callable[[int, int, str], None]
"""Called with the number of examples done, their total, and a note in words."""

_HEADER = {"teacher", "prompts"}
_ROW = {"sample_ID", "trace", "example"}


def collect_traces(
    examples: Sequence[Example],
    teacher: Teacher,
    path: str | Path,
    *,
    on_failure: Literal["error", "drop"] = "error",
    progress: Progress | None = None,
) -> dict[str, str]:
    """The teacher's traces, by sample_ID, in the order of `examples`; only those that the file lacks are asked for.

    Args:
        examples: with golden responses.
        path: the file to continue or begin. Traces in it for other examples stay there and are not returned.
        on_failure: `error` stops at the first example without a usable trace. `drop` leaves such examples out of the
            result, which is then shorter than `examples`, and tells `progress` how many; a second start asks again.
        progress: told after every answer.

    Raises:
        TeacherError: an example without a usable trace (`error`), none with one (`drop`), or a teacher out of order.
        DataError: the file belongs to another teacher or prompt set, or to examples that have changed since.
    """
    path = Path(path)
    by_id = _by_id(examples)
    for example in examples:
        require_response(example)
    header = {"teacher": teacher.settings, "prompts": _fingerprint(teacher.prompts.to_dict())}
    found = _continue_file(path, header, by_id, teacher.prompts.sections)
    todo = [example for example in examples if example.sample_id not in found]
    dropped: list[str] = []
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        for answer in teacher.answers(todo):
            if answer.trace is not None:
                found[answer.sample_id] = answer.trace
                file.write(_line(by_id[answer.sample_id], answer.trace))
                file.flush()
            elif on_failure == "error":
                raise TeacherError(f"{answer.problem}. Set on_failure to drop to go on without such examples.")
            else:
                dropped.append(answer.problem)
            if progress is not None:
                progress(len(found) + len(dropped), len(examples), f"{len(dropped)} dropped" if dropped else "")
    if dropped and not found:
        raise TeacherError(f"The teacher gave no usable trace for any of {len(dropped)} examples. First: {dropped[0]}.")
    return {example.sample_id: found[example.sample_id] for example in examples if example.sample_id in found}


def read_traces(path: str | Path, examples: Sequence[Example], prompts: PromptSet) -> dict[str, str]:
    """The traces of a JSONL file of `{sample_ID, trace}`, by sample_ID, in the order of `examples`.

    Raises:
        DataError: names the line, for a row that is malformed, unknown, double, or without a section that the prompt
            set expects; or the examples for which the file has no trace.
    """
    by_id = _by_id(examples)
    rows = list(read_jsonl(path))
    if rows and _is_header(rows[0][1]):
        rows = rows[1:]
    traces = _parse(path, rows, by_id, prompts.sections, unknown="error")
    missing = [sample_id for sample_id in by_id if sample_id not in traces]
    if missing:
        listed = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path}: lacks a trace for {len(missing)} of {len(by_id)} examples: {listed}. Add a row for each."
        )
    return {sample_id: traces[sample_id] for sample_id in by_id}


def _continue_file(
    path: Path, header: Mapping[str, Any], by_id: Mapping[str, Example], sections: Sequence[str]
) -> dict[str, str]:
    """The traces that an earlier start left, if the file is this teacher's; a new file gets its header."""
    if not path.exists() or path.stat().st_size == 0:
        write_jsonl(path, [header])
        return {}
    _drop_torn_line(path)
    (_, first), *rows = list(read_jsonl(path)) or [(1, None)]
    if not _is_header(first):
        raise DataError(
            f"{path}:1: does not say which teacher wrote the file, so it is not continued. Name another file, or give "
            "this one as the source of the traces."
        )
    for part in ("teacher", "prompts"):
        if first[part] != json.loads(json.dumps(header[part])):
            raise DataError(
                f"{path}:1: the traces come from other {part}: {_difference(first[part], header[part])}. Name another "
                "file, or delete this one to ask again."
            )
    return _parse(path, rows, by_id, sections, unknown="leave")


def _drop_torn_line(path: Path) -> None:
    """Remove a last line without its end: the process was killed while writing it, and its example is asked again."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if 0 < whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


def _parse(
    path: str | Path,
    rows: Iterable[tuple[int, Any]],
    by_id: Mapping[str, Example],
    sections: Sequence[str],
    unknown: Literal["error", "leave"],
) -> dict[str, str]:
    traces: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        sample_id, trace = _checked_row(row, where)
        if sample_id in lines:
            raise DataError(f"{where}: sample_ID {sample_id!r} has a trace in line {lines[sample_id]} too. Remove one.")
        lines[sample_id] = number
        if sample_id not in by_id:
            if unknown == "leave":
                continue
            raise DataError(f"{where}: sample_ID {sample_id!r} is none of the {len(by_id)} examples. Remove the row.")
        if row.get("example", _example_fingerprint(by_id[sample_id])) != _example_fingerprint(by_id[sample_id]):
            raise DataError(
                f"{where}: the example {sample_id!r} has changed since its trace was written. Remove the line to have "
                "it asked again, or go back to the data of that time."
            )
        faulty = missing_sections(trace, sections)
        if faulty:
            raise DataError(
                f"{where}: the trace of {sample_id!r} has {faulty[0]!r} missing, doubled, out of order or empty. "
                f"Accepted is a text with {', '.join(sections)}, each once, in this order, with something under it."
            )
        traces[sample_id] = trace
    return traces


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


def _is_header(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == _HEADER


def _by_id(examples: Iterable[Example]) -> dict[str, Example]:
    by_id: dict[str, Example] = {}
    for example in examples:
        if example.sample_id in by_id:
            raise DataError(f"sample_ID {example.sample_id!r} is there twice among the examples. Give each its own.")
        by_id[example.sample_id] = example
    return by_id


def _line(example: Example, trace: str) -> str:
    row = {"sample_ID": example.sample_id, "trace": trace, "example": _example_fingerprint(example)}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _example_fingerprint(example: Example) -> str:
    """Of what a teacher is shown, so that a changed response does not keep its old trace."""
    row = example.to_row()
    row.pop("trace", None)
    return _fingerprint(row)[:16]


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _difference(found: Any, expected: Any) -> str:
    if not (isinstance(found, Mapping) and isinstance(expected, Mapping)):
        return f"found {found!r}, now {expected!r}"
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    return "; ".join(f"{name} was {found.get(name)!r} and is now {expected.get(name)!r}" for name in names)
