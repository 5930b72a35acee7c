"""The responses of a role-playing model to a set of examples, matched by `sample_ID`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coevolve.data.corpus import read_rows
from coevolve.data.example import Example, kind, text_field
from coevolve.errors import DataError
from coevolve.files import write_jsonl

ACCEPTED = "a 'response', or the public layout's 'model_response' (a string, or an object with a 'model_response')"


def read_responses(path: str | Path, examples: Sequence[Example]) -> list[str]:
    """Read one response for each example.

    Accepted is a `.jsonl` file, or a `.json` file with a list, of rows `{sample_ID, response}` or, as in the result
    files of the paper's public code, `{sample_ID, model_response}`. Other fields of a row (that layout repeats the
    whole example) say nothing about the response and are not read.

    Returns:
        The responses in the order of `examples`.

    Raises:
        DataError: a row is malformed, its response is empty, its `sample_ID` is not in `examples` or was there
            before; or an example has no response.
    """
    wanted = {example.sample_id for example in examples}
    found: dict[str, tuple[str, str]] = {}
    for where, row in read_rows(path):
        sample_id, response = _parse(row, where)
        if sample_id not in wanted:
            raise DataError(
                f"{where}: sample_ID {sample_id!r} is not in the data ({len(wanted)} samples). "
                "Check that the responses belong to this data, or remove the row."
            )
        if sample_id in found:
            raise DataError(
                f"{where}: sample_ID {sample_id!r} was answered before, in {found[sample_id][0]}; accepted is one "
                "response for each sample. Remove one of the two."
            )
        found[sample_id] = (where, response)
    missing = [example.sample_id for example in examples if example.sample_id not in found]
    if missing:
        listed = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path}: lacks a response for {len(missing)} of {len(wanted)} samples: {listed}. Add a row for each."
        )
    return [found[example.sample_id][1] for example in examples]


def write_responses(path: str | Path, examples: Sequence[Example], responses: Sequence[str]) -> None:
    """Write JSONL rows `{sample_ID, response}`, which `read_responses` reads back.

    Raises:
        DataError: the numbers differ, or a response is not text with a visible character; nothing is written then.
    """
    if len(examples) != len(responses):
        raise DataError(f"{path}: {len(responses)} responses for {len(examples)} examples; give one for each.")
    rows = [
        {"sample_ID": example.sample_id, "response": response}
        for example, response in zip(examples, responses, strict=True)
    ]
    for row in rows:
        text_field(row, "response", f"{path}: sample_ID {row['sample_ID']!r}")
    write_jsonl(path, rows)


def _parse(row: Any, where: str) -> tuple[str, str]:
    """(sample_ID, response) of one row."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: found {kind(row)}; accepted is an object with a sample_ID and {ACCEPTED}.")
    if "sample_ID" not in row:
        raise DataError(
            f"{where}: field 'sample_ID' is missing; the row has {', '.join(map(repr, row)) or 'no fields'}."
        )
    sample_id = text_field(row, "sample_ID", where)
    where = f"{where} (sample_ID {sample_id!r})"
    if ("response" in row) == ("model_response" in row):
        problem = "has both 'response' and 'model_response'" if "response" in row else "has no response"
        raise DataError(f"{where}: {problem}; accepted is {ACCEPTED}.")
    if "response" in row:
        return sample_id, text_field(row, "response", where)
    nested = row["model_response"]
    if not isinstance(nested, Mapping):
        return sample_id, text_field(row, "model_response", where)
    if "model_response" not in nested:
        keys = ", ".join(map(repr, nested)) or "no fields"
        raise DataError(f"{where}: model_response is an object with {keys}; accepted is {ACCEPTED}.")
    return sample_id, text_field(nested, "model_response", where, label="model_response.model_response")
