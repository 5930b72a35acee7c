"""The page: tables, pictures and examples in one HTML file that needs no network and no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from coevolve.files import write_file
from coevolve.information.agreement import spearman
from coevolve.remid.bound import INPUT_TEXTS
from coevolve.remid.table import (
    Exact,
    Value,
    difference_caption,
    difference_rows,
    remid_caption,
    remid_rows,
)
from coevolve.remid.unanswered import row_label, unanswered_line
from coevolve.report.contents import Contents
from coevolve.report.figures import (
    Picture,
    bound_picture,
    gates_picture,
    remid_picture,
    rewards_picture,
    truth_picture,
)
from coevolve.report.summary import cards, judged, scale, size_warning

WORST_SHOWN, BEST_SHOWN = 2, 1
"""Examples at either end of each subset: enough to see what goes wrong, few enough to scroll past.
"""
FULL_COLOUR = 0.9
"""Quantile of the tokens' contributions, by size, that has the full colour: a few extreme ones
would pale the rest.
"""


@dataclass(frozen=True)
class Block:
    """Rows of a table under a heading of their own (empty: none)."""

    heading: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        columns: their headings; the first column names the rows.
        caption: what the numbers are, a line each.
    """

    columns: Sequence[str]
    blocks: Sequence[Block]
    caption: Sequence[str]


@dataclass(frozen=True)
class Token:
    """A token of the heat map: `share` from -1 (likelier elsewhere) to 1 (says most of its
    context).
    """

    text: str
    contribution: float
    share: float


def write_report(contents: Contents, folder: str | Path) -> list[Path]:
    """Write `report.html`, and its figures as SVG and PNG in `report/`; returns what was written,
    the page first.
    """
    folder = Path(folder)
    pictures = make_pictures(contents)
    written = [folder / "report.html"]
    for picture in pictures.values():
        stem = folder / "report" / picture.name
        for path, content in (
            (stem.with_suffix(".svg"), picture.svg),
            (stem.with_suffix(".png"), picture.png),
        ):
            write_file(path, content)
            written.append(path)
    write_file(written[0], render(contents, pictures))
    return written


def make_pictures(contents: Contents) -> dict[str, Picture]:
    """The figures that the contents are enough for, by name."""
    remid, pictures = contents.remid, []
    if remid and remid["average"]:
        pictures.append(remid_picture(remid, contents.exact))
        if _exact_pairs(remid, contents.exact):
            pictures.append(truth_picture(remid, contents.exact))
    if contents.bound:
        pictures.append(bound_picture(contents.bound))
    if contents.run and contents.run["gates"]:
        pictures.append(gates_picture(contents.run["gates"]))
    pictures.append(rewards_picture(contents.metrics))
    return {picture.name: picture for picture in pictures if picture}


