"""Rows kept by Hugging Face `datasets` (Arrow, Parquet), as they were before. They are read in a
process of its own.

Arrow gives every row of a column the same keys, so objects whose keys differ come back with the
absent ones as null (see `coevolve.data.example.plain_row`). The order of an object's keys cannot be
restored where rows differ in it.

A column cannot hold strings in one row and objects in another. Such an `agent_character` is stored
as JSON text, and a string that is a JSON object is read as that object.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coevolve.data import arrow_rows
from coevolve.errors import DataError
from coevolve.files import decode_json, is_file, parse_json, plain_file, read_json

SPLITS, STATE = "dataset_dict.json", "state.json"
"""What `save_to_disk` writes into the folder of a DatasetDict, and into that of each Dataset."""

LARGEST_FILE = 1 << 40
"""Bytes. Unlike JSON, Arrow is not read whole."""

LAST_LINE = 1 << 16
"""Bytes; more than a line with an error has."""

MB_PER_SECOND = 1
"""Slower than this, behind the first minute, no file is read that is in order."""


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk` of a Dataset or a DatasetDict."""
    return any(is_file(folder / name) for name in (SPLITS, STATE))


def read_saved(folder: Path) -> dict[str, list[dict[str, Any]]] | list[dict[str, Any]]:
    """The rows of each split of a saved DatasetDict, or the rows of a saved Dataset."""
    if not is_file(folder / SPLITS):
        return _rows_of_dataset(folder)
    return {name: _rows_of_dataset(folder / name) for name in _field(folder / SPLITS, "splits")}


def read_parquet(files: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The rows of each Parquet file. DataError: one is missing, damaged, or not Parquet."""
    return _read(files, "Parquet", "Write the file again.")


def stream_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file one by one, kept on disk in between."""
    for _, row in _stream([file], "Parquet", "Write the file again."):
        yield _with_object_character(row)


def json_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `agent_character` an object where it is a JSON object."""
    return [_with_object_character(dict(row)) for row in rows]


def _rows_of_dataset(folder: Path) -> list[dict[str, Any]]:
    names = _field(folder / STATE, "_data_files", "filename")
    parts = _read([folder / name for name in names], "Arrow", "Save the dataset again.")
    state = read_json(folder / STATE)
    shown = None if state.get("_output_all_columns") else state.get("_format_columns")
    keep = shown if isinstance(shown, list) else None
    return [
        row if keep is None else {name: row[name] for name in row if name in keep}
        for part in parts
        for row in part
    ]


def _field(file: Path, name: str, inner: str | None = None) -> list[str]:
    """A list of names of files or folders beside `file`, one that `save_to_disk` writes."""
    found = read_json(file)
    names = found.get(name) if isinstance(found, dict) else None
    if isinstance(names, list) and inner:
        names = [item.get(inner) if isinstance(item, dict) else None for item in names]
    if not isinstance(names, list) or not all(
        isinstance(item, str) and Path(item).name == item for item in names
    ):
        raise DataError(
            f"{file}: accepted is what datasets.save_to_disk writes, with a list {name!r} of "
            "names. Save the dataset again."
        )
    return names


def _read(files: Sequence[Path], kind: str, remedy: str) -> list[list[dict[str, Any]]]:
    rows: list[list[dict[str, Any]]] = [[] for _ in files]
    for number, row in _stream(files, kind, remedy):
        rows[number].append(row)
    return [json_rows(part) for part in rows]


def _stream(files: Sequence[Path], kind: str, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the file, row) of all rows, once the last has been read without an error."""
    size = sum(plain_file(file, at_most=LARGEST_FILE).stat().st_size for file in files)
    command = [sys.executable, "-P", arrow_rows.__file__, *map(str, files)]
    names = ", ".join(map(str, files))
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=60 + size / 1e6 / MB_PER_SECOND,
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{names}: cannot be read as {kind} (no end after {error.timeout:.0f} s). {remedy}"
            ) from None
        # The last line says how it ended, and is short where it is not a row.
        out.seek(max(0, out.seek(0, os.SEEK_END) - LAST_LINE))
        last = out.read().decode("utf-8", "replace").removesuffix("\n").rpartition("\n")[2]
        if done.returncode or last != '"end"':
            fault = {} if done.returncode else parse_json(last, names)
            where = files[fault["file"]] if fault else names
            raise DataError(
                f"{where}: cannot be read as {kind} ({fault.get('error') or _end_of(done)}). "
                f"{remedy}"
            )
        out.seek(0)
        for line in out:
            if line != b'"end"\n':
                number, row = parse_json(line.decode("utf-8", "replace"), names, nan=True)
                yield number, row


def _end_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """Why the process that read ended early."""
    if done.returncode < 0:
        return f"reading it ended with {signal.Signals(-done.returncode).name}: it is damaged"
    words = done.stderr.decode("utf-8", "replace").strip()
    return words.rpartition("\n")[2] or f"exit {done.returncode}"


def _with_object_character(row: dict[str, Any]) -> dict[str, Any]:
    character = row.get("agent_character")
    if not isinstance(character, str) or not character.lstrip().startswith("{"):
        return row
    try:
        parsed = decode_json(character, f"agent_character of {row.get('sample_ID')!r}")
    except json.JSONDecodeError:
        return row  # prose that happens to begin with a brace
    return {**row, "agent_character": parsed} if isinstance(parsed, dict) else row
