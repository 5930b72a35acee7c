"""Rows kept by Hugging Face `datasets` (Arrow, Parquet), brought back to the JSON they were made from.

Arrow gives every row of a column the same keys, so objects whose keys differ come back with the absent ones as null.
Those nulls are dropped here. Two things cannot be restored, and matter only to whoever compares with the JSON: a null
that was in the JSON, and the order of an object's keys where rows differ in it.

A column cannot hold strings in one row and objects in another. Such an `agent_character` is stored as JSON text, and a
string that is a JSON object is read as that object.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coevolve.errors import DataError


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk` of a Dataset or a DatasetDict."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path) -> dict[str, list[dict[str, Any]]] | list[dict[str, Any]]:
    """The rows of each split of a saved DatasetDict, or the rows of a saved Dataset.

    Raises:
        DataError: `datasets` cannot read the folder.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            return {name: json_rows(split) for name, split in saved.items()}
        return json_rows(saved)
    except Exception as error:  # pyarrow, fsspec and datasets each raise their own kinds for a damaged folder
        raise DataError(f"{folder}: datasets.load_from_disk failed ({error}). Save the dataset again.") from error


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file.

    Raises:
        DataError: the file is missing, or not Parquet.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    import datasets

    try:
        # A cache of its own: the shared one would keep a second copy of every file that was ever read.
        with tempfile.TemporaryDirectory() as cache:
            return json_rows(datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True))
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot be read as Parquet ({error}). Write the file again.") from error


def json_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the nulls that Arrow put in, with `agent_character` an object where it is a JSON object."""
    return [_with_object_character(_without_nulls(row)) for row in rows]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _with_object_character(row: dict[str, Any]) -> dict[str, Any]:
    character = row.get("agent_character")
    if not isinstance(character, str) or not character.lstrip().startswith("{"):
        return row
    try:
        parsed = json.loads(character)
    except json.JSONDecodeError:
        return row  # prose that happens to begin with a brace
    return {**row, "agent_character": parsed} if isinstance(parsed, dict) else row
