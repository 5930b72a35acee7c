"""The result table in the leaderboard's rows: for a terminal, as CSV, LaTeX and Markdown."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Group

from coevolve.errors import DataError
from coevolve.information.uncertainty import LEAST
from coevolve.registry import Registry, users_code
from coevolve.remid.grid import Block, Grid, grid_latex, grid_markdown, grid_table
from coevolve.remid.results import (
    SIGNIFICANT,
    Exact,
    Losses,
    OfModel,
    RemidResults,
    SubsetNumbers,
    mean_exact,
)

SHIFTED: Mapping[str, str] = {
    **{name: f"{name} shift" for name in ("user", "character", "dialogue")},
    "all": "all shifted at once",
}
AVERAGE = "aggregate average"
ABSENT = "-"
MARK = "*"
MOST_DIFFERENCES = 10
_COLUMNS = (
    "form normalisation measure shift subset examples model value standard_error low high "
    "chance_of_loss holm_p exact reason left_out readers"
)
CSV_COLUMNS = tuple(_COLUMNS.split())
Which = Literal["remi", "remid"]
Renderer = Callable[["RemidResults"], str]


@dataclass(frozen=True)
class Value:
    """A number of the table and its standard error; significant if, by Holm, told from 0."""

    number: float | None
    error: float | None = None
    significant: bool = False

    def __str__(self) -> str:
        if self.number is None:
            return ABSENT
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.number:+z.3f}{error}{MARK * self.significant}"


@dataclass(frozen=True)
class Row:
    """One line of the table, below a heading, with a value per column."""

    heading: str
    label: str
    values: tuple[Value, ...]


def remid_rows(results: RemidResults, exact: Exact | None = None) -> tuple[list[str], list[Row]]:
    """(names of the columns, rows): R-EMI in distribution, R-EMID of each shifted subset, their
    average.

    `exact` are true values in the unit of the main measure. A model that has any gets a second
    column, "exact", beside its own; its average is given where every shifted subset has a true
    value.
    """
    exact = exact or {}
    results.require_pairs("exact values are given for", exact)
    known = {model for model, _ in exact}
    columns = [(x, truth) for x in results.models for truth in (False, True)[: 1 + (x in known)]]
    emi, emid = results.names

    def values(
        numbers: Mapping[str, Losses | None], which: Which, of: Sequence[SubsetNumbers]
    ) -> tuple[Value, ...]:
        return tuple(
            Value(mean_exact(exact, model, of)) if truth else _value(results, numbers[model], which)
            for model, truth in columns
        )

    rows = []
    for subset in results.subsets:
        which: Which = "remid" if subset.shift else "remi"
        shifted = f"{SHIFTED[subset.shift]}, {emid} ↓" if subset.shift else None
        label = results.label(subset.row, subset.subset, subset.reason)
        of_subset = values(subset.models, which, [subset])
        rows.append(Row(shifted or f"in distribution, {emi} ↑", label, of_subset))
    if results.average:
        there, measured = len(results.subsets) - 1, results.shifted()
        part = f" (of {len(measured)} of {there})" if len(measured) < there else ""
        averages = values(results.average, "remid", measured)
        rows.append(Row(f"over all shifted subsets, {emid} ↓", AVERAGE + part, averages))
    return [f"{model} exact" if truth else model for model, truth in columns], rows


def remid_caption(results: RemidResults) -> list[str]:
    """What the numbers are: unit, estimator, pairs, direction, errors, reasoning, left out."""
    emi, emid = results.names
    lines: list[str | None] = [
        _unit_line(results),
        f"{emi} ↑: higher is better. {emid} ↓ = {emi} in distribution - {emi} shifted: lower is "
        "better.",
    ]
    if results.level is not None:
        lines.append(f"±: standard error. {_mark_line(results)}")
    if results.reasoning is not None:
        lines.append(f"Reasoning: {results.reasoning.form()}.")
    if few := small_subsets(results):
        lines.append(
            f"Fewer than {LEAST} examples, too few to say how sure these and their means are: "
            f"{', '.join(few)}."
        )
    return [line for line in (*lines, _floor_line(results), results.unanswered_line()) if line]


def small_subsets(results: RemidResults) -> list[str]:
    """Those of too few examples for anything to be said of how sure their numbers are."""
    few = [one.subset for one in results.subsets if one.examples < LEAST and not one.reason]
    return few if results.level is not None else []


def remid_grids(
    results: RemidResults, exact: Exact | None = None, *, exact_below: bool = False
) -> list[Grid]:
    """The table of the main measure, then of those beside it; exact values stand in columns of
    their own, or below the estimates.
    """
    main, *beside = results.by_measure()
    grids = [_grid(main, exact or {}, remid_caption(main), exact_below)]
    # What is said below the first table holds for all.
    for part in beside:
        lines = _unit_line(part), _mark_line(part) if part.off else None, _floor_line(part)
        grids.append(_grid(part, {}, [*filter(None, lines)], False))
    return grids


def reader_grid(results: RemidResults) -> list[Grid]:
    """Who read each model's responses and what the estimator alone makes of them, where others
    might.
    """
    emi, _ = results.names
    blocks = []
    for model in [None, *results.models]:
        rows = []
        for subset in results.subsets:
            found = subset.golden if model is None else subset.models[model]
            if found is None or found.readers is None:
                continue
            cells = [" / ".join(found.readers), *[ABSENT] * 3]
            if isinstance(found, OfModel):
                values = found.remi, found.remi_by_estimator, found.beyond_golden
                cells[1:] = [str(Value(value)) for value in values]
            rows.append([subset.subset, *cells])
        if rows:
            blocks.append(Block(model or "golden", rows))
    caption = (
        f"Who read the responses, {results.unit}; two read half of them each. Beyond golden: {emi} "
        f"less {emi} by the estimator, which is information about the context that golden "
        "responses do not have."
    )
    columns = ["subset", "read by", emi, f"{emi} by the estimator", "beyond golden"]
    return [Grid(columns, blocks, [caption])] if blocks else []


def further_grids(results: RemidResults) -> list[Grid]:
    """Who read what, where there was a choice, and the models' differences."""
    return [*reader_grid(results), *difference_grid(results)]


