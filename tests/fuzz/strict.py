"""Independent readings: what a file says by the letter of JSON, for oracles to compare with. No
code of the project.
"""

import json
import math
from typing import Any


class Unreadable(ValueError):
    """Not JSON by the letter, or a key is there twice."""


def strict_json(content: bytes | str) -> Any:
    """The value of JSON text: UTF-8, no double keys, no NaN, no number beyond a float's range.

    Raises:
        Unreadable: the text is anything else.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(str(error)) from None


def strict_jsonl(content: bytes) -> list[Any]:
    """The values of the lines that are not blank.

    Raises:
        Unreadable: as `strict_json`.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(str(error)) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [strict_json(line) for line in lines if line.strip()]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Unreadable("a key is there twice")
    return made


def _no_constant(name: str) -> None:
    raise Unreadable(name)


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Unreadable(f"{text} is beyond a float's range")
    return number


def without_nulls(value: Any) -> Any:
    """The value without keys whose value is null, however deep: a table of rows cannot leave a key
    out.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def as_meant(value: Any) -> Any:
    """The value without nulls, and with integers where a table made whole floats of them (beyond
    2**53 all are).
    """
    if isinstance(value, dict):
        return {key: as_meant(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [as_meant(item) for item in value]
    whole = isinstance(value, float) and abs(value) < 2**53 and value.is_integer()
    return int(value) if whole else value


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, 1 and 1.0 and true told apart, the order of keys left
    aside.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def is_text(value: Any, *, empty: bool = False) -> bool:
    """A string that UTF-8 can hold, with a visible character unless `empty`."""
    if not isinstance(value, str) or not (empty or value.strip()):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
