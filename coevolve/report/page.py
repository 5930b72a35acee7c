"""The page: tables, pictures and examples in one HTML file that needs no network and no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from coevolve.compare.tables import compare_grids
from coevolve.files import write_file
from coevolve.information.agreement import spearman
from coevolve.remid.bound import bound_grid, shift_grid
from coevolve.remid.bound_results import ShownExample, Token
from coevolve.remid.grid import Block, Grid
from coevolve.remid.results import Exact, RemidResults, names_of
from coevolve.remid.table import MARK, difference_grid, reader_grid, remid_grids
from coevolve.report.contents import Contents
from coevolve.report.figures import (
    Picture,
    bound_picture,
    exact_pairs,
    gates_picture,
    remid_picture,
    training_pictures,
    truth_picture,
)
from coevolve.report.origin import facts, measure_name, odds, same_measure
from coevolve.report.summary import cards, judged, scale, size_warning
from coevolve.training.documents import RunResults, Verdict

WORST_SHOWN, BEST_SHOWN = 2, 1
"""Examples at either end of each subset: enough to see what goes wrong, few enough to scroll past.
"""
FULL_COLOUR = 0.9
"""Quantile of the contributions, by size, at which colour is full: extremes would pale the rest."""


@dataclass(frozen=True)
class Shade:
    """A token of the heat map: `share` from -1 (likelier elsewhere) to 1 (says most of context)."""

    text: str
    contribution: float
    share: float


@dataclass(frozen=True)
class HeatMap:
    """An example with its tokens shaded; `end` is `worst` or `best`."""

    end: str
    example: ShownExample
    tokens: Sequence[Shade]
    golden_tokens: Sequence[Shade]

    @property
    def character(self) -> str:
        character = self.example.agent_character
        if isinstance(character, str):
            return character
        return "; ".join(f"{name}: {value}" for name, value in character.items())


@dataclass(frozen=True)
class HeatMaps:
    """The examples shown of a model on a subset, what it loses there, in words, and their unit."""

    row: str
    model: str
    loss: str
    unit: str
    examples: Sequence[HeatMap]


def write_report(contents: Contents, folder: str | Path) -> list[Path]:
    """Write `report.html` and its figures in `report/`; returns their paths, the page first."""
    page, pictures = Path(folder) / "report.html", make_pictures(contents)
    written: dict[Path, str | bytes] = {}
    for picture in pictures.values():
        stem = page.with_suffix("") / picture.name
        written |= {stem.with_suffix(".svg"): picture.svg, stem.with_suffix(".png"): picture.png}
    for path, content in written.items():
        write_file(path, content)
    write_file(page, render(contents, pictures))
    return [page, *written]


def make_pictures(contents: Contents) -> dict[str, Picture]:
    """The figures that the contents are enough for, by name."""
    remid, exact = contents.remid, contents.exact
    pictures: list[Picture] = []
    if remid and remid.average:
        pictures.append(remid_picture(remid, exact))
        if _pairs(remid, exact):
            pictures.append(truth_picture(remid, exact))
    if contents.bound:
        pictures.append(bound_picture(contents.bound))
    if contents.run and contents.run.gates:
        pictures.append(gates_picture(contents.run.gates))
    pictures += training_pictures(contents.metrics)
    return {picture.name: picture for picture in pictures}


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
    environment.tests["longer_than"] = _is_longer
    remid, run, bound = contents.remid, contents.run, contents.bound
    found = facts(contents)
    losers, grids = cards(remid, contents.exact) if remid else [], []
    if remid:
        grids = remid_grids(remid, contents.exact, exact_below=True)
        titles = [f"{' and '.join(x.names)} by {measure_name(x)}" for x in remid.by_measure()]
        grids = [replace(grid, title=x) for grid, x in zip(grids, titles, strict=True)]
        between = f"Differences between models in {titles[0]}"
        grids += [replace(grid, title="Who read the responses") for grid in reader_grid(remid)]
        grids += [replace(grid, title=between) for grid in difference_grid(remid)]
    return environment.get_template("page.html").render(
        pictures=pictures,
        remid=remid,
        judged=remid and judged(remid),
        cards=losers,
        scale=remid and scale(remid),
        size_warning=remid and size_warning(remid, losers),
        level=f"{remid.level:.0%} interval" if remid and remid.level else None,
        compare_grids=compare_grids(contents.compare) if contents.compare else [],
        remid_grids=grids,
        agreement=remid and _agreement(remid, contents.exact),
        bound_grids=[shift_grid(bound), *(bound_grid(bound, x) for x in bound.models)]
        if bound
        else [],
        perplexity=perplexity_grid(run) if run and run.perplexity else None,
        gates=gates_grid(run.gates) if run and run.gates else None,
        blame=contents.blame,
        measure=remid and measure_name(remid),
        names=names_of(first.reasoning if (first := remid or bound) else None),
        examples=heat_maps(contents),
        title=f"{found['recipe']}: report" if "recipe" in found else "R-EMID report",
        facts=list(found.items()),
        odds=odds(contents),
        worst_shown=WORST_SHOWN,
        best_shown=BEST_SHOWN,
    )


def perplexity_grid(run: RunResults) -> Grid:
    """Perplexities, then the ratios to them, by split."""
    splits = list(dict.fromkeys(split for of in run.perplexity.values() for split in of))
    perplexities = {
        name: {split: f"{value:.3f}" for split, value in of.items()}
        for name, of in run.perplexity.items()
    }
    ratios = {
        name: {split: f"{one.ratio:.3f} ± {one.standard_error:.3f}" for split, one in of.items()}
        for name, of in run.ratio.items()
    }
    tables = {"perplexity ↓": perplexities, "ratio ↓, ± standard error": ratios}
    blocks = []
    for heading, of_all in tables.items():
        rows = [[name, *(of.get(x, "not measured") for x in splits)] for name, of in of_all.items()]
        blocks += [Block(heading, rows)] if rows else []
    meanings = [f"{name}: {text}." for name, text in _VARIANTS.items() if name in run.perplexity]
    caption = [
        "Perplexity of golden responses: how many tokens (words or pieces of them) the model "
        "wavers between. Lower is better.",
        " ".join(meanings),
    ]
    if run.form is not None:
        caption.append(f"The exported estimator's reasoning: {run.form.form()}.")
    return Grid(["model", *splits], blocks, caption)


_VARIANTS = {
    "full": "the co-evolved pair",
    "full_none": "the pair without reasoning",
    "full_mixture": "the pair, one greedy reasoning and none mixed",
    "without_corl": "without reinforcement learning",
    "without_reasoning": "q2(y | x)",
    "oracle": "shown the teacher's own features of the response",
    "floor": "the best that any model can do, exact",
}


def gates_grid(gates: Sequence[Verdict]) -> Grid:
    """The gate's verdict on every phase."""
    rows = [
        [
            f"{gate.round}, {gate.phase}",
            f"{gate.before:.3f}",
            "beyond all numbers" if gate.after is None else f"{gate.after:.3f}",
            {True: "kept", False: "rolled back", None: "on probation"}[gate.kept],
        ]
        for gate in gates
    ]
    return Grid(["round, phase", "before", "after", "verdict"], [Block("", rows)])


