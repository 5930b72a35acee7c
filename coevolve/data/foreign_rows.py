"""Rows of files that others wrote, one by one, so that a file may be larger than the memory."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coevolve.data import arrow
from coevolve.data.formats import format_of
from coevolve.errors import DataError
from coevolve.files import decode_json, parse_json, plain_file, read_json

LONGEST_ROW = 64 << 20
"""Bytes."""
CHUNK = 1 << 16


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(what to call the row, the row or the DataError that it is) of a JSON, JSON Lines, CSV, TSV
    or Parquet file, as they come.
    """
    suffix = plain_file(path, at_most=arrow.LARGEST_FILE).suffix.lower()
    try:
        if suffix == ".parquet":
            rows = enumerate(arrow.stream_parquet(path))
            yield from ((f"{path.name}[{number}]", row) for number, row in rows)
        elif suffix in (".csv", ".tsv"):
            yield from _cells(path, "\t" if suffix == ".tsv" else ",")
        else:
            yield from _json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}). Save it as UTF-8.") from None


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        first = file.readline(LONGEST_ROW)
        is_all = not file.read(CHUNK).strip()
    head = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):  # whatever the suffix: CharacterEval's .jsonl is a list
        items = enumerate(_items(path))
        yield from ((f"{path.name}[{number}]", item) for number, item in items)
    elif path.suffix.lower() in (".jsonl", ".ndjson") or (not is_all and _is_json(head)):
        yield from _lines(path)
    else:
        found = read_json(path)
        holds_rows = isinstance(found, Mapping) and all(isinstance(x, list) for x in found.values())
        if not holds_rows or format_of(found) is not None:
            yield path.name, found
            return
        for split, rows in found.items():
            for number, row in enumerate(rows):
                row = {"split": split, **row} if isinstance(row, Mapping) else row
                yield f"{path.name}: {split}[{number}]", row


def _is_json(line: bytes) -> bool:
    try:
        decode_json(line.decode(), "")
    except (ValueError, DataError):
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(LONGEST_ROW):
            number += 1
            place = f"{path.name}:{number}"
            if len(line) == LONGEST_ROW:
                raise DataError(f"{path}:{number}: a line has more than {LONGEST_ROW:,} bytes.")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            row: Any
            try:
                row = parse_json(line.decode(), "line", nan=True)
            except UnicodeDecodeError as error:
                row = DataError(f"byte {error.start} is not UTF-8")
            except DataError as error:
                row = error
            yield place, row


def _items(path: Path) -> Iterator[Any]:
    """The items of a file's JSON list, each parsed as soon as its end is there."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(CHUNK).lstrip()
        at, number = 1, 0
        while True:
            found = space.match(text, at)
            at = found.end() if found else at
            try:
                end = decoder.raw_decode(text, at)[1] if at < len(text) else None
            except (json.JSONDecodeError, RecursionError) as error:
                if text[at] == "]":
                    if (text[at + 1 :] + file.read(CHUNK)).strip():
                        raise DataError(f"{path}: has more behind the list. Remove it.") from None
                    return
                end, problem = None, getattr(error, "msg", "nested too deeply")
            else:
                problem = "the list has no end"
            if end is not None and end < len(text):
                yield parse_json(text[at:end], f"{path}[{number}]", nan=True)
                at, number = end, number + 1
                continue
            more = file.read(max(CHUNK, len(text) - at))
            if not more or len(text) - at > LONGEST_ROW:
                raise DataError(f"{path}[{number}]: not JSON ({problem}).")
            text, at = text[at:] + more, 0


def _cells(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST_ROW)  # by default 128 KiB, less than a long dialogue
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(lines, [])
            if len(set(names)) != len(names) or not names:
                raise DataError(f"{path}:1: accepted is a line of column names, each once.")
            for cells in lines:
                place = f"{path.name}:{lines.line_num}"
                row: Any = {name: x for name, x in zip(names, cells, strict=False) if x != ""}
                if len(cells) != len(names):
                    row = DataError(f"{len(cells)} cells under {len(names)} columns")
                if cells:
                    yield place, row
        except csv.Error as error:
            raise DataError(f"{path}:{lines.line_num}: not CSV ({error}).") from None
