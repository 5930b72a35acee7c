"""Lines of JSON that hold the figures and samples of a run."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.documents import Part, check_document
from coevolve.errors import DataError
from coevolve.files import parse_json, read_bytes, writing
from coevolve.training.documents import SampleLine

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"

NOT_FINITE = "not_finite"
"""In a line, the names of the numbers that JSON does not have, with what they were."""


@dataclass(frozen=True)
class Table:
    """Samples that were shown together, under one step."""

    step: int
    title: str
    columns: tuple[str, ...]
    rows: list[list[Any]]
    where: dict[str, Any]

    def lines(self) -> list[dict[str, Any]]:
        """A JSON object per row."""
        head = {"step": self.step, **self.where, "table": self.title}
        samples = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return [{**head, "sample": encoded(plain(sample))} for sample in samples]

    @classmethod
    def read(cls, path: Path) -> dict[int, "Table"]:
        """The tables of a file, by step."""
        tables: dict[int, Table] = {}
        for _, line in read_lines(path, SampleLine):
            step, title, sample = line.pop("step"), line.pop("table"), decoded(line.pop("sample"))
            table = tables.setdefault(step, cls(step, title, tuple(sample), [], line))
            table.rows.append(list(sample.values()))
        return tables


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    # Not synced: that costs 5 ms a line, and `state` syncs before a checkpoint counts on the lines.
    texts = [json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines]
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(texts)


def read_lines(path: Path, model: type[Part]) -> list[tuple[str, dict[str, Any]]]:
    """(text, values) of each line, without what a crash tore off; DataError names a bad one."""
    if not os.path.lexists(path):
        return []
    *whole, _ = read_bytes(path).split(b"\n")
    lines = []
    for number, raw in enumerate(whole, start=1):
        where, remedy = f"{path}:{number}", "Delete that line."
        try:
            text = raw.decode()
            values = parse_json(text, where)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 ({error.reason}). {remedy}") from None
        except DataError as error:
            raise DataError(f"{error} {remedy}") from None
        check_document(values, model, where=where, remedy=remedy)
        lines.append((text, values))
    return lines


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's scalars as Python's."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in values.items()
    }


def encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    odd = {
        name: repr(x) for name, x in values.items() if isinstance(x, float) and not math.isfinite(x)
    }
    return {**values, **dict.fromkeys(odd), **({NOT_FINITE: odd} if odd else {})}


def decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    odd = {name: float(text) for name, text in values.get(NOT_FINITE, {}).items()}
    return {name: odd.get(name, value) for name, value in values.items() if name != NOT_FINITE}