def difference_grid(results: RemidResults) -> list[Grid]:
    """The models' paired differences, if there are any."""
    rows = difference_rows(results)
    if not rows or results.level is None:
        return []
    emi, emid = results.names
    caption = (
        f"Differences between models, paired over examples, {results.unit}, with "
        f"{results.level:.0%} intervals: one that includes 0 does not tell the two apart."
    )
    columns = ["models", f"{emi} in distribution", f"mean {emid}"]
    return [Grid(columns, [Block("", rows)], [caption])]


def difference_rows(results: RemidResults) -> list[tuple[str, str, str]]:
    """(`a - b`, difference in R-EMI in distribution, in mean R-EMID) of every two models, by the
    main measure; with many models, of those with the best one, which loses least.
    """
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for one in results.comparisons:
        shown = f"{one.value:+z.3f} [{one.low:+z.3f}, {one.high:+z.3f}]"
        cells.setdefault(tuple(one.models), {})[one.measure] = shown
    if len(cells) > MOST_DIFFERENCES:
        best = min(results.models, key=lambda name: _standing(results, name))
        cells = {pair: of_pair for pair, of_pair in cells.items() if best in pair}
    return [
        (" - ".join(pair), of_pair.get("remi", ABSENT), of_pair.get("remid", ABSENT))
        for pair, of_pair in cells.items()
    ]


def remid_table(results: RemidResults, exact: Exact | None = None) -> Group:
    """For a terminal: the measures' tables, then the models' paired differences."""
    return Group(*map(grid_table, [*remid_grids(results, exact), *further_grids(results)]))


def remid_latex(results: RemidResults, exact: Exact | None = None) -> str:
    """A `tabular` per measure."""
    return "\n".join(map(grid_latex, [*remid_grids(results, exact), *reader_grid(results)]))


def remid_markdown(results: RemidResults, exact: Exact | None = None) -> str:
    """A table per measure, and the differences."""
    grids = [*remid_grids(results, exact), *further_grids(results)]
    return "\n".join(map(grid_markdown, grids))


