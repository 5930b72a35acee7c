"""Reading and writing files: no reader ever sees half of one, and an error names its line."""

import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coevolve.errors import DataError

LARGEST_FILE = 2 << 30
"""Bytes of a file that is read whole."""
DEEPEST = 100
"""Levels of lists and objects in one another: few enough for all recursion over what was read."""
LONGEST_NUMBER = 300
"""Characters of a number, so that every integer fits a float."""
MOST_KEYS = 1_000_000
"""Keys of one object."""

_DIGITS = bytes(48 if chr(byte) in "0123456789" else 32 for byte in range(256))
_TOO_DEEP = f"lists and objects lie in one another too deep; accepted are {DEEPEST} levels"
_OTHER_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def os_error(error: BaseException) -> int | None:
    """What the machine refused, as the number of its error; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # Copies of folders, and libraries written in Rust, have it in their words.
    number = re.search(
        r"\[Errno (\d+)\]" if isinstance(error, OSError) else r"\(os error (\d+)\)", str(error)
    )
    return None if number is None else int(number[1])


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Inside, what the machine refuses names `path`: an error of a write itself names no file."""
    try:
        yield
    except Exception as error:
        number = os_error(error)
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    write_file(path, text)


def write_file(path: str | Path, content: str | bytes | Iterable[str]) -> None:
    """Write text (UTF-8), whole or piece by piece, or bytes atomically: to a temporary name,
    synced, then renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shortened, as a name may be as long as the file system allows.
    temporary = path.with_name(f".{path.name[:32]}.{os.getpid()}.tmp")
    try:
        with writing(path), open(temporary, "wb") as file:
            for piece in (content,) if isinstance(content, (str, bytes)) else content:
                file.write(piece.encode("utf-8") if isinstance(piece, str) else piece)
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
    write_file(path, json_text(value))


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    write_file(path, jsonl_text(rows))


def json_text(value: Any) -> str:
    """Indented JSON, as results are written."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def jsonl_text(rows: Iterable[Any]) -> str:
    """One JSON value per line."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def look(path: str | Path) -> os.stat_result | None:
    """What stands at a path, links followed, None if nothing does; DataError if it can lead
    nowhere.
    """
    try:
        return os.stat(path)
    except FileNotFoundError as error:
        if os.fspath(path):
            return None
        problem = error.strerror
    except OSError as error:
        problem = error.strerror
    except ValueError as error:  # a null character, or half of a surrogate pair
        problem = str(error)
    raise DataError(f"{os.fspath(path)!r}: cannot be read ({problem}). Check the path.")


def is_folder(path: str | Path) -> bool:
    """Whether a folder stands at the path."""
    found = look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | Path) -> bool:
    """Whether a plain file stands at the path."""
    found = look(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def plain_file(path: str | Path, *, at_most: int = LARGEST_FILE) -> Path:
    """The path, if a plain file stands there that can be read whole, and not a pipe or a device,
    which could be waited for or read for ever: to be called before any file is opened.
    """
    found = look(path)
    if found is None:
        raise DataError(f"{path}: no such file. Check the path.")
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_one, name in _OTHER_KINDS if is_one(found.st_mode)), "a device")
        raise DataError(f"{path}: is {kind}; accepted is a plain file. Copy it into one.")
    if found.st_size > at_most:
        size = f"{found.st_size:,} bytes"
        raise DataError(f"{path}: has {size}; accepted are at most {at_most:,}. Divide the file.")
    return Path(path)


def read_bytes(path: str | Path) -> bytes:
    """The file's content."""
    try:
        return plain_file(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def read_text(path: str | Path) -> str:
    """The file's text. A byte order mark is left out; all ends of lines become line feeds."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = len(content) - len(error.object) + error.start
        raise DataError(
            f"{path}:{line}: byte {byte} is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, *, nan: bool = False) -> Any:
    """The file's JSON value, as `parse_json`."""
    text = read_text(path)
    try:
        return decode_json(text, str(path), nan=nan)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})."
        ) from None


def read_jsonl(path: str | Path, *, nan: bool = False) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) for every line that is not blank, as `parse_json`."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}:{number}", nan=nan)


def parse_json(text: str, where: str, *, nan: bool = False) -> Any:
    """The value of JSON text that may come from anywhere. All JSON is read through this.

    DataError, with `where` in front, for what is not JSON; an object with a key twice, of which a
    reader would silently take the last, or more than MOST_KEYS; lists and objects more than DEEPEST
    deep; a number of more than LONGEST_NUMBER characters or beyond a float. With `nan`, NaN and
    infinities are numbers, which JSON does not know but Python writes.
    """
    try:
        return decode_json(text, where, nan=nan)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno}).") from None


def decode_json(text: str, where: str, *, nan: bool = False) -> Any:
    """As `parse_json`, but for what is not JSON at all it raises JSONDecodeError."""
    doubled: list[tuple[dict[str, Any], str]] = []

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            count = Counter(key for key, _ in pairs)
            doubled.append((found, max(count, key=count.__getitem__)))
        if len(found) > MOST_KEYS:
            raise _Refused(f"an object has {len(found):,} keys; accepted are at most {MOST_KEYS:,}")
        return found

    def no_number(name: str) -> float:
        raise _Refused(f"{name} is no number of JSON; accepted are finite numbers and null")

    hooks: dict[str, Any] = {} if nan else {"parse_constant": no_number}
    digits = text.encode("utf-8", "surrogatepass").translate(_DIGITS)
    if b"0" * (LONGEST_NUMBER + 1) in digits:  # asked once, as a text may hold millions
        hooks["parse_int"] = lambda text: int(_number(text))
    try:
        value = json.loads(text, object_pairs_hook=to_object, parse_float=_float, **hooks)
    except _Refused as error:
        raise DataError(f"{where}: {error}.") from None
    except RecursionError:
        raise DataError(f"{where}: {_TOO_DEEP}.") from None
    if doubled:
        # The last one cannot itself be lost under a doubled key: that object would come later.
        found, key = doubled[-1]
        place = _place(value, found)
        raise DataError(f"{where}: key {key!r} is there twice{place and f' in {place}'}.")
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise DataError(f"{where}: {_TOO_DEEP}.")
    return value


class _Refused(Exception):
    """JSON that is well-formed and not accepted."""


def _float(text: str) -> float:
    value = float(_number(text))
    if math.isinf(value):
        raise _Refused(f"the number {text} is beyond a float; accepted are numbers up to 1.7e308")
    return value


def _number(text: str) -> str:
    if len(text) > LONGEST_NUMBER + 1:  # and a sign
        raise _Refused(
            f"{text[:10]}... has {len(text):,} characters; accepted are {LONGEST_NUMBER}"
        )
    return text


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [item for each in level for item in _items(each) if isinstance(item, (dict, list))]
    return bool(level)


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _place(value: Any, sought: Any) -> str:
    """Where in `value` an object stands, for example `IDTrain[3].agent_character`."""
    waiting = [("", value)]
    while waiting:
        place, value = waiting.pop()
        if value is sought:
            return place.removeprefix(".")
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    return ""


def sha256_file(path: str | Path) -> str:
    """The hexadecimal SHA-256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
