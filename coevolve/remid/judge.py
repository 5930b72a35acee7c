"""How R-EMI agrees with a judge: correlations over model x subset pairs, as the paper computes them
over 121.

The judge is people or a language model; its scores come in a file, one row for each pair or for
each response.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from coevolve.data.corpus import Row, read_rows
from coevolve.data.example import kind, text_field
from coevolve.data.judgements import HEADER, mean_score, read_judgement, scale_of
from coevolve.data.ledger import is_header
from coevolve.documents import Document, Part
from coevolve.errors import DataError, RecipeError
from coevolve.information.agreement import Agreement, agreements
from coevolve.remid.grid import Block, Grid
from coevolve.remid.results import Count, RemidResults

Pair = tuple[str, str]
"""(model, row of the results, for example `IDTest` or `OOD1Test/german`)."""
Coefficient = Annotated[float, Field(ge=-1.000001, le=1.000001)]
Pairs = Annotated[tuple[Pair, ...], Field(strict=False)]

MINIMUM_PAIRS = 3
LARGEST_SCORE = 1e100
"""Of which squares can still be summed."""


class Correlation(Part):
    """A rank or linear correlation of a measure with the judge's scores over pairs."""

    value: Coefficient | None = Field(description="Null if one side has one value everywhere.")
    low: Coefficient | None = Field(description="Lower end of the bootstrap interval, if any.")
    high: Coefficient | None = Field(description="Upper end of the interval.")
    undefined: Count = Field(description="Resamples that the interval leaves out.")

    @classmethod
    def of(cls, found: Mapping[str, Agreement]) -> "dict[str, Correlation]":
        """By statistic."""
        return {name: cls(**asdict(one)) for name, one in found.items()}

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        if self.low is None:
            return f"{self.value:+.3f} [undefined]"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class JudgeComparison(Document):
    """`judge.json`: what a judge's scores say about measures."""

    marks: ClassVar = ("schema",)
    schema_id: Literal["coevolve.judge/1"] = Field(default="coevolve.judge/1", alias="schema")
    """What the file is, and of which version."""
    pairs: Count = Field(description="Model x subset pairs that were compared.")
    unscored: Pairs = Field(description="Pairs of the results that the judge has no score for.")
    unmeasured: Pairs = Field(description="With a score, without numbers.")
    level: float = Field(description="Of the intervals.")
    resamples: Count = Field(description="Of the bootstrap.")
    seed: int = Field(description="Of its generator.")
    measures: dict[str, dict[str, Correlation]] = Field(description="By measure and statistic.")


def read_judge_scores(
    path: str | Path,
    models: Sequence[str],
    rows: Sequence[str],
    row_of_sample: Mapping[str, str],
    *,
    left_out: Collection[str] = (),
    scale: tuple[float, float] = (-LARGEST_SCORE, LARGEST_SCORE),
) -> dict[Pair, float]:
    """A judge's scores by (model, row), higher being better.

    Accepted is a `.jsonl` file, or a `.json` file with a list, whose rows are all `{model, subset,
    score}` or all `{sample_ID, model, score}`, or what `coevolve judge` wrote; scores of samples
    are averaged over each row of the results. A field `judge` tells judges apart; several judges'
    scores of one pair or response are averaged first.

    Args:
        models, rows: of the results.
        row_of_sample: sample_ID -> row, of all test examples.
        left_out: those that are not evaluated; their scores are read and not averaged.
        scale: the lowest and the highest score; what `coevolve judge` wrote has its own.
    """
    given = _one_by_one(read_rows(path))
    if not given:
        raise DataError(f"{path}: has no scores. Give rows that are {_ACCEPTED}.")
    field = _field_of(given)
    row_of = {name: name for name in rows} if field == "subset" else row_of_sample
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for where, row in given:
        required = {"model", field, "score"}
        if not isinstance(row, Mapping) or not required <= set(row) <= required | {"judge"}:
            found = _fields(row)
            raise DataError(f"{where}: found {found}; accepted is {_ACCEPTED}, all rows alike.")
        model, name = text_field(row, "model", where), text_field(row, field, where)
        for one, what, known in ((model, "model", models), (name, field, list(row_of))):
            if one not in known:
                some = ", ".join(known[:8]) + ", ..." * (len(known) > 8)
                raise DataError(f"{where}: {what} {one!r} is not in the results: {some}.")
        by_judge = scores.setdefault((model, name), {})
        judge = text_field(row, "judge", where) if "judge" in row else ""
        if judge in by_judge:
            twice = f"{name!r} of {model!r} has a score{f' by {judge!r}' if judge else ''} already"
            raise DataError(f"{where}: {field} {twice}. Remove one.")
        score = row["score"]
        if type(score) not in (int, float) or not scale[0] <= score <= scale[1]:
            accepted = f"a number, higher being better, from {scale[0]:g} to {scale[1]:g}"
            raise DataError(f"{where}: score is {score!r}; accepted is {accepted}.")
        by_judge[judge] = float(score)
    by_pair: dict[Pair, list[float]] = {}
    for (model, name), by_judge in scores.items():
        if field == "subset" or name not in left_out:
            by_pair.setdefault((model, row_of[name]), []).append(_mean(list(by_judge.values())))
    return {pair: _mean(values) for pair, values in by_pair.items()}