def render(contents: Contents, pictures: Mapping[str, Picture]) -> str:
    """The page's HTML. Whatever comes from the results is escaped."""
    environment = Environment(
        loader=PackageLoader("coevolve.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    remid, run, bound = contents.remid, contents.run, contents.bound
    found = cards(remid, contents.exact) if remid else []
    return environment.get_template("page.html").render(
        pictures=pictures,
        remid=remid,
        judged=judged(remid) if remid else None,
        cards=found,
        scale=scale(remid) if found else None,
        size_warning=size_warning(remid, found) if found else None,
        level=f"{remid['level']:.0%} interval" if remid and "level" in remid else None,
        remid_grids=remid_grids(remid, contents.exact) if remid else [],
        agreement=_agreement(remid, contents) if remid else None,
        bound_grids=[shift_grid(bound), *(bound_grid(bound, model) for model in bound["models"])]
        if bound
        else [],
        perplexity=perplexity_grid(run) if run and run["perplexity"] else None,
        gates=gates_grid(run["gates"]) if run and run["gates"] else None,
        blame=contents.blame,
        examples=heat_maps(contents.blame) if contents.blame else [],
        worst_shown=WORST_SHOWN,
        best_shown=BEST_SHOWN,
    )


def remid_grids(remid: Mapping[str, Any], exact: Exact) -> list[Grid]:
    """The result table of the main measure, then of those beside it, then the models' paired
    differences.
    """
    main = _remid_grid(remid, exact, remid_caption(remid).splitlines())
    grids = [main]
    for measured in remid.get("beside", ()):
        numbers = {row["row"]: row for row in measured["subsets"]}
        subsets = [{**row, **numbers.get(row["row"], {})} for row in remid["subsets"]]
        part = {**remid, **measured, "subsets": subsets}
        # What is said below the first table holds for all, but for the unit in its first line.
        grids.append(_remid_grid(part, {}, remid_caption(part).splitlines()[:1]))
    differences = difference_rows(remid)
    if differences:
        columns = ["models", "in distribution, R-EMI", "mean R-EMID"]
        grids.append(Grid(columns, [Block("", differences)], [difference_caption(remid)]))
    return grids


def _remid_grid(remid: Mapping[str, Any], exact: Exact, caption: Sequence[str]) -> Grid:
    """A column per model; its exact values stand below the estimates."""
    _, rows = remid_rows(remid, exact)
    known = {model for model, _ in exact}
    blocks: dict[str, list[list[str]]] = {}
    for row in rows:
        values = iter(row.values)
        cells = []
        for model in remid["models"]:
            cells.append(_value_cell(next(values)))
            if model in known:
                cells[-1] += f"\nexact {_value_cell(next(values))}"
        blocks.setdefault(row.heading, []).append([row.label, *cells])
    return Grid(
        ["subset", *remid["models"]],
        [Block(heading, listed) for heading, listed in blocks.items()],
        caption,
    )


def _value_cell(value: Value) -> str:
    return "not known" if value.number is None else str(value)


def shift_grid(bound: Mapping[str, Any]) -> Grid:
    """How far each input shifted, beside what noise alone gives, and which one is to blame."""
    rows = []
    for row in bound["subsets"]:
        first = row["blame"][0]
        blamed = (
            "nothing above the noise"
            if first["share"] is None
            else f"{first['input']} ({first['share']:.0%})"
        )
        found = [row["inputs"][name] for name in INPUT_TEXTS]
        label = row_label(bound, row["row"])
        rows.append([label, *(f"{one['jsd']:.4f} ({one['floor']:.4f})" for one in found), blamed])
    caption = [
        "How far texts are from the usual ones: JSD in nats, in brackets what noise alone gives."
    ]
    unanswered = unanswered_line(bound)
    if unanswered:
        caption.append(unanswered)
    return Grid(["subset", *INPUT_TEXTS, "to blame"], [Block("", rows)], caption)


def bound_grid(bound: Mapping[str, Any], model: str) -> Grid:
    """A model's bound, its terms, and the measured R-EMID."""
    rows = []
    for row in bound["subsets"]:
        found = row["models"][model]
        terms = found["published"]
        numbers = [
            *(terms["inputs"][name] for name in INPUT_TEXTS),
            terms["output_p"],
            terms["output_q"],
        ]
        total = f"{terms['total']:.2f} ({terms['noise_floor']:.2f})"
        cells = [*(f"{number:.2f}" for number in numbers), total, f"{found['remid']:+z.3f}"]
        rows.append([row_label(bound, row["row"]), *cells])
    columns = ["subset", *INPUT_TEXTS, "output P", "output Q", "bound", "R-EMID"]
    return Grid(
        columns,
        [Block(model, rows)],
        ["Nats per response; in brackets the bound if nothing had shifted."],
    )


def perplexity_grid(run: Mapping[str, Any]) -> Grid:
    """Perplexities, then the ratios to them, by split."""
    values, ratios = run["perplexity"], run["ratio"]
    splits = list(dict.fromkeys(split for by_split in values.values() for split in by_split))

    def line(name: str, by_split: Mapping[str, Any]) -> list[str]:
        return [name, *(_perplexity_cell(by_split.get(split)) for split in splits)]

    return Grid(
        ["", *splits],
        [
            Block("perplexity ↓", [line(*item) for item in values.items()]),
            *(
                [Block("ratio ↓, ± standard error", [line(*item) for item in ratios.items()])]
                if ratios
                else []
            ),
        ],
        [
            "Perplexity of golden responses: how many tokens (words or pieces of them) the model wavers between. "
            "Lower is better.",
            " ".join(
                f"{name}: {meaning}." for name, meaning in _VARIANTS.items() if name in values
            ),
        ],
    )


_VARIANTS = {
    "full": "the co-evolved pair",
    "without_corl": "without reinforcement learning",
    "without_reasoning": "q2(y | x)",
    "oracle": "shown the teacher's own features of the response",
    "floor": "the best that any model can do, exact",
}


def _perplexity_cell(value: Any) -> str:
    if value is None:
        return "not measured"
    return (
        f"{value:.3f}"
        if isinstance(value, float)
        else f"{value['ratio']:.3f} ± {value['standard_error']:.3f}"
    )


def gates_grid(gates: Sequence[Mapping[str, Any]]) -> Grid:
    """The gate's verdict on every phase."""
    rows = [
        [
            f"{gate['round']}, {gate['phase']}",
            f"{gate['before']:.3f}",
            "beyond all numbers" if gate["after"] is None else f"{gate['after']:.3f}",
            {True: "kept", False: "rolled back", None: "on probation"}[gate["kept"]],
        ]
        for gate in gates
    ]
    return Grid(["round, phase", "before", "after", "verdict"], [Block("", rows)], [])


def heat_maps(blame: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per subset and model {row, model, measure, loss, examples}, the largest R-EMID first; tokens
    as `Token`s.

    In distribution the loss is -R-EMI, which does not compare with R-EMID, so these come last.
    """
    found = []
    for subset in blame["subsets"]:
        for model, of_model in subset["models"].items():
            worst, best = of_model["worst"][:WORST_SHOWN], of_model["best"][:BEST_SHOWN]
            ids = {example["sample_ID"] for example in worst}
            shown = [("worst", example) for example in worst]
            shown += [("best", example) for example in best if example["sample_ID"] not in ids]
            sizes = [
                abs(token["contribution"])
                for _, example in shown
                for token in (*example["tokens"], *example["golden_tokens"])
            ]
            full = float(np.quantile(sizes, FULL_COLOUR)) or 1.0
            examples = [
                {
                    **{
                        name: example[name]
                        for name in ("sample_ID", "loss", "user_persona", "last_turn")
                    },
                    "end": end,
                    "agent_character": _character(example["agent_character"]),
                    "tokens": _tokens(example["tokens"], full),
                    "golden_tokens": _tokens(example["golden_tokens"], full),
                }
                for end, example in shown
            ]
            found.append(
                {
                    "row": subset["row"],
                    "model": model,
                    "measure": "-R-EMI" if subset["shift"] is None else "R-EMID",
                    "loss": of_model["loss"],
                    "examples": examples,
                }
            )
    return sorted(found, key=lambda group: (group["measure"] != "R-EMID", -group["loss"]))


def _tokens(tokens: Sequence[Mapping[str, Any]], full: float) -> list[Token]:
    return [
        Token(
            token["text"].replace("\n", "↵"),
            token["contribution"],
            max(-1.0, min(1.0, token["contribution"] / full)),
        )
        for token in tokens
    ]


def _character(character: Any) -> str:
    if isinstance(character, Mapping):
        return "; ".join(f"{name}: {value}" for name, value in character.items())
    return str(character)


def _exact_pairs(remid: Mapping[str, Any], exact: Exact) -> list[tuple[float, float]]:
    """(exact, estimated) R-EMID wherever both are known."""
    return [
        (exact[model, subset["row"]], subset["models"][model]["remid"])
        for subset in remid["subsets"]
        if subset["shift"] is not None and not subset.get("reason")
        for model in remid["models"]
        if (model, subset["row"]) in exact
    ]


def _agreement(remid: Mapping[str, Any], contents: Contents) -> str | None:
    pairs = _exact_pairs(remid, contents.exact)
    if len(pairs) < 3:
        return None
    rank = spearman(*zip(*pairs, strict=True))
    error = float(np.mean([abs(estimated - true) for true, estimated in pairs]))
    ranks = (
        "no rank correlation, for one side does not vary"
        if rank is None
        else f"rank correlation {rank:.2f}"
    )
    return f"Over {len(pairs)} pairs: {ranks}; off by {error:.3f} {remid['unit']} on average."


def _breakable(text: str) -> Markup:
    """Escaped, with places where a long name may break."""
    return Markup(escape(text).replace("_", Markup("_<wbr>")).replace("/", Markup("/<wbr>")))
