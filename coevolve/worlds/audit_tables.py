"""An audit as tables for a terminal."""

from collections.abc import Iterable, Sequence

import numpy as np
from rich import box

from coevolve.progress import PlainTable
from coevolve.worlds.audit import (
    BEST,
    GOLDEN,
    IN_DISTRIBUTION,
    LEAST_LOSS,
    MEASURES,
    SOURCES,
    Row,
    emi_agreement,
    emid_agreement,
    information_agreement,
)
from coevolve.worlds.truth import RESPONSE_TOKENS

ABSENT = "-"
LEGEND = (
    "Nats per response. Scored by: the estimator; ideal, the world's exact p(y | x); own, a "
    "policy's exact p(y | x).\n"
    f"All responses have {RESPONSE_TOKENS} tokens: the published form, CLUB per token, is club / "
    f"{RESPONSE_TOKENS}."
)
SHOWN_LOSSES = ("calibrated", "club")
KINDS = {"same words": True, "all": False}


def audit_tables(rows: Sequence[Row]) -> list[PlainTable]:
    """Mutual information; EMI by policy, and how it ranks them; EMID by shift, and how it is
    measured.

    Where no estimator was audited, the ideal one takes its place.
    """
    makers = [_information_table, _emi_table, _ranking_table]
    if any(row["emid"] is not None for row in rows):
        makers += [_emid_table, _loss_table]
    if BEST in _sources(rows):
        makers.append(_reader_table)
    return [make(rows) for make in makers]


def _information_table(rows: Sequence[Row]) -> PlainTable:
    # Of golden responses `own` is the ideal one.
    sources = [source for source in _sources(rows) if source != "own"]
    found = {(row["measure"], row["source"]): row for row in information_agreement(rows)}
    lines = []
    for measure in MEASURES:
        of_source = [found[measure, source] for source in sources]
        estimates = [f"{row['estimate']:.2f}" for row in of_source]
        ratios = [f"{row['ratio']:.3f} ± {row['ratio_spread']:.3f}" for row in of_source]
        lines.append((measure, f"{of_source[0]['exact']:.2f}", *estimates, *ratios))
    return _table(
        "Mutual information of golden responses, means over splits and seeds",
        ("measure", "exact", *sources, *(f"{source} / exact" for source in sources)),
        lines,
    )


def _emi_table(rows: Sequence[Row]) -> PlainTable:
    """Exact EMI, what the ideal golden estimator can read of it, and the estimates, by policy."""
    audited, readable = _sources(rows)[0], "readable_information"
    ours = _of(rows, split=IN_DISTRIBUTION, source=audited)
    golden = _mean(_of(ours, policy=GOLDEN), readable)
    lines = []
    for policy in _policies(ours):
        chosen = _of(ours, policy=policy)
        values = [_mean(chosen, "exact_emi"), _mean(chosen, readable) - golden]
        values += [_mean(_of(chosen, measure=measure), "emi") for measure in MEASURES]
        lines.append((policy, *map(_signed, values)))
    title = f"EMI in distribution, by the {audited}, means over seeds"
    return _table(title, ("policy", "exact", "readable", *MEASURES), lines)


def _ranking_table(rows: Sequence[Row]) -> PlainTable:
    found = {
        (kind, row["measure"], row["source"]): row
        for kind, same_code in KINDS.items()
        for row in emi_agreement(rows, same_code=same_code)
    }
    sources = _sources(rows)
    columns = [(kind, source) for kind in KINDS for source in sources]
    lines = []
    for measure in MEASURES:
        cells = [found[kind, measure, source] for kind, source in columns]
        ranked = [
            ABSENT if x["spearman"] is None else f"{x['spearman']:.2f} ± {x['spearman_spread']:.2f}"
            for x in cells
        ]
        lines.append((measure, *ranked, f"{cells[0]['off']:.2f}"))
    counts = {kind: found[kind, MEASURES[0], sources[0]]["policies"] for kind in KINDS}
    return _table(
        "How EMI ranks the policies: Spearman's correlation with the exact EMI, mean ± over seeds",
        ("measure", *(f"{k} ({counts[k]}): {source}" for k, source in columns), "off (same words)"),
        lines,
    )


def _emid_table(rows: Sequence[Row]) -> PlainTable:
    audited = _sources(rows)[0]
    ours = [row for row in _of(rows, source=audited) if row["emid"] is not None]
    shifts = list(dict.fromkeys(row["shift"] for row in ours))
    lines = []
    for policy in _policies(ours):
        cells = []
        for shift in shifts:
            chosen = _of(ours, policy=policy, shift=shift)
            values = [_mean(chosen, "exact_emid")]
            values += [_mean(_of(chosen, measure=measure), "emid") for measure in SHOWN_LOSSES]
            cells.append(" | ".join(map(_signed, values)))
        lines.append((policy, *cells))
    title = f"EMID by shift, exact | {' | '.join(SHOWN_LOSSES)}, by the {audited}, means over seeds"
    return _table(title, ("policy", *shifts), lines)


def _loss_table(rows: Sequence[Row]) -> PlainTable:
    audited = _sources(rows)[0]
    lines = [
        (
            row["measure"],
            kind,
            f"{_optional(row['right'])} of {row['large']}",
            f"{_optional(row['right_when_sure'])} of {row['sure']}",
            *(_optional(row[name]) for name in ("spearman", "pearson", "slope", "off")),
        )
        for kind, same_code in KINDS.items()
        for row in _of(emid_agreement(rows, same_code=same_code), source=audited)
    ]
    signs = ("right sign, large", "right sign, sure")
    table = _table(
        f"How EMID is measured, by the {audited}; large: over {LEAST_LOSS} nats; sure: over 2 "
        "standard errors",
        ("measure", "policies", *signs, "Spearman", "Pearson", "slope", "off"),
        lines,
    )
    table.caption, table.caption_justify = LEGEND, "left"
    return table


def _reader_table(rows: Sequence[Row]) -> PlainTable:
    """What the choice of a reader is worth, by the calibrated measure."""
    chosen, lines = _of(rows, measure="calibrated"), []
    something_else = [row for row in chosen if not row["same_code"]]
    for source in _sources(rows):
        cells = []
        for same_code in KINDS.values():
            of_kind = emi_agreement(chosen, same_code=same_code)
            found = next(row for row in of_kind if row["source"] == source)
            cells += [_optional(found["spearman"]), _optional(found["off"])]
        losses = _of(emid_agreement(something_else, same_code=False), source=source)
        slope = losses[0]["slope"] if losses else None
        lines.append((source, *cells, _optional(slope)))
    columns = [f"{of_kind}: {what}" for of_kind in KINDS for what in ("Spearman", "off")]
    return _table(
        "EMI in distribution by reader, calibrated; EMID of those that say something else",
        ("read by", *columns, "something else: slope of EMID"),
        lines,
    )


def _table(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> PlainTable:
    table = PlainTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, heading in enumerate(columns):
        table.add_column(heading.replace("_", " "), justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    return table


def _of(rows: Sequence[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _sources(rows: Sequence[Row]) -> list[str]:
    """The sources there are; the first is the one that is audited."""
    found = {row["source"] for row in rows}
    return [source for source in SOURCES if source in found]


def _policies(rows: Sequence[Row]) -> list[str]:
    return [name for name in dict.fromkeys(row["policy"] for row in rows) if name != GOLDEN]


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _signed(value: float) -> str:
    return f"{value:+z.2f}"


def _optional(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
