"""A judge's answers on disk, as `coevolve judge` writes them and `remid --judge` reads them.

A ledger (`coevolve.data.ledger`). Its first line has the rubric with its scale, every further one
what one question gave: scores by model and criterion, the models in the order in which they stood.

    {"judge": {...}, "rubric": {"low": 1, "high": 5, ...}, "asked": {...}, "address": "..."}
    {"sample_ID": "IDTest-0", "repeat": 1, "scores": {"mine": {"consistency": 4, ...}}, ...}
"""

import math
from collections.abc import Mapping
from typing import Any

from coevolve.data.example import id_field, kind
from coevolve.errors import DataError

HEADER = ("judge", "rubric", "asked", "address")
"""The keys of the first line."""

Scores = Mapping[str, Mapping[str, float]]
"""Model -> criterion -> score."""


def scale_of(header: Mapping[str, Any], where: str) -> tuple[float, float]:
    """The lowest and the highest score, by the rubric in a file's first line."""
    rubric = header["rubric"]
    ends = [rubric.get(name) if isinstance(rubric, Mapping) else None for name in ("low", "high")]
    numbers = [float(x) for x in ends if isinstance(x, int | float) and x is not True]
    if len(numbers) < 2 or not numbers[0] < numbers[1]:
        raise DataError(f"{where}: rubric: found the scale {ends}; accepted is low below high.")
    return numbers[0], numbers[1]


def read_judgement(row: Any, where: str, low: float, high: float) -> tuple[str, int, Scores]:
    """(sample_ID, repeat, scores) of one line, on the scale from `low` to `high`."""
    if not isinstance(row, Mapping) or not {"sample_ID", "repeat", "scores"} <= row.keys():
        found = ", ".join(map(repr, row)) if isinstance(row, Mapping) else kind(row)
        raise DataError(f"{where}: found {found}; accepted: sample_ID, repeat and scores.")
    repeat, scores = row["repeat"], row["scores"]
    if type(repeat) is not int or repeat < 1:
        raise DataError(f"{where}: repeat is {repeat!r}; accepted is an integer from 1.")
    if not isinstance(scores, Mapping) or not scores:
        raise DataError(f"{where}: scores is {kind(scores)}; accepted is an object by model.")
    for model, given in scores.items():
        if not isinstance(given, Mapping) or not given:
            raise DataError(f"{where}: scores of {model!r}: accepted is an object by criterion.")
        for criterion, score in given.items():
            if type(score) not in (int, float) or not low <= score <= high:
                raise DataError(
                    f"{where}: the {criterion} of {model!r} is {score!r}; accepted is a number "
                    f"from {low:g} to {high:g}, the rubric's scale."
                )
    return id_field(row, where), repeat, scores


def mean_score(scores: Mapping[str, float]) -> float:
    """Of a response, over the criteria."""
    return math.fsum(scores.values()) / len(scores)
