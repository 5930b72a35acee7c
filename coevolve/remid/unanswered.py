"""Test examples that not every model has answered, where the user allows that.

R-EMI compares models over the same (context, response) pairs, so an example that one model has not
answered is left out for all of them. It is counted by subset and by fault, and tables say so beside
the subset's name.
"""

from collections.abc import Mapping
from typing import Any

from coevolve.data.corpus import Corpus
from coevolve.data.responses import PartialResponses
from coevolve.remid.score import distributions

FAULTS = ("missing", "empty", "duplicated")
"""Fields of `PartialResponses`."""


def count_unanswered(
    whole: Corpus, answered: Corpus, responses: Mapping[str, PartialResponses]
) -> dict[str, Any] | None:
    """For results: {rows: {row: {left_out, of}}, models: {name: {missing, empty, duplicated: lists
    of sample_ID}}}.

    Rows that are whole are not in it; None where every one is.

    Args:
        whole, answered: the corpus before and after `coevolve.data.responses.answered_by_all`.
    """
    left = {subset.row: len(subset.examples) for subset in distributions(answered)}
    rows = {
        subset.row: {
            "left_out": len(subset.examples) - left[subset.row],
            "of": len(subset.examples),
        }
        for subset in distributions(whole)
        if left[subset.row] < len(subset.examples)
    }
    models = {
        name: {fault: list(getattr(given, fault)) for fault in FAULTS}
        for name, given in responses.items()
    }
    return {"rows": rows, "models": models} if rows else None


def left_out(results: Mapping[str, Any], row: str) -> int:
    """How many examples of a row were left out."""
    return _of_row(results, row).get("left_out", 0)


def left_out_note(results: Mapping[str, Any], row: str) -> str | None:
    """`3 of 16 left out`, or None where the row is whole."""
    found = _of_row(results, row)
    return f"{found['left_out']} of {found['of']} left out" if found else None


def row_label(results: Mapping[str, Any], row: str) -> str:
    """The row's name, and in brackets what was left out of it."""
    note = left_out_note(results, row)
    return f"{row} ({note})" if note else row


def unanswered_line(results: Mapping[str, Any]) -> str | None:
    """Why examples were left out, model by model; None where none was."""
    unanswered = results.get("unanswered")
    if not unanswered:
        return None
    faults = {
        name: ", ".join(f"{len(found[fault])} {fault}" for fault in FAULTS if found[fault])
        for name, found in unanswered["models"].items()
    }
    listed = "; ".join(f"{name} has {found}" for name, found in faults.items() if found)
    return f"Left out for all models are examples that one has no usable response to: {listed}."


def _of_row(results: Mapping[str, Any], row: str) -> Mapping[str, int]:
    return (results.get("unanswered") or {"rows": {}})["rows"].get(row, {})
