"""The fields of an estimator's manifest, and what each may hold."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from coevolve.scoring.roles import Tuning

Check = tuple[str, Callable[[Any], bool]]
"""What is accepted, and whether a value is that. A field that may be null may be absent."""


def _text(pattern: str, accepted: str) -> Check:
    found = re.compile(pattern).fullmatch
    return accepted, lambda value: isinstance(value, str) and found(value) is not None


def _one_of(*values: Any) -> Check:
    return f"one of {', '.join(map(repr, values))}", lambda value: value in values


def _integer(least: int, most: float = math.inf) -> Check:
    accepted = f"an integer from {least} " + ("up" if most == math.inf else f"to {most}")
    return accepted, lambda value: type(value) is int and least <= value <= most


def _or_null(check: Check) -> Check:
    return f"{check[0]}, or null", lambda value: value is None or check[1](value)


_SHA256 = _text(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal")
_HASHES = (
    "an object of SHA-256 by file name",
    lambda value: isinstance(value, dict) and all(map(_SHA256[1], value.values())),
)
_FOLDER = _text(r"[A-Za-z0-9][A-Za-z0-9_-]*", "the name of a folder beside the manifest")
_ANY_TEXT = _text(r"(?s).*", "a string")
_TEXTS = (
    "a list of strings",
    lambda value: isinstance(value, list) and all(map(_ANY_TEXT[1], value)),
)
OBJECT = "an object", lambda value: isinstance(value, dict)

FIELDS: Mapping[str, Check] = {
    "roles": OBJECT,
    "reasoning": OBJECT,
    "prompts": OBJECT,
    "form": _or_null(OBJECT),
    "held_out": _or_null(OBJECT),
    "rendering": _or_null(OBJECT),
    "license": _or_null(_ANY_TEXT),
    "datasets": _or_null(_TEXTS),
    "results": _or_null(OBJECT),
    "files": _HASHES,
    "identity": _SHA256,
}
ENTRY: Mapping[str, Check] = {
    "tuning": _one_of(*get_args(Tuning)),
    "base": OBJECT,
    "continued_from": _or_null(OBJECT),
    "tokenizer": _FOLDER,
    "chat_template": ("a string, or an object of them", lambda x: isinstance(x, (str, dict))),
    "fingerprint": _or_null(_SHA256),
}
BASE: Mapping[str, Check] = {
    "source": _ANY_TEXT,
    "fingerprint": _SHA256,
    "quantization": _one_of("4bit", "8bit", None),
    "folder": _or_null(_FOLDER),
    "settings": _or_null(_HASHES),
}
REASONING: Mapping[str, Check] = {
    "max_new_tokens": _integer(1, 1_000_000),
    "no_repeat_ngram": _or_null(_integer(0, 1_000_000)),  # before version 0.4 there was none
}
FORM: Mapping[str, Check] = {
    "kind": _one_of("greedy", "marginal", "mixture", "none"),
    "samples": _or_null(_integer(1)),
    "seed": _or_null(_integer(0)),
    "weight": _or_null(("a number from 0 to 1", lambda x: type(x) in (int, float) and 0 <= x <= 1)),
}
