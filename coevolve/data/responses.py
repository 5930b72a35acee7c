"""The responses of a role-playing model to a set of examples, matched by `sample_ID`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coevolve.data.corpus import Corpus, read_rows
from coevolve.data.example import Example, id_field, kind, listed, text_field
from coevolve.data.ledger import is_header
from coevolve.errors import DataError
from coevolve.files import write_jsonl

ACCEPTED = (
    "a 'response', or the public layout's 'model_response' (a string, or an object with a "
    "'model_response')"
)

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


def read_responses(
    path: str | Path, examples: Sequence[Example], also: Sequence[Example] = ()
) -> list[str]:
    """Read one response for each example; rows of those in `also` are passed over.

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
    answered: dict[str, tuple[str, str]] = {}
    for where, sample_id, response in _rows_of(path, examples, also):
        if sample_id in answered:
            raise DataError(
                f"{where}: sample_ID {sample_id!r} was answered before, in "
                f"{answered[sample_id][0]}; accepted is one response for each sample. Remove one "
                "of the two."
            )
        answered[sample_id] = (where, response)
    ids = [example.sample_id for example in examples]
    missing = [sample_id for sample_id in ids if sample_id not in answered]
    if missing:
        raise DataError(
            f"{path}: lacks a response for {len(missing)} of {len(set(ids))} samples: "
            f"{listed(missing)}. Add a row for each, or allow such samples to be left out "
            "(--missing drop)."
        )
    return [answered[sample_id][1] for sample_id in ids]


def read_partial_responses(
    path: str | Path, examples: Sequence[Example], also: Sequence[Example] = ()
) -> PartialResponses:
    """The usable responses of a file of `read_responses`, and the samples without one, where the
    user allows that. A malformed row, or one of no example, stays an error: no count could put it
    right.
    """
    answered: dict[str, list[str]] = {}
    for _, sample_id, response in _rows_of(path, examples, also, empty=True):
        answered.setdefault(sample_id, []).append(response)
    ids = [example.sample_id for example in examples]
    once = {name: texts[0] for name in ids if len(texts := answered.get(name, [])) == 1}
    by_id = {name: text for name, text in once.items() if text.strip()}
    if not by_id:
        raise DataError(f"{path}: none of {len(set(ids))} samples has a usable response.")
    return PartialResponses(
        by_id=by_id,
        missing=tuple(name for name in ids if name not in answered),
        empty=tuple(name for name in ids if name in once and name not in by_id),
        duplicated=tuple(name for name in ids if len(answered.get(name, ())) > 1),
    )


def responses_to_some(
    path: str | Path, examples: Sequence[Example], others: Sequence[Example]
) -> dict[str, str]:
    """The usable responses of a file to the examples, by sample_ID, beside those to others."""
    answered: dict[str, list[str]] = {}
    for _, sample_id, response in _rows_of(path, examples, others, empty=True):
        answered.setdefault(sample_id, []).append(response)
    return {x: texts[0] for x, texts in answered.items() if len(texts) == 1 and texts[0].strip()}


def answered_by_all(corpus: Corpus, responses: Mapping[str, PartialResponses]) -> Corpus:
    """The corpus with the test examples that every model has answered; DataError for a subset
    without.
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


def record_of(path: str | Path) -> tuple[Mapping[str, Any] | None, list[str]]:
    """(what gave the responses, if `coevolve respond` wrote the file; IDs of those cut off)."""
    rows = read_rows(path)
    cut = [row for _, row in rows if isinstance(row, Mapping) and row.get("cut_off") is True]
    header = rows[0][1] if rows and is_header(rows[0][1], HEADER) else None
    return header, [str(row.get("sample_ID")) for row in cut]


def write_responses(
    path: str | Path, examples: Sequence[Example], responses: Sequence[str]
) -> None:
    """Write JSONL rows `{sample_ID, response}`, which `read_responses` reads back."""
    if len(examples) != len(responses):
        raise DataError(f"{path}: {len(responses)} responses for {len(examples)} examples.")
    pairs = zip(examples, responses, strict=True)
    rows = [{"sample_ID": example.sample_id, "response": text} for example, text in pairs]
    for row in rows:
        text_field(row, "response", f"{path}: sample_ID {row['sample_ID']!r}")
    write_jsonl(path, rows)


def read_response_row(row: Any, where: str, *, empty: bool = False) -> tuple[str, str]:
    """(sample_ID, response) of one row; `empty` accepts one without a visible character."""
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where}: found {kind(row)}; accepted: an object with sample_ID and {ACCEPTED}."
        )
    if "sample_ID" not in row:
        raise DataError(
            f"{where}: field 'sample_ID' is missing; the row has "
            f"{', '.join(map(repr, row)) or 'no fields'}."
        )
    sample_id = id_field(row, where)
    where = f"{where} (sample_ID {sample_id!r})"
    if ("response" in row) == ("model_response" in row):
        problem = "has 'response' and 'model_response'" if "response" in row else "has no response"
        raise DataError(f"{where}: {problem}; accepted is {ACCEPTED}.")
    if "response" in row:
        return sample_id, text_field(row, "response", where, empty=empty)
    nested = row["model_response"]
    if not isinstance(nested, Mapping):
        return sample_id, text_field(row, "model_response", where, empty=empty)
    if "model_response" not in nested:
        keys = ", ".join(map(repr, nested)) or "no fields"
        raise DataError(f"{where}: model_response is an object with {keys}; accepted: {ACCEPTED}.")
    label = "model_response.model_response"
    return sample_id, text_field(nested, "model_response", where, label=label, empty=empty)


def _rows_of(
    path: str | Path, examples: Sequence[Example], also: Sequence[Example], *, empty: bool = False
) -> Iterator[tuple[str, str, str]]:
    """(place, sample_ID, response) of each row of a responses file; a ledger's header is passed
    over, and rows of examples in `also`.
    """
    wanted, rows = {example.sample_id for example in examples}, read_rows(path)
    passed = {example.sample_id for example in also} - wanted
    for where, row in rows[1:] if rows and is_header(rows[0][1], HEADER) else rows:
        sample_id, response = read_response_row(row, where, empty=empty)
        if sample_id in passed:
            continue
        if sample_id not in wanted:
            raise DataError(
                f"{where}: sample_ID {sample_id!r} is not in the data ({len(wanted)} samples). "
                "Check that the responses belong to this data, or remove the row."
            )
        yield where, sample_id, response
