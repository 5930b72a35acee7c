"""Reasonings that were written elsewhere, matched to examples by `sample_ID`."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coevolve.data.example import Example, id_field, kind, listed, text_field
from coevolve.errors import DataError
from coevolve.files import read_json, read_jsonl

ROW = "{sample_ID, reasoning}"


def read_reasonings(
    path: str | Path, examples: Iterable[Example], known: Collection[Example]
) -> dict[str, str]:
    """One reasoning for each example, by its sample_ID; those of other examples in `known` are
    passed over.

    Accepted is a `.jsonl` file of rows `{sample_ID, reasoning}`, such as `coevolve score` writes
    (what else a row has is not read), or JSON: an object of sample_ID and text, as in the public
    code's `SThought_dict.json`, whatever that file's name ends with, or a list of such rows. A
    reasoning may be empty: a connector may write nothing.
    """
    of_data = {example.sample_id for example in known}
    found: dict[str, str] = {}
    for where, sample_id, text in _located(Path(path)):
        if sample_id not in of_data:
            raise DataError(
                f"{where}: sample_ID {sample_id!r} is not in the data ({len(of_data)} samples). "
                "Check that the reasonings belong to this data, or remove it."
            )
        if sample_id in found:
            raise DataError(
                f"{where}: sample_ID {sample_id!r} was there before; accepted is one reasoning for "
                "each."
            )
        found[sample_id] = text
    wanted = [example.sample_id for example in examples]
    missing = [sample_id for sample_id in wanted if sample_id not in found]
    if missing:
        raise DataError(
            f"{path}: lacks a reasoning for {len(missing)} of {len(wanted)} samples: "
            f"{listed(missing)}. Add them."
        )
    return {sample_id: found[sample_id] for sample_id in wanted}


def _located(path: Path) -> Iterator[tuple[str, str, str]]:
    """(what to call it, sample_ID, reasoning) of each reasoning in a file."""
    if path.suffix == ".jsonl":
        rows = [(f"{path}:{number}", row) for number, row in read_jsonl(path)]
    else:
        value = read_json(path)
        if isinstance(value, Mapping):
            for sample_id in value:
                yield str(path), sample_id, text_field(value, sample_id, str(path), empty=True)
            return
        if not isinstance(value, list):
            raise DataError(
                f"{path}: found {kind(value)}; accepted is an object of sample_ID and text, or a "
                f"list of {ROW}."
            )
        rows = [(f"{path}[{index}]", row) for index, row in enumerate(value)]
    for where, row in rows:
        yield where, *_row(row, where)


def _row(row: Any, where: str) -> tuple[str, str]:
    there = row if isinstance(row, Mapping) else {}
    lacking = [name for name in ("sample_ID", "reasoning") if name not in there]
    if lacking:
        raise DataError(f"{where}: no {lacking[0]} there; accepted is {ROW}.")
    return id_field(row, where), text_field(row, "reasoning", where, empty=True)