def remid_csv(results: RemidResults, exact: Exact | None = None) -> str:
    """One line per measure, subset and model; an empty cell where there is no number."""
    written = io.StringIO()
    table = csv.DictWriter(written, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for part in results.by_measure():
        common = {"form": part.form, "normalisation": part.normalisation}
        known = (exact or {}) if part is results else {}
        for subset in part.subsets:
            which: Which = "remi" if subset.shift is None else "remid"
            copied = ("shift", "subset", "examples", "reason")
            of_subset = {
                "measure": part.names[subset.shift is not None],
                **{name: getattr(subset, name) for name in copied},
                "left_out": results.left_out(subset.row),
            }
            for model in part.models:
                numbers = _cells(subset.models[model], which)
                true = known.get((model, subset.row))
                readers = " / ".join(getattr(subset.models[model], "readers", None) or ())
                line = {"model": model, "exact": true, "readers": readers}
                table.writerow(common | of_subset | line | numbers)
        for model, means in part.average.items():
            line = {"measure": part.names[1], "subset": AVERAGE, "model": model}
            true = mean_exact(known, model, part.shifted())
            table.writerow(common | line | {"exact": true} | _cells(means, "remid"))
    return written.getvalue()


def _of_user(function: Callable[..., str], where: str) -> Renderer:
    def render(results: RemidResults) -> str:
        with users_code(where, DataError):
            text = function(results=results)
        if not isinstance(text, str):
            raise DataError(f"{where} gave {type(text).__name__}; accepted: {RENDERERS.accepted}.")
        return text

    return render


RENDERERS: Registry[Renderer] = Registry(
    "renderer",
    accepted="a function (results) from coevolve.remid.results.RemidResults to text",
    given=("results",),
    adopt=_of_user,
)
"""What gives the text of a file `results.NAME` beside the results of `coevolve remid`."""
RENDERERS.register("csv")(remid_csv)
RENDERERS.register("tex")(remid_latex)
RENDERERS.register("md")(remid_markdown)


def _grid(results: RemidResults, exact: Exact, caption: list[str], exact_below: bool) -> Grid:
    columns, rows = remid_rows(results, exact)
    if exact_below:
        columns = results.models
    known = {model for model, _ in exact}
    blocks: dict[str, list[list[str]]] = {}
    for row in rows:
        cells = list(map(str, row.values))
        if exact_below:
            left = iter(cells)
            cells = [
                next(left) + (f"\nexact {next(left)}" if x in known else "") for x in results.models
            ]
        blocks.setdefault(row.heading, []).append([row.label, *cells])
    listed = [Block(heading, of_block) for heading, of_block in blocks.items()]
    return Grid(["subset", *columns], listed, caption)


def _unit_line(results: RemidResults) -> str:
    legend = " (K: other contexts per response)" if "K" in results.bias else ""
    bias = f" It is {results.bias}{legend}." if results.bias else ""
    information = f"Mutual information by {results.form_name} over {_pairs(results)}."
    return f"Unit: {results.unit}. {information}{bias}"


def _mark_line(results: RemidResults) -> str:
    """What marks a loss, or why nothing does."""
    emid = results.names[1]
    if results.off:
        return (
            f"No {emid} is marked, for the values of this measure are known to be off by a factor."
        )
    return f"{MARK}: {emid} above 0 at {SIGNIFICANT:.0%}, corrected (Holm) for the model's subsets."


def _floor_line(results: RemidResults) -> str | None:
    """Whose estimate is lower than it need be, for want of a lower temperature."""
    at_floor = [
        f"{name} in {subset.subset}"
        for subset in results.subsets
        for name, numbers in {"golden": subset.golden, **subset.models}.items()
        if numbers and numbers.at_floor
    ]
    if not at_floor:
        return None
    return (
        "At the lowest temperature of the fit, so that information is underestimated: "
        f"{', '.join(at_floor)}. There a response's log-probabilities vary by more than 100 nats "
        "or so between contexts."
    )


def _standing(results: RemidResults, name: str) -> float:
    """The lower the better: mean R-EMID, or -R-EMI where nothing is shifted."""
    if results.average:
        return results.average[name].remid or 0.0
    usual = results.subsets[0].models[name]
    return -usual.remi if usual else 0.0


def _value(results: RemidResults, numbers: Losses | None, which: Which) -> Value:
    cells = _cells(numbers, which)
    marked = which == "remid" and results.is_loss(numbers)
    return Value(cells["value"], cells["standard_error"], marked)


def _cells(numbers: Losses | None, which: Which) -> dict[str, float | None]:
    """A number with what says how sure it is, by the names of `CSV_COLUMNS`."""
    names = {"value": which, "standard_error": f"{which}_error"}
    names |= {end: f"{which}_{end}" for end in ("low", "high")}
    if which == "remid":
        names |= {name: name for name in ("chance_of_loss", "holm_p")}
    return {name: getattr(numbers, field, None) for name, field in names.items()}


def _pairs(results: RemidResults) -> str:
    negatives = results.negatives
    if negatives == "all":
        return "all mismatched pairs of each subset"
    if isinstance(negatives, dict):
        each = f"up to {negatives['per_context']:,} mismatched pairs per context"
    else:
        each = f"up to {negatives:,} mismatched pairs per subset"
    return f"{each} (seed {results.seed})"
