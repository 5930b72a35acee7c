"""Reading and writing files so that a reader never sees half of one, and an error names its line."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coevolve.errors import DataError


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    write_file(path, text)


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes atomically: to a temporary name beside `path`, synced, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shortened, as a name may be as long as the file system allows.
    temporary = path.with_name(f".{path.name[:32]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Make a rename or a new file in the folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON. NaN and infinity are refused: they are not JSON."""
    write_text(path, json_text(value))


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    write_text(path, jsonl_text(rows))


def json_text(value: Any) -> str:
    """Indented JSON, as results are written."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def jsonl_text(rows: Iterable[Any]) -> str:
    """One JSON value per line."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_text(path: str | Path) -> str:
    """The file's text.

    Raises:
        DataError: the file is missing, unreadable, or not UTF-8.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path.") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def read_json(path: str | Path) -> Any:
    """The file's JSON value.

    Raises:
        DataError: as `read_text`, or the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}).") from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) for every line that is not blank.

    Raises:
        DataError: as `read_text`, or a line is not JSON.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}, column {error.colno}).") from None


def sha256_file(path: str | Path) -> str:
    """The hexadecimal SHA-256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
