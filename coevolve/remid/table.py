"""The result table in the leaderboard's rows: for a terminal, for a log file, as CSV and as LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Group

from coevolve.errors import DataError
from coevolve.progress import PlainTable
from coevolve.remid.unanswered import left_out, left_out_note, unanswered_line

Exact = Mapping[tuple[str, str], float]
"""True values in the results' unit by (model, row of the results): R-EMI for `IDTest`, R-EMID for a
shifted subset.
"""

SHIFTED = MappingProxyType(
    {
        "user": "user shift",
        "character": "character shift",
        "dialogue": "dialogue shift",
        "all": "all shifted at once",
    }
)
AVERAGE = "aggregate average"
ABSENT = "-"
SIGNIFICANT = 0.05
MARK = "*"
FEW = 16
"""Examples below which a loss is claimed too often: at 5 %, without any loss, 9 to 14 % of the time
with 6 examples and 8 to 10 % with 10, simulated on the synthetic world.
"""
MOST_DIFFERENCES = 10
CSV_COLUMNS = (
    "form",
    "normalisation",
    "measure",
    "shift",
    "subset",
    "examples",
    "model",
    "value",
    "standard_error",
    "low",
    "high",
    "chance_of_loss",
    "holm_p",
    "exact",
    "reason",
    "left_out",
)


@dataclass(frozen=True)
class Value:
    """One number of the table.

    Attributes:
        number: in the results' unit; None where there is none.
        error: its standard error; None where it is exact or not known.
        significant: whether a loss is told from 0, after Holm's correction.
    """

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
    """One line of the table.

    Attributes:
        heading: of the block of rows that it belongs to.
        label: the subset's name, and in brackets how many examples were left out, or why there are
            no numbers.
        values: one per column.
    """

    heading: str
    label: str
    values: tuple[Value, ...]


def remid_rows(
    results: Mapping[str, Any], exact: Exact | None = None
) -> tuple[list[str], list[Row]]:
    """(names of the columns, rows): R-EMI in distribution, R-EMID of each shifted subset, and their
    average.

    Args:
        results: of `evaluate_remid`.
        exact: true values in the unit of the results' main measure, where they are known. A model
            that has any gets a second column, "exact", beside its own; its average is given where
            every shifted subset has a true value.

    Raises:
        DataError: `exact` names a model or a row that the results do not have.
    """
    exact = exact or {}
    _check_exact(exact, results)
    with_exact = {model for model, _ in exact}
    columns = [
        (model, is_exact)
        for model in results["models"]
        for is_exact in (False, True)[: 1 + (model in with_exact)]
    ]
    rows = []
    for subset in results["subsets"]:
        measure = "remi" if subset["shift"] is None else "remid"
        values = [
            Value(exact.get((model, subset["row"])))
            if is_exact
            else _value(subset["models"][model], measure)
            for model, is_exact in columns
        ]
        rows.append(Row(_heading(results, subset["shift"]), _label(results, subset), tuple(values)))
    if results["average"]:
        averages = [
            Value(_exact_average(model, exact, results))
            if is_exact
            else _value(results["average"][model], "remid")
            for model, is_exact in columns
        ]
        rows.append(
            Row(
                f"over all shifted subsets, {_names(results)[1]} ↓",
                _average_label(results),
                tuple(averages),
            )
        )
    return [f"{model} exact" if is_exact else model for model, is_exact in columns], rows


def remid_caption(results: Mapping[str, Any]) -> str:
    """What the numbers are: unit, estimator, pairs, the measures' better direction, errors,
    reasoning, left out.
    """
    emi, emid = _names(results)
    lines = [
        _unit_line(results),
        f"{emi} ↑: higher is better. {emid} ↓ = {emi} in distribution - {emi} shifted: lower is better.",
    ]
    if "level" in results:
        lines.append(
            f"±: standard error. {MARK}: {emid} above 0 at {SIGNIFICANT:.0%}, corrected (Holm) for the model's subsets."
        )
    if "reasoning" in results:
        lines.append(f"Reasoning: {_reasoning(results['reasoning'])}.")
    notes = (_few_line(results), _floor_line(results), unanswered_line(results))
    return "\n".join([*lines, *filter(None, notes)])


def remid_table(results: Mapping[str, Any], exact: Exact | None = None) -> Group:
    """For a terminal: the main measure's table, those that stand beside it, the models' paired
    differences.

    Errors as for `remid_rows`.
    """
    tables = [_table(*part) for part in _captioned(results, exact)]
    differences = difference_rows(results)
    return Group(*tables, *([_difference_table(results, differences)] if differences else []))


def difference_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(`a - b`, difference in R-EMI in distribution, in mean R-EMID) of every two models, by the
    main measure.

    Empty where there is one model, and where the results hold no intervals. With many models only
    the pairs with the best one are listed: the one that loses least.
    """
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in results.get("comparisons", ()):
        found.setdefault(tuple(row["models"]), {})[row["measure"]] = row
    if len(found) > MOST_DIFFERENCES:
        best = min(results["models"], key=lambda name: _standing(results, name))
        found = {pair: of_pair for pair, of_pair in found.items() if best in pair}
    return [
        (f"{a} - {b}", *(_difference(of_pair.get(measure)) for measure in ("remi", "remid")))
        for (a, b), of_pair in found.items()
    ]