def judge_correlations(
    results: RemidResults,
    scores: Mapping[Pair, float],
    *,
    plain: RemidResults | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> JudgeComparison:
    """Pearson, Spearman and Kendall (tau-b) correlations of R-EMI with a judge's scores over pairs.

    Each measure of the results is compared, those that stand beside the main one too, and those of
    `plain`, results without reasoning. Intervals are percentiles of a bootstrap over the pairs
    (Efron, 1979), the same resamples for every measure. Pairs of one model, or of one subset, are
    not independent; the intervals do not know that, and are rather too narrow.

    `scores` are by (model, row of the results); pairs without one are left out and listed.
    """
    if not 0 < level < 1:
        raise RecipeError(f"level is {level}; accepted is a number between 0 and 1.")
    if resamples < 1:
        raise RecipeError(f"resamples is {resamples}; accepted are integers from 1 up.")
    known = _pairs(results)
    measures = _values(results)
    if plain is not None:
        if _pairs(plain) != known:
            raise DataError("the results without reasoning are of other models or rows.")
        measures |= _values(plain)
    results.require_pairs("the judge scores", scores)
    measured = [pair for pair in known if all(pair in values for values in measures.values())]
    pairs = [pair for pair in measured if pair in scores]
    if len(pairs) < MINIMUM_PAIRS:
        raise DataError(
            f"{len(pairs)} of {len(known)} model x subset pairs have a judge's score and numbers; "
            f"a correlation needs {MINIMUM_PAIRS} or more. Score more of them."
        )
    judged = [scores[pair] for pair in pairs]
    how: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    compared = {
        name: Correlation.of(agreements([values[pair] for pair in pairs], judged, **how))
        for name, values in measures.items()
    }
    return JudgeComparison(
        schema="coevolve.judge/1",
        pairs=len(pairs),
        unscored=tuple(pair for pair in measured if pair not in scores),
        unmeasured=tuple(pair for pair in scores if pair not in measured),
        level=level,
        resamples=resamples,
        seed=seed,
        measures=compared,
    )


def judge_grid(comparison: JudgeComparison) -> Grid:
    """The comparison as a table."""
    caption = (
        f"Correlation with the judge's scores over {comparison.pairs} model x subset pairs; "
        f"{comparison.level:.0%} bootstrap intervals ({comparison.resamples:,} resamples, seed "
        f"{comparison.seed})."
    )
    rows = [[name, *map(str, of_one.values())] for name, of_one in comparison.measures.items()]
    columns = ["measure", *map(str.capitalize, next(iter(comparison.measures.values())))]
    return Grid(columns, [Block("", rows)], [caption, *_notes(comparison)])


_ACCEPTED = "an object {model, subset, score} or {sample_ID, model, score}, perhaps with a 'judge'"


def _one_by_one(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of samples instead of the lines of `coevolve judge`, if that is what they are; its
    repeats are so many judges.
    """
    if not (rows and is_header(rows[0][1], HEADER)):
        return rows
    (first, header), *lines = rows
    low, high = scale_of(header, first)
    flat: list[Row] = []
    for where, line in lines:
        sample, repeat, scores = read_judgement(line, where, low, high)
        about = {"sample_ID": sample, "judge": f"repeat {repeat}"}
        flat += [(where, {**about, "model": x, "score": mean_score(y)}) for x, y in scores.items()]
    return flat


def _field_of(rows: Sequence[Row]) -> str:
    """Whether a file scores subsets or samples, by its first row."""
    where, first = rows[0]
    fields = [x for x in ("subset", "sample_ID") if isinstance(first, Mapping) and x in first]
    if len(fields) != 1:
        raise DataError(f"{where}: found {_fields(first)}; accepted is {_ACCEPTED}.")
    return fields[0]


def _fields(row: Any) -> str:
    return ", ".join(map(repr, row)) or "no fields" if isinstance(row, Mapping) else kind(row)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _pairs(results: RemidResults) -> list[Pair]:
    return [(model, subset.row) for subset in results.subsets for model in results.models]


def _values(results: RemidResults) -> dict[str, dict[Pair, float]]:
    """Each measure's values by pair, under its name; none for pairs without numbers."""
    return {
        f"{results.names[0]}, {part.form} {part.normalisation}": {
            (model, subset.row): numbers.remi
            for subset in part.subsets
            for model, numbers in subset.models.items()
            if numbers is not None
        }
        for part in results.by_measure()
    }


def _notes(comparison: JudgeComparison) -> list[str]:
    """Which pairs are left out, and why a number is missing or rests on fewer resamples."""
    notes = []
    for pairs, lack in ((comparison.unscored, "score"), (comparison.unmeasured, "numbers")):
        if pairs:
            first = " on ".join(pairs[0])
            notes.append(f"Left out without {lack}: {len(pairs)} pairs, the first {first}.")
    for measure, statistics in comparison.measures.items():
        correlation = next(iter(statistics.values()))
        if correlation.value is None:
            why = "undefined, as it or the judge's score is the same for every pair"
            notes.append(f"{measure}: {why}.")
        elif correlation.undefined:
            same = "resamples had the same value throughout and are left out"
            notes.append(f"{measure}: {correlation.undefined} {same}.")
    return notes
