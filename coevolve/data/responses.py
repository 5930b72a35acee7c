"""The responses of a role-playing model to a set of examples, matched by `sample_ID`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coevolve.data.corpus import Corpus, Row, read_rows
from coevolve.data.example import Example, kind, text_field
from coevolve.errors import DataError
from coevolve.files import write_jsonl

ACCEPTED = "a 'response', or the public layout's 'model_response' (a string, or an object with a 'model_response')"

HEADER = ("model", "prompt", "address")
"""The keys of the first line of a file that `coevolve respond` wrote: what gave the responses."""


@dataclass(frozen=True)
class PartialResponses:
    """The usable responses of a file, and the samples without one.

    Attributes:
        by_id: sample_ID -> response.
        missing: samples that the file has no row for.
        empty: samples whose response has no visible character.
        duplicated: samples with more than one row; none of the rows is used.
    """

    by_id: Mapping[str, str]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    duplicated: tuple[str, ...]


def read_responses(path: str | Path, examples: Sequence[Example]) -> list[str]:
    """Read one response for each example.

    Accepted is a `.jsonl` file, or a `.json` file with a list, of rows `{sample_ID, response}` or,
    as in the result files of the paper's public code, `{sample_ID, model_response}`. Other fields
    of a row (that layout repeats the whole example) say nothing about the response and are not
    read, nor is the first line of `coevolve respond`.

    Returns:
        The responses in the order of `examples`.

    Raises:
        DataError: a row is malformed, its response is empty, its `sample_ID` is not in `examples`
            or was there before; or an example has no response.
    """
    wanted = {example.sample_id for example in examples}
    found: dict[str, tuple[str, str]] = {}
    for where, row in _response_rows(path):
        sample_id, response = read_response_row(row, where)
        _require_known(sample_id, wanted, where)
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
            f"{path}: lacks a response for {len(missing)} of {len(wanted)} samples: {listed}. Add a row for each, or "
            "allow such samples to be left out (--missing drop)."
        )
    return [found[example.sample_id][1] for example in examples]


def read_partial_responses(path: str | Path, examples: Sequence[Example]) -> PartialResponses:
    """Read the usable responses of a file and count the samples without one, where the user allows
    that.

    Accepted are the files of `read_responses`.

    Raises:
        DataError: a row is malformed or its `sample_ID` is not in `examples`, which no count could
            put right; or no sample has a usable response.
    """
    wanted = {example.sample_id for example in examples}
    found: dict[str, list[str]] = {}
    for where, row in _response_rows(path):
        sample_id, response = read_response_row(row, where, empty=True)
        _require_known(sample_id, wanted, where)
        found.setdefault(sample_id, []).append(response)
    once = {sample_id: texts[0] for sample_id, texts in found.items() if len(texts) == 1}
    by_id = {sample_id: text for sample_id, text in once.items() if text.strip()}
    if not by_id:
        raise DataError(
            f"{path}: none of {len(wanted)} samples has a usable response. Check the file."
        )
    ids = [example.sample_id for example in examples]
    return PartialResponses(
        by_id={sample_id: by_id[sample_id] for sample_id in ids if sample_id in by_id},
        missing=tuple(sample_id for sample_id in ids if sample_id not in found),
        empty=tuple(sample_id for sample_id in ids if sample_id in once and sample_id not in by_id),
        duplicated=tuple(sample_id for sample_id in ids if len(found.get(sample_id, ())) > 1),
    )


def answered_by_all(corpus: Corpus, responses: Mapping[str, PartialResponses]) -> Corpus:
    """The corpus with the test examples that every model has answered: the pairs must be the same
    for all of them.

    Raises:
        DataError: a subset of a test split has no such example, so that its row would vanish.
    """
    splits = dict(corpus.splits)
    for name in corpus.test_splits:
        splits[name] = tuple(
            example
            for example in corpus.splits[name]
            if all(example.sample_id in partial.by_id for partial in responses.values())
        )
        left = {example.subset for example in splits[name]}
        for subset in corpus.subsets(name):
            if subset not in left:
                raise DataError(
                    f"{corpus.source}: no example of {name}/{subset} was answered by every model "
                    f"({', '.join(responses)}). Leave a model or the subset out."
                )
    return replace(corpus, splits=splits)


def write_responses(
    path: str | Path, examples: Sequence[Example], responses: Sequence[str]
) -> None:
    """Write JSONL rows `{sample_ID, response}`, which `read_responses` reads back.

    Raises:
        DataError: the numbers differ, or a response is not text with a visible character; nothing
            is written then.
    """
    if len(examples) != len(responses):
        raise DataError(
            f"{path}: {len(responses)} responses for {len(examples)} examples; give one for each."
        )
    rows = [
        {"sample_ID": example.sample_id, "response": response}
        for example, response in zip(examples, responses, strict=True)
    ]
    for row in rows:
        text_field(row, "response", f"{path}: sample_ID {row['sample_ID']!r}")
    write_jsonl(path, rows)


def read_response_row(row: Any, where: str, *, empty: bool = False) -> tuple[str, str]:
    """(sample_ID, response) of one row.

    Args:
        empty: whether a response without a visible character is accepted.

    Raises:
        DataError: the row is malformed.
    """
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where}: found {kind(row)}; accepted is an object with a sample_ID and {ACCEPTED}."
        )
    if "sample_ID" not in row:
        raise DataError(
            f"{where}: field 'sample_ID' is missing; the row has {', '.join(map(repr, row)) or 'no fields'}."
        )
    sample_id = text_field(row, "sample_ID", where)
    where = f"{where} (sample_ID {sample_id!r})"
    if ("response" in row) == ("model_response" in row):
        problem = (
            "has both 'response' and 'model_response'" if "response" in row else "has no response"
        )
        raise DataError(f"{where}: {problem}; accepted is {ACCEPTED}.")
    if "response" in row:
        return sample_id, text_field(row, "response", where, empty=empty)
    nested = row["model_response"]
    if not isinstance(nested, Mapping):
        return sample_id, text_field(row, "model_response", where, empty=empty)
    if "model_response" not in nested:
        keys = ", ".join(map(repr, nested)) or "no fields"
        raise DataError(
            f"{where}: model_response is an object with {keys}; accepted is {ACCEPTED}."
        )
    return sample_id, text_field(
        nested, "model_response", where, label="model_response.model_response", empty=empty
    )


def _response_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a responses file, without the first line that `coevolve respond` writes."""
    rows = read_rows(path)
    yield from rows[1:] if rows and _is_header(rows[0][1]) else rows


def _is_header(row: Any) -> bool:
    return isinstance(row, Mapping) and set(row) == set(HEADER)


def _require_known(sample_id: str, wanted: set[str], where: str) -> None:
    if sample_id not in wanted:
        raise DataError(
            f"{where}: sample_ID {sample_id!r} is not in the data ({len(wanted)} samples). "
            "Check that the responses belong to this data, or remove the row."
        )