def difference_caption(results: Mapping[str, Any]) -> str:
    """What `difference_rows` are."""
    return (
        f"Differences between models, paired over examples, {results['unit']}, with {results['level']:.0%} intervals: "
        "one that includes 0 does not tell the two apart."
    )


def remid_text(results: Mapping[str, Any], exact: Exact | None = None) -> str:
    """The measures' tables as plain text without control characters. Arguments and errors as for
    `remid_rows`.
    """
    return "\n".join(_text(*part) for part in _captioned(results, exact))


def remid_csv(results: Mapping[str, Any], exact: Exact | None = None) -> str:
    """One line per measure, subset and model, with a line of `CSV_COLUMNS`; an empty cell where
    there is no number.
    """
    written = io.StringIO()
    table = csv.DictWriter(written, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for part in _parts(results):
        common = {"form": part["form"], "normalisation": part["normalisation"]}
        known = (exact or {}) if part is results else {}
        for subset in part["subsets"]:
            index = int(subset["shift"] is not None)
            for model in part["models"]:
                table.writerow(
                    {
                        **common,
                        "measure": _names(part)[index],
                        **{name: subset[name] for name in ("shift", "subset", "examples")},
                        "model": model,
                        **_cells(subset["models"][model], ("remi", "remid")[index]),
                        "exact": known.get((model, subset["row"])),
                        "reason": subset.get("reason"),
                        "left_out": left_out(results, subset["row"]),
                    }
                )
        for model, numbers in part["average"].items():
            line = {
                "measure": _names(part)[1],
                "subset": AVERAGE,
                "model": model,
                **_cells(numbers, "remid"),
            }
            table.writerow(
                common | line | {"exact": _exact_average(model, known, part) if known else None}
            )
    return written.getvalue()


def remid_latex(results: Mapping[str, Any], exact: Exact | None = None) -> str:
    """A `tabular` per measure for a paper; needs the package booktabs."""
    text = []
    for part, known, caption in _captioned(results, exact):
        columns, rows = remid_rows(part, known)
        text += [f"% {line}" for line in caption.splitlines()]
        text += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
        text += [_latex_line(["subset", *columns]), r"\midrule"]
        heading = None
        for row in rows:
            if row.heading != heading:
                heading = row.heading
                text.append(rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{{_latex(heading)}}} \\")
            text.append(_latex_line([row.label, *map(str, row.values)]))
        text += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(text)


def _parts(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results of each measure in the layout of the main one's."""
    parts = [results]
    for measured in results.get("beside", ()):
        numbers = {row["row"]: row for row in measured["subsets"]}
        subsets = [{**row, **numbers.get(row["row"], {})} for row in results["subsets"]]
        parts.append({**results, **measured, "subsets": subsets, "beside": ()})
    return parts


def _captioned(
    results: Mapping[str, Any], exact: Exact | None
) -> list[tuple[Mapping[str, Any], Exact | None, str]]:
    """(results, exact values, caption) of each measure; what is said below the first table holds
    for all.
    """
    main, *beside = _parts(results)
    beneath = [
        (part, "\n".join(filter(None, (_unit_line(part), _floor_line(part))))) for part in beside
    ]
    return [
        (main, exact, remid_caption(main)),
        *((part, None, caption) for part, caption in beneath),
    ]


def _unit_line(results: Mapping[str, Any]) -> str:
    legend = " (K: other contexts per response)" if "K" in results.get("bias", "") else ""
    bias = f" It is {results['bias']}{legend}." if "bias" in results else ""
    return f"Unit: {results['unit']}. Mutual information by {_form(results)} over {_pairs(results)}.{bias}"


def _table(results: Mapping[str, Any], exact: Exact | None, caption: str) -> PlainTable:
    columns, rows = remid_rows(results, exact)
    table = PlainTable(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("subset")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    heading = None
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            table.add_row(heading, style="bold")
        table.add_row(f"  {row.label}", *map(str, row.values))
    return table


def _few_line(results: Mapping[str, Any]) -> str | None:
    """Which intervals are too narrow for want of examples."""
    if "level" not in results:
        return None
    few = [
        subset["subset"]
        for subset in results["subsets"]
        if subset["examples"] < FEW and not subset.get("reason")
    ]
    return (
        f"Fewer than {FEW} examples, so that intervals are too narrow: {', '.join(few)}."
        if few
        else None
    )


def _floor_line(results: Mapping[str, Any]) -> str | None:
    """Whose estimate is lower than it need be, for want of a lower temperature."""
    found = [
        f"{name} in {subset['subset']}"
        for subset in results["subsets"]
        for name, numbers in {"golden": subset.get("golden"), **subset["models"]}.items()
        if numbers and numbers.get("at_floor")
    ]
    if not found:
        return None
    return (
        f"At the lowest temperature of the fit, so that information is underestimated: {', '.join(found)}. There a "
        "response's log-probabilities vary by more than 100 nats or so between contexts."
    )


def _difference_table(
    results: Mapping[str, Any], rows: Sequence[tuple[str, str, str]]
) -> PlainTable:
    emi, emid = _names(results)
    table = PlainTable(
        box=box.SIMPLE_HEAD, caption=difference_caption(results), caption_justify="left"
    )
    for name in ("models", f"{emi} in distribution", f"mean {emid}"):
        table.add_column(name, justify="right" if table.columns else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _difference(row: Mapping[str, Any] | None) -> str:
    return (
        ABSENT if row is None else f"{row['value']:+z.3f} [{row['low']:+z.3f}, {row['high']:+z.3f}]"
    )


def _standing(results: Mapping[str, Any], name: str) -> float:
    """The lower the better: mean R-EMID, or -R-EMI where nothing is shifted."""
    if results["average"]:
        return results["average"][name]["remid"]
    return -results["subsets"][0]["models"][name]["remi"]


def _text(results: Mapping[str, Any], exact: Exact | None, caption: str) -> str:
    columns, rows = remid_rows(results, exact)
    lines = [("subset", columns)]
    heading = None
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            lines.append((heading, []))
        lines.append((f"  {row.label}", [str(value) for value in row.values]))
    first = max(cell_len(label) for label, _ in lines)
    widths = [max(cell_len(cells[i]) for _, cells in lines if cells) for i in range(len(columns))]
    text = []
    for label, cells in lines:
        padded = [
            " " * (width - cell_len(cell)) + cell
            for width, cell in zip(widths, cells, strict=False)
        ]
        text.append("  ".join([label + " " * (first - cell_len(label)), *padded]).rstrip())
    text.insert(1, "-" * (first + sum(width + 2 for width in widths)))
    return "\n".join([*text, "", caption]) + "\n"


def _value(numbers: Mapping[str, Any] | None, measure: str) -> Value:
    if numbers is None:
        return Value(None)
    p = numbers.get("holm_p") if measure == "remid" else None
    return Value(
        numbers[measure], numbers.get(f"{measure}_error"), p is not None and p < SIGNIFICANT
    )


def _cells(numbers: Mapping[str, Any] | None, measure: str) -> dict[str, Any]:
    """A number with what says how sure it is, by the names of `CSV_COLUMNS`."""
    numbers = numbers or {}
    cells = {"value": numbers.get(measure), "standard_error": numbers.get(f"{measure}_error")}
    cells |= {end: numbers.get(f"{measure}_{end}") for end in ("low", "high")}
    return cells | (
        {name: numbers.get(name) for name in ("chance_of_loss", "holm_p")}
        if measure == "remid"
        else {}
    )


def _names(results: Mapping[str, Any]) -> tuple[str, str]:
    """(R-EMI, R-EMID), or without the R where no reasoning was shown."""
    without = results.get("reasoning", {}).get("kind") == "none"
    return ("EMI", "EMID") if without else ("R-EMI", "R-EMID")


def _label(results: Mapping[str, Any], subset: Mapping[str, Any]) -> str:
    notes = [note for note in (left_out_note(results, subset["row"]), subset.get("reason")) if note]
    return subset["subset"] + (f" ({'; '.join(notes)})" if notes else "")


def _average_label(results: Mapping[str, Any]) -> str:
    shifted = [subset for subset in results["subsets"] if subset["shift"] is not None]
    measured = [subset for subset in shifted if not subset.get("reason")]
    return (
        AVERAGE
        if len(measured) == len(shifted)
        else f"{AVERAGE} (of {len(measured)} of {len(shifted)})"
    )


def _heading(results: Mapping[str, Any], shift: str | None) -> str:
    emi, emid = _names(results)
    return f"in distribution, {emi} ↑" if shift is None else f"{SHIFTED[shift]}, {emid} ↓"


def _form(results: Mapping[str, Any]) -> str:
    form = results["form"]
    return form.upper() if form == "club" else form.replace("_", " ")


def _pairs(results: Mapping[str, Any]) -> str:
    negatives = results["negatives"]
    if negatives == "all":
        return "all mismatched pairs of each subset"
    if isinstance(negatives, Mapping):
        return f"up to {negatives['per_context']:,} mismatched pairs per context (seed {results['seed']})"
    return f"up to {negatives:,} mismatched pairs per subset (seed {results['seed']})"


def _reasoning(protocol: Mapping[str, Any]) -> str:
    return {
        "greedy": "one per context, greedy",
        "sampled": "one per context, sampled (seed {seed})",
        "marginal": "log mean over {samples} sampled per context (seed {seed})",
        "none": "none, q2(y | x)",
        "given": "one per context, given (SHA-256 {sha256})",
    }[protocol["kind"]].format(**protocol)


def _exact_average(model: str, exact: Exact, results: Mapping[str, Any]) -> float | None:
    shifted = [
        subset
        for subset in results["subsets"]
        if subset["shift"] is not None and not subset.get("reason")
    ]
    values = [exact.get((model, subset["row"])) for subset in shifted]
    return None if None in values else sum(values) / len(values)


def _check_exact(exact: Exact, results: Mapping[str, Any]) -> None:
    models, rows = results["models"], [subset["row"] for subset in results["subsets"]]
    for model, row in exact:
        if model not in models or row not in rows:
            raise DataError(
                f"exact values are given for model {model!r}, row {row!r}; accepted are the models "
                f"{', '.join(models)} and the rows {', '.join(rows)}."
            )


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    """`text` with what LaTeX reads as a command taken literally, and our signs as its symbols."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "*": "$^{*}$"}
    return "".join(special.get(character, character) for character in text)
