"""The result table in the leaderboard's rows, for a terminal and for a log file."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from coevolve.errors import DataError

Exact = Mapping[tuple[str, str], float]
"""True values by (model, row of the results): R-EMI for `IDTest`, R-EMID for a shifted subset."""

HEADINGS: Mapping[str | None, str] = MappingProxyType(
    {
        None: "in distribution, R-EMI ↑",
        "user": "user shift, R-EMID ↓",
        "character": "character shift, R-EMID ↓",
        "dialogue": "dialogue shift, R-EMID ↓",
        "all": "all shifted at once, R-EMID ↓",
    }
)
AVERAGE_HEADING = "over all shifted subsets, R-EMID ↓"
AVERAGE = "aggregate average"
ABSENT = "-"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        heading: of the block of rows that it belongs to.
        label: the subset's name.
        values: one per column, in the results' unit; None where there is none.
    """

    heading: str
    label: str
    values: tuple[float | None, ...]


def remid_rows(results: Mapping[str, Any], exact: Exact | None = None) -> tuple[list[str], list[Row]]:
    """(names of the columns, rows): R-EMI in distribution, R-EMID of each shifted subset, and their average.

    Args:
        results: of `evaluate_remid`.
        exact: true values, where they are known. A model that has any gets a second column, "exact", beside its
            own; its average is given where every shifted subset has a true value.

    Raises:
        DataError: `exact` names a model or a row that the results do not have.
    """
    exact = exact or {}
    _check_exact(exact, results)
    with_exact = {model for model, _ in exact}
    columns = [
        (model, is_exact) for model in results["models"] for is_exact in (False, True)[: 1 + (model in with_exact)]
    ]
    rows = []
    for subset in results["subsets"]:
        measure = "remi" if subset["shift"] is None else "remid"
        values = [
            exact.get((model, subset["row"])) if is_exact else subset["models"][model][measure]
            for model, is_exact in columns
        ]
        rows.append(Row(HEADINGS[subset["shift"]], subset["subset"], tuple(values)))
    if results["average"]:
        averages = [
            _exact_average(model, exact, results) if is_exact else results["average"][model]["remid"]
            for model, is_exact in columns
        ]
        rows.append(Row(AVERAGE_HEADING, AVERAGE, tuple(averages)))
    return [f"{model} exact" if is_exact else model for model, is_exact in columns], rows


def remid_caption(results: Mapping[str, Any]) -> str:
    """What the numbers are: the measures with their better direction, the unit, the estimator and its pairs."""
    negatives = results["negatives"]
    if negatives == "all":
        pairs = "all mismatched pairs of each subset"
    else:
        pairs = f"up to {negatives:,} mismatched pairs per subset (seed {results['seed']})"
    return (
        "R-EMI ↑: higher is better. R-EMID ↓ = R-EMI in distribution - R-EMI shifted: lower is better.\n"
        f"Unit: {results['unit']}. Mutual information by {results['form'].upper()} over {pairs}."
    )


def remid_table(results: Mapping[str, Any], exact: Exact | None = None) -> Table:
    """The table for a terminal. Arguments and errors as for `remid_rows`."""
    columns, rows = remid_rows(results, exact)
    table = Table(box=box.SIMPLE_HEAD, caption=remid_caption(results), caption_justify="left")
    table.add_column("subset")
    for name in columns:
        table.add_column(escape(name), justify="right")
    heading = None
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            table.add_row(f"[bold]{heading}[/bold]")
        table.add_row(f"  {escape(row.label)}", *map(_number, row.values))
    return table


def remid_text(results: Mapping[str, Any], exact: Exact | None = None) -> str:
    """The table as plain text without control characters. Arguments and errors as for `remid_rows`."""
    columns, rows = remid_rows(results, exact)
    lines = [("subset", columns)]
    heading = None
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            lines.append((heading, []))
        lines.append((f"  {row.label}", [_number(value) for value in row.values]))
    first = max(cell_len(label) for label, _ in lines)
    widths = [max(cell_len(cells[i]) for _, cells in lines if cells) for i in range(len(columns))]
    text = []
    for label, cells in lines:
        padded = [" " * (width - cell_len(cell)) + cell for width, cell in zip(widths, cells, strict=False)]
        text.append("  ".join([label + " " * (first - cell_len(label)), *padded]).rstrip())
    text.insert(1, "-" * (first + sum(width + 2 for width in widths)))
    return "\n".join([*text, "", remid_caption(results)]) + "\n"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:+z.3f}"


def _exact_average(model: str, exact: Exact, results: Mapping[str, Any]) -> float | None:
    values = [exact.get((model, subset["row"])) for subset in results["subsets"] if subset["shift"] is not None]
    return None if None in values else sum(values) / len(values)


def _check_exact(exact: Exact, results: Mapping[str, Any]) -> None:
    models, rows = results["models"], [subset["row"] for subset in results["subsets"]]
    for model, row in exact:
        if model not in models or row not in rows:
            raise DataError(
                f"exact values are given for model {model!r}, row {row!r}; accepted are the models "
                f"{', '.join(models)} and the rows {', '.join(rows)}."
            )