def heat_maps(contents: Contents) -> list[HeatMaps]:
    """Per subset and model the examples at either end, the largest R-EMID first.

    In distribution the loss is -R-EMI, which does not compare with R-EMID, so these come last.
    """
    blame, remid = contents.blame, contents.remid
    if blame is None:
        return []
    marks = remid.told_losses() if remid and same_measure(contents) else set()
    emi, emid = names_of(blame.reasoning)
    maps = []
    for subset in blame.subsets:
        measure = f"-{emi}" if subset.shift is None else emid
        for model, of_model in subset.models.items():
            worst = of_model.worst[:WORST_SHOWN]
            ids = {example.sample_ID for example in worst}
            best = [one for one in of_model.best[:BEST_SHOWN] if one.sample_ID not in ids]
            shown = [*(("worst", one) for one in worst), *(("best", one) for one in best)]
            sizes = [
                abs(t.contribution) for _, one in shown for t in (*one.tokens, *one.golden_tokens)
            ]
            full = float(np.quantile(sizes, FULL_COLOUR)) or 1.0
            examples = [
                HeatMap(end, one, _shades(one.tokens, full), _shades(one.golden_tokens, full))
                for end, one in shown
            ]
            mark = MARK * ((model, subset.row) in marks)
            loss = f"{measure} {of_model.loss:+z.3f}{mark}, by {measure_name(blame)}"
            order = (subset.shift is None, -of_model.loss)
            maps.append((order, HeatMaps(subset.row, model, loss, blame.unit, examples)))
    return [heat for _, heat in sorted(maps, key=lambda found: found[0])]


def _shades(tokens: Sequence[Token], full: float) -> list[Shade]:
    shades = []
    for token in tokens:
        share = max(-1.0, min(1.0, token.contribution / full))
        shades.append(Shade(token.text.replace("\n", "↵"), token.contribution, share))
    return shades


def _pairs(remid: RemidResults, exact: Exact) -> list[tuple[float, float]]:
    """(exact, estimated) R-EMID wherever both are known."""
    return [pair for model in remid.models for pair in exact_pairs(remid, exact, model)]


def _agreement(remid: RemidResults, exact: Exact) -> str | None:
    pairs = _pairs(remid, exact)
    if len(pairs) < 3:
        return None
    true, estimated = np.array(pairs).T
    rank, error = spearman(true, estimated), float(np.abs(estimated - true).mean())
    none = "no rank correlation, for one side does not vary"
    ranks = none if rank is None else f"rank correlation {rank:.2f}"
    return f"Over {len(pairs)} pairs: {ranks}; off by {error:.3f} {remid.unit} on average."


def _is_longer(grid: Grid, characters: int) -> bool:
    """Whether the rows of a table are longer than so many characters."""
    rows = [grid.columns, *(row for block in grid.blocks for row in block.rows)]
    columns = zip(*rows, strict=True)
    widths = [max(len(x) for x in "\n".join(cells).split("\n")) for cells in columns]
    return sum(widths) + 2 * len(widths) > characters


def _breakable(text: str) -> Markup:
    """Escaped, with places where a long name may break."""
    return Markup(escape(text).replace("_", Markup("_<wbr>")).replace("/", Markup("/<wbr>")))
