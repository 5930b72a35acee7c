"""Answers about examples on disk: each is there when it arrives, and nothing is asked twice.

A ledger is JSON Lines. The first line says what gave the answers, every further one holds an answer
and a fingerprint of the example that it is about:

    {"teacher": {"kind": "rules", ...}, "prompts": "<sha256>"}
    {"sample_ID": "IDTrain-00000", "trace": "[Connections] ...", "example": "<fingerprint>"}
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from coevolve.errors import DataError
from coevolve.files import parse_json, read_bytes, write_jsonl, writing

Value = TypeVar("Value")

Line = tuple[int, Any]
"""(line number from 1, decoded JSON value)."""

ReadRow = Callable[[Any, str], tuple[str, Value]]
"""From a row and its place to (sample_ID, answer); raises DataError."""


class Item(Protocol):
    """What is answered: an example, or a question of another kind with a name of its own."""

    @property
    def sample_id(self) -> str: ...


Asked = TypeVar("Asked", bound=Item)
Fingerprint = Callable[[Asked], str]
"""Of what an answer depends on in its example."""


class Ledger(Generic[Value, Asked]):
    """A ledger to go on with; one that is not there is begun. DataError if its answers come from
    something else.

    Args:
        header: JSON values that say what gives the answers.
        compared: the keys of `header` whose values decide an answer; the others are for the record.
        examples: to be answered; answers about others stay in the file.

    Attributes:
        by_id: the examples by sample_ID.
        answers: those that the file has, by sample_ID.
        todo: the examples without one.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        compared: Iterable[str],
        examples: Iterable[Asked],
        read_row: ReadRow[Value],
        fingerprint: Fingerprint[Asked],
    ):
        self.path, self.by_id, self._fingerprint = Path(path), index_by_id(examples), fingerprint
        rows = self._lines_behind(header, compared)
        self.answers = answers_by_id(path, rows, self.by_id, read_row, fingerprint, unknown="leave")
        self.todo = [x for name, x in self.by_id.items() if name not in self.answers]

    @contextmanager
    def adding(self) -> Iterator[Callable[..., None]]:
        """Inside, a function from sample_ID and the fields of an answer that appends it and sees it
        onto the disk. Only now is a torn last line taken out.
        """
        with open(self.path, "r+b") as old:
            content = old.read()
            whole = _whole(content)
            if whole < len(content):
                old.truncate(whole)
            elif not content.endswith(b"\n"):
                old.write(b"\n")
        # Without a buffer, which would be written once more, in vain, where a disk is full.
        with open(self.path, "ab", buffering=0) as file:

            def add(sample_id: str, **answer: Any) -> None:
                about = self._fingerprint(self.by_id[sample_id])
                row = {"sample_ID": sample_id, **answer, "example": about}
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                with writing(self.path):
                    while line:
                        line = line[file.write(line) :]
                    os.fsync(file.fileno())
                self._require_there(file.fileno())

            yield add

    def _require_there(self, descriptor: int) -> None:
        """Raise DataError unless what was written is at the path still."""
        written = os.fstat(descriptor)
        try:
            there = os.path.samestat(os.stat(self.path), written)
        except FileNotFoundError:
            there = False
        if not there:
            raise DataError(
                f"{self.path}: was deleted or moved while it was written, and with it the answers "
                "that came. Start again, or put it back to go on from there."
            )

    def _lines_behind(self, header: Mapping[str, Any], compared: Iterable[str]) -> list[Line]:
        path = self.path
        if path.exists() and not path.is_file():
            raise DataError(
                f"{path}: is no file, so no answers can be kept there. Move it away, or name "
                "another file."
            )
        if not path.exists() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, [header])
            return []
        (_, first), *rows = _lines(path) or [(1, None)]
        if not is_header(first, header):
            raise DataError(
                f"{path}:1: does not say which {next(iter(header))} wrote the file, so it is not "
                "continued. Name another file."
            )
        for part in compared:
            if first[part] != json.loads(json.dumps(header[part])):
                raise DataError(
                    f"{path}:1: what is there comes from other {part}: "
                    f"{_difference(first[part], header[part])}. Name another file, or delete this "
                    "one to ask again."
                )
        return rows


def is_header(value: Any, keys: Iterable[str]) -> bool:
    """Whether a line's value is a header with these keys."""
    return isinstance(value, Mapping) and set(value) == set(keys)


def answers_by_id(
    path: str | Path,
    rows: Iterable[Line],
    by_id: Mapping[str, Asked],
    read_row: ReadRow[Value],
    fingerprint: Fingerprint[Asked],
    *,
    unknown: Literal["error", "leave"],
) -> dict[str, Value]:
    """The answers in `rows` by sample_ID; DataError names the line, also for an example that has
    changed. `unknown` is what to do with a row about none of the examples.
    """
    answers: dict[str, Value] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        sample_id, answer = read_row(row, where)
        if sample_id in lines:
            raise DataError(
                f"{where}: {sample_id!r} is in line {lines[sample_id]} too. Remove one."
            )
        lines[sample_id] = number
        if sample_id not in by_id:
            if unknown == "leave":
                continue
            raise DataError(
                f"{where}: sample_ID {sample_id!r} is none of the {len(by_id)} examples. Remove "
                "the row."
            )
        now = fingerprint(by_id[sample_id])
        if row.get("example", now) != now:
            raise DataError(
                f"{where}: the example {sample_id!r} has changed since the line was written. "
                "Remove the line to have it asked again, or go back to the data of that time."
            )
        answers[sample_id] = answer
    return answers


def index_by_id(examples: Iterable[Asked]) -> dict[str, Asked]:
    """The examples by sample_ID, of which no two are the same."""
    by_id: dict[str, Asked] = {}
    for example in examples:
        if example.sample_id in by_id:
            raise DataError(
                f"sample_ID {example.sample_id!r} is there twice among the examples. Give each its "
                "own."
            )
        by_id[example.sample_id] = example
    return by_id


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _lines(path: Path) -> list[Line]:
    """The lines of a file, without a last one that is torn."""
    content = read_bytes(path)
    try:
        text = content[: _whole(content)].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}). Name another file.") from None
    lines = enumerate(text.split("\n"), start=1)
    return [(at, parse_json(line, f"{path}:{at}")) for at, line in lines if line.strip()]


def _whole(content: bytes) -> int:
    """Bytes of a ledger up to the end of its last whole line.

    A line is torn if the process was killed while writing it: it has no end and is no JSON, so that
    nothing that was said is lost with it. Its example is asked about again.
    """
    end = content.rfind(b"\n") + 1
    try:
        parse_json(content[end:].decode(), "the last line")
    except ValueError:
        return end
    return len(content)


def _difference(found: Any, expected: Any) -> str:
    if not (isinstance(found, Mapping) and isinstance(expected, Mapping)):
        return f"found {found!r}, now {expected!r}"
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    return "; ".join(f"{x} was {found.get(x)!r} and is now {expected.get(x)!r}" for x in names)
