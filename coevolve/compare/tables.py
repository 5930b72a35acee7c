"""A comparison as tables: for a terminal, Markdown, LaTeX, CSV and the report."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from coevolve.compare.results import (
    CompareResults,
    Figure,
    Gain,
    MeasureName,
    Place,
    Ranking,
    Truth,
)
from coevolve.remid.grid import Block, Grid, grid_latex, grid_markdown
from coevolve.remid.judge import Correlation, judge_grid
from coevolve.remid.results import SIGNIFICANT, form_name
from coevolve.remid.table import ABSENT, AVERAGE

CSV_COLUMNS = (
    *("table", "row", "measure", "name", "rank", "value", "standard_error", "low", "high"),
    *("behind", "behind_low", "behind_high", "p", "exact", "within", "bound"),
)
TOLD = "†"
MEASURES: tuple[MeasureName, ...] = ("remi", "remid")


def compare_grids(results: CompareResults) -> list[Grid]:
    """All tables, the most wanted first."""
    grids = [_standings(results)]
    if results.truth:
        grids += [_two_rankings(results), _truth_grid(results, results.truth)]
    if results.shifts:
        grids.append(_shifts(results, results.shifts))
    if results.remedies:
        grids.append(_remedies(results))
    grids.append(_against_the_best(results))
    if results.judge:
        grids.append(replace(judge_grid(results.judge), title="R-EMI and the judge"))
    if results.readers:
        grids.append(_readers(results))
    if any(place.bound is not None for row in results.rows for place in row.places):
        grids.append(_bounds(results))
    return grids


def compare_markdown(results: CompareResults) -> str:
    """All tables."""
    return "\n".join(map(grid_markdown, compare_grids(results)))


def compare_latex(results: CompareResults) -> str:
    """A `tabular` for each table."""
    return "\n".join(map(grid_latex, compare_grids(results)))


def compare_csv(results: CompareResults) -> str:
    """One line per number that is ranked, gained, or read."""
    written = io.StringIO()
    table = csv.DictWriter(written, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for name, rows in (("models", results.rows), ("shifts", [results.shifts])):
        for row in filter(None, rows):
            for rank, place in enumerate(row.places, 1):
                about = {"table": name, "row": row.row, "measure": results.called(row.measure)}
                table.writerow({**about, "rank": rank, **_cells(place)})
    for remedy in results.remedies:
        for part in MEASURES:
            measure, figure = results.called(part), getattr(remedy, part)
            gain: Gain | None = getattr(remedy, f"{part}_gain")
            about = {"name": remedy.name, "measure": measure}
            if figure:
                table.writerow({**about, "table": "remedies", "row": "mean", **_numbers(figure)})
            if gain:
                line = {**about, "table": "remedies", "row": "gain", "p": gain.p}
                table.writerow(line | _numbers(gain.figure))
    for read in results.readers:
        for part in MEASURES:
            if figure := getattr(read, part):
                about = {"name": read.model, "measure": results.called(part)}
                line = {**about, "table": "readers", "row": read.reader}
                table.writerow(line | _numbers(figure))
    return written.getvalue()


RENDERED: Mapping[str, Callable[[CompareResults], str]] = {
    "md": compare_markdown,
    "tex": compare_latex,
    "csv": compare_csv,
}
"""The text of `results.NAME`."""


def _numbers(figure: Figure) -> dict[str, float | None]:
    ends = {"low": figure.low, "high": figure.high}
    return {"value": figure.value, "standard_error": figure.error, **ends}


def _cells(place: Place) -> dict[str, object]:
    behind = place.behind
    less = (behind.value, behind.low, behind.high) if behind else (None, None, None)
    between = dict(zip(("behind", "behind_low", "behind_high"), less, strict=True))
    known = {name: getattr(place, name) for name in ("p", "exact", "within", "bound")}
    return {"name": place.name, **_numbers(place.figure), **between, **known}


def _standings(results: CompareResults) -> Grid:
    """Every row a leaderboard has, every model with its rank."""
    emi, emid = results.names
    names = [model.name for model in results.models]
    blocks: dict[str, list[list[str]]] = {}
    for row in results.rows:
        heading = f"{emi} ↑" if row.measure == "remi" else f"{emid} ↓"
        found = {place.name: (rank, place) for rank, place in enumerate(row.places, 1)}
        cells = [_ranked(*found[name]) for name in names]
        blocks.setdefault(heading, []).append([row.row, *cells])
    best = "the best reader of each"
    reader = best if results.reader == "best" else results.reader
    caption = [
        f"{results.name}: {results.unit}, by {form_name(results.form)}, read by {reader}; (rank), "
        f"± standard error. {TOLD}: told from the first of its row at {SIGNIFICANT:.0%}, paired "
        "over examples, corrected (Holm) for all pairs of models.",
        *(f"MIND: {flag}" for flag in results.flags),
    ]
    listed = [Block(heading, rows) for heading, rows in blocks.items()]
    return Grid(
        ["subset", *names], listed, caption, f"{results.name}: which model generalises best"
    )


def _ranked(rank: int, place: Place) -> str:
    return f"({rank}) {place.figure}{TOLD * _is_told(place)}"


def _is_told(place: Place) -> bool:
    return place.p is not None and place.p < SIGNIFICANT


def _against_the_best(results: CompareResults) -> Grid:
    """Every model less the first of its row, where there is more than one."""
    blocks = []
    for row in results.rows:
        first, *others = row.places
        rows = [[x.name, x.behind.interval, _p(x.p)] for x in others if x.behind]
        if rows:
            heading = f"{row.row}, {results.called(row.measure)}: less {first.name}, {first.figure}"
            blocks.append(Block(heading, rows))
    caption = [
        f"Differences paired over examples, {results.level:.0%} intervals. p: of no difference, "
        "two-sided, corrected (Holm) for all pairs of models of the row, as which is the first was "
        "seen in the same examples."
    ]
    return Grid(["model", "difference", "p"], blocks, caption, "Against the best of each row")


def _shifts(results: CompareResults, shifts: Ranking) -> Grid:
    worst, *others = shifts.places
    rows = [[worst.name, worst.figure.interval, ABSENT, ABSENT]]
    rows += [
        [x.name, x.figure.interval, x.behind.interval if x.behind else ABSENT, _p(x.p)]
        for x in others
    ]
    emid = results.names[1]
    caption = [
        f"Mean {emid} over all models and over the subsets of the shift. Worst: {worst.name}."
    ]
    columns = ["shift", f"mean {emid}", "less the worst", "p (Holm)"]
    return Grid(columns, [Block("", rows)], caption, "Which shift is the worst")


def _remedies(results: CompareResults) -> Grid:
    emi, emid = results.names

    def gain(found: Gain | None) -> str:
        return f"{found.figure.interval}, p {_p(found.p)}" if found else ABSENT

    rows = [
        [
            x.name,
            str(len(x.models)),
            str(x.remi),
            str(x.remid) if x.remid else ABSENT,
            gain(x.remi_gain),
            gain(x.remid_gain),
        ]
        for x in results.remedies
    ]
    caption = [
        f"Means over models trained in one way. Gained: less what they began as, paired over "
        f"examples; better is {emi} above 0, {emid} below 0. p: of no gain, two-sided (Holm)."
    ]
    columns = ["way", "models", f"{emi} ↑", f"{emid} ↓", f"gained in {emi}", f"gained in {emid}"]
    return Grid(columns, [Block("", rows)], caption, "Which way of training helps")


def _readers(results: CompareResults) -> Grid:
    emi, emid = results.names
    rows = [
        [x.model, x.reader, str(x.remi), str(x.remid) if x.remid else ABSENT]
        for x in results.readers
    ]
    caption = ["own: the model's own weights read its responses, the estimator the golden ones."]
    columns = ["model", "read by", f"{emi} in distribution", f"mean {emid}"]
    return Grid(columns, [Block("", rows)], caption, "By whom responses are read")


def _bounds(results: CompareResults) -> Grid:
    names = [model.name for model in results.models]
    rows = []
    for row in results.rows:
        found = {place.name: place for place in row.places if place.bound is not None}
        if found:
            cells = [
                f"{x.figure.value:+z.3f} / {x.bound:.2f}" if (x := found.get(name)) else ABSENT
                for name in names
            ]
            rows.append([row.row, *cells])
    emid = results.names[1]
    caption = [f"{emid}, {results.unit}, / its upper bound, nats per response (`coevolve bound`)."]
    return Grid(["subset", *names], [Block("", rows)], caption, f"{emid} and its upper bound")


def _two_rankings(results: CompareResults) -> Grid:
    """By the estimate and by the truth, side by side."""
    blocks = []
    for row in results.rows:
        known = [place for place in row.places if place.exact is not None]
        if known and (row.measure == "remi" or row.row == AVERAGE):
            true = sorted(known, key=lambda x: x.exact or 0.0, reverse=row.measure == "remi")
            rows = [
                [str(rank), a.name, str(a.figure), b.name, f"{b.exact:+z.3f}{_within(b)}"]
                for rank, (a, b) in enumerate(zip(known, true, strict=True), 1)
            ]
            blocks.append(Block(f"{row.row}, {results.called(row.measure)}", rows))
    columns = ["rank", "by the estimate", "estimate", "by the truth", "exact"]
    return Grid(columns, blocks, [results.unit], "The two rankings")


def _within(place: Place) -> str:
    return f" (within {place.within:.3f})" if place.within else ""


def _truth_grid(results: CompareResults, truth: Truth) -> Grid:
    emi, emid = results.names
    of = {
        f"{emi} in distribution, {truth.models} models": truth.remi,
        f"mean {emid}, {truth.models} models": truth.remid,
        f"{emid}, {truth.pairs} model x subset pairs": truth.remid_pairs,
    }
    rows = [[name, *_correlations(found)] for name, found in of.items() if found]
    signs = f"{truth.right} of {truth.told}" if truth.told else "none is asked for"
    caption = [
        f"{results.level:.0%} bootstrap intervals over models or pairs; of a few models they say "
        f"little. Signs of {emid} that are right, where the exact one is over 0.1 nats per "
        f"response and two standard errors from 0: {signs}."
    ]
    columns = ["estimate and truth", "Pearson", "Spearman", "Kendall"]
    return Grid(columns, [Block("", rows)], caption, "Estimates against the truth")


def _correlations(found: Mapping[str, Correlation]) -> Iterator[str]:
    yield from (str(found[name]) for name in ("pearson", "spearman", "kendall"))


def _p(p: float | None) -> str:
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
