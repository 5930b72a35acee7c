"""An audit as tables for a terminal."""

from collections.abc import Sequence

import numpy as np
from rich import box

from coevolve.progress import PlainTable
from coevolve.worlds.audit import (
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
    "Nats per response. Scored by: the estimator; ideal, the world's exact p(y | x); own, a policy's exact p(y | x).\n"
    f"All responses have {RESPONSE_TOKENS} tokens: the published form, CLUB per token, is club / {RESPONSE_TOKENS}."
)
SHOWN_LOSSES = ("calibrated", "club")


def audit_tables(rows: Sequence[Row]) -> list[PlainTable]:
    """Mutual information; EMI by policy, and how it ranks them; EMID by shift, and how it is
    measured.

    Where no estimator was audited, the ideal one takes its place.
    """
    return [
        _information_table(rows),
        _emi_table(rows),
        _ranking_table(rows),
        _emid_table(rows),
        _loss_table(rows),
    ]


def _information_table(rows: Sequence[Row]) -> PlainTable:
    table = _table("Mutual information of golden responses, means over splits and seeds")
    sources = [
        source for source in _sources(rows) if source != "own"
    ]  # of golden responses that is the ideal one
    for heading in ("measure", "exact", *sources, *(f"{source} / exact" for source in sources)):
        _column(table, heading)
    found = {(row["measure"], row["source"]): row for row in information_agreement(rows)}
    for measure in MEASURES:
        of_source = [found[measure, source] for source in sources]
        estimates = [f"{row['estimate']:.2f}" for row in of_source]
        ratios = [f"{row['ratio']:.3f} ± {row['ratio_spread']:.3f}" for row in of_source]
        table.add_row(measure, f"{of_source[0]['exact']:.2f}", *estimates, *ratios)
    return table


def _emi_table(rows: Sequence[Row]) -> PlainTable:
    """Exact EMI, what the ideal golden estimator can read of it, and the estimates, by policy."""
    audited = _audited(rows)
    table = _table(f"EMI in distribution, by the {audited}, means over seeds")
    for heading in ("policy", "exact", "readable", *MEASURES):
        _column(table, heading)
    ours = [row for row in rows if row["split"] == IN_DISTRIBUTION and row["source"] == audited]
    readable_golden = _mean(
        [row for row in ours if row["policy"] == GOLDEN], "readable_information"
    )
    for policy in _policies(ours):
        chosen = [row for row in ours if row["policy"] == policy]
        readable = _mean(chosen, "readable_information") - readable_golden
        estimates = [
            _mean([row for row in chosen if row["measure"] == measure], "emi")
            for measure in MEASURES
        ]
        table.add_row(policy, *map(_signed, (_mean(chosen, "exact_emi"), readable, *estimates)))
    return table


def _ranking_table(rows: Sequence[Row]) -> PlainTable:
    table = _table(
        "How EMI ranks the policies: Spearman's correlation with the exact EMI, mean ± over seeds"
    )
    _column(table, "measure")
    kinds = {"same words": True, "all": False}
    found = {
        (kind, row["measure"], row["source"]): row
        for kind, same_code in kinds.items()
        for row in emi_agreement(rows, same_code=same_code)
    }
    counts = {
        kind: next(row["policies"] for key, row in found.items() if key[0] == kind)
        for kind in kinds
    }
    sources = _sources(rows)
    for kind in kinds:
        for source in sources:
            _column(table, f"{kind} ({counts[kind]}): {source}")
    _column(table, "off (same words)")
    for measure in MEASURES:
        cells = [found[kind, measure, source] for kind in kinds for source in sources]
        ranked = [
            _optional(row["spearman"], "{:.2f}", row["spearman_spread"], " ± {:.2f}")
            for row in cells
        ]
        table.add_row(measure, *ranked, f"{found['same words', measure, sources[0]]['off']:.2f}")
    return table


def _emid_table(rows: Sequence[Row]) -> PlainTable:
    audited = _audited(rows)
    table = _table(
        f"EMID by shift, exact | {' | '.join(SHOWN_LOSSES)}, by the {audited}, means over seeds"
    )
    ours = [row for row in rows if row["emid"] is not None and row["source"] == audited]
    shifts = list(dict.fromkeys(row["shift"] for row in ours))
    for heading in ("policy", *shifts):
        _column(table, heading)
    for policy in _policies(ours):
        cells = []
        for shift in shifts:
            chosen = [row for row in ours if (row["policy"], row["shift"]) == (policy, shift)]
            of_measure = [
                [row for row in chosen if row["measure"] == measure] for measure in SHOWN_LOSSES
            ]
            numbers = [
                _mean(chosen, "exact_emid"),
                *(_mean(of_one, "emid") for of_one in of_measure),
            ]
            cells.append(" | ".join(map(_signed, numbers)))
        table.add_row(policy, *cells)
    return table


def _loss_table(rows: Sequence[Row]) -> PlainTable:
    audited = _audited(rows)
    table = _table(
        f"How EMID is measured, by the {audited}; large: over {LEAST_LOSS} nats; sure: over 2 standard errors"
    )
    for heading in (
        "measure",
        "policies",
        "right sign, large",
        "right sign, sure",
        "Spearman",
        "Pearson",
        "slope",
        "off",
    ):
        _column(table, heading)
    for kind, same_code in {"same words": True, "all": False}.items():
        for row in emid_agreement(rows, same_code=same_code):
            if row["source"] == audited:
                signs = [
                    f"{_optional(row[share], '{:.2f}')} of {row[count]}"
                    for share, count in (("right", "large"), ("right_when_sure", "sure"))
                ]
                fits = [
                    _optional(row[name], "{:.2f}")
                    for name in ("spearman", "pearson", "slope", "off")
                ]
                table.add_row(row["measure"], kind, *signs, *fits)
    table.caption = LEGEND
    table.caption_justify = "left"
    return table


def _sources(rows: Sequence[Row]) -> list[str]:
    found = {row["source"] for row in rows}
    return [source for source in SOURCES if source in found]


def _audited(rows: Sequence[Row]) -> str:
    return _sources(rows)[0]


def _table(title: str) -> PlainTable:
    return PlainTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")


def _column(table: PlainTable, heading: str) -> None:
    table.add_column(heading.replace("_", " "), justify="right" if table.columns else "left")


def _policies(rows: Sequence[Row]) -> list[str]:
    return [name for name in dict.fromkeys(row["policy"] for row in rows) if name != GOLDEN]


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _signed(value: float) -> str:
    return f"{value:+z.2f}"


def _optional(value: float | None, form: str, *more: float | str | None) -> str:
    """`value` in its form and whatever follows in theirs, or that it is absent."""
    if value is None:
        return ABSENT
    pairs = zip((value, *more[::2]), (form, *more[1::2]), strict=True)
    return "".join(text.format(number) for number, text in pairs)
