"""The figures, narrow enough to be read on a phone; colours are told apart by the colour-blind, on
white and black.

Each is drawn once. In the files beside the page its greys suit a white and a black ground; in the
page its colours become variables of the style sheet, so that they follow the reader's light or dark
setting.
"""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coevolve.remid.bound import INPUT_TEXTS
from coevolve.remid.bound_results import BoundResults
from coevolve.remid.results import Exact, RemidResults
from coevolve.report.origin import measure_name
from coevolve.report.summary import losses
from coevolve.training.documents import Verdict

INK, FAINT, PALE = "#737b83", "#9aa1a8", "#b8bec4"
ACCENT, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
VARIABLES: Mapping[str, str] = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    ACCENT: "var(--accent)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PALE: "var(--pale)",
}
"""Colour in the files -> in the page."""
STYLE: Any = {  # matplotlib wants a dict of its own keys
    "font.size": 9,
    "axes.titlesize": 9,
    **{"axes.titlelocation": "left", "axes.titleweight": "bold"},
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.edgecolor": FAINT,
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **{"legend.frameon": False, "legend.fontsize": 8},
    "savefig.transparent": True,
    **{"svg.fonttype": "none", "svg.hashsalt": "coevolve"},
    "text.parse_math": False,
}
WIDTH = 4.6  # inches
TALLEST = 30000  # pixels
MARKERS = "osv^DPX*<>"
ROLES = ("connector", "estimator")
BREAKS = "A point for each line of metrics.jsonl; lines break between phases."
FEW_POINTS = 60
"""Of a curve, up to which each has room for a marker that can be told from others."""
LOOKS = ((ACCENT, "o"), (ORANGE, "s"), (GREEN, "^"), (FAINT, "v"))


@dataclass(frozen=True)
class Picture:
    """A figure, `name` being that of its files without the ending."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG for a page: no prolog, no metadata, ids of its own, the page's colours."""
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{self.name}-", text)
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, variable)
        label = f'<svg role="img" aria-labelledby="{self.name}-title" '
        return text.replace("<svg ", label, 1)


def remid_picture(remid: RemidResults, exact: Exact) -> Picture:
    """R-EMID per shift with intervals, a panel per model; the exact value where it is known."""
    with rc_context(STYLE):
        of_models = {model: losses(remid, model, exact) for model in remid.models}
        every = [loss for listed in of_models.values() for loss in listed]
        rows = len(every) // len(of_models)
        figure, panels = _panels(len(of_models), 0.45 + 0.24 * rows)
        for axes, (model, listed) in zip(panels, of_models.items(), strict=True):
            axes.set_title(model)
            axes.axvline(0, color=FAINT, linewidth=0.8)
            for y, loss in enumerate(listed):
                if loss.low is not None and loss.high is not None:
                    ends = [loss.low, loss.high]
                    axes.plot(ends, [y, y], color=ACCENT, linewidth=2, solid_capstyle="butt")
                axes.plot(loss.value, y, "o", color=ACCENT, markersize=6)
                if loss.exact is not None:
                    axes.plot(loss.exact, y, "D", color=INK, markersize=6, fillstyle="none")
            _name_rows(axes, [loss.name for loss in listed])
        panels[-1].set_xlabel(f"{remid.names[1]} by {measure_name(remid)}")
        caption = ["Dot: the estimate; further right is worse."]
        if remid.level is not None and any(loss.low is not None for loss in every):
            caption.append(f"Bar: its {remid.level:.0%} interval, not corrected for their number.")
        else:
            caption.append("No intervals: the results hold none.")
        if any(loss.exact is not None for loss in every):
            caption.append("Diamond: the exact value, known as the world is synthetic.")
        return _picture(figure, "remid", "What is lost under each shift", " ".join(caption))


def exact_pairs(remid: RemidResults, exact: Exact, model: str) -> list[tuple[float, float]]:
    """(exact, estimated) R-EMID of each shifted subset where both are known."""
    return [
        (exact[model, subset.row], numbers.remid)
        for subset in remid.shifted()
        if (numbers := subset.models[model]) is not None
        and numbers.remid is not None
        and (model, subset.row) in exact
    ]


def truth_picture(remid: RemidResults, exact: Exact) -> Picture:
    """R-EMID estimated against exact, a point per model and shifted subset with both."""
    with rc_context(STYLE):
        figure, (axes,) = _panels(1, 3.2)
        both: list[float] = []
        for marker, model in zip(MARKERS * len(remid.models), remid.models, strict=False):
            points = exact_pairs(remid, exact, model)
            if points:
                both += [number for point in points for number in point]
                label = f" {model}"  # a label that begins with _ is not shown
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker, color=ACCENT, fillstyle="none", label=label)
        ends = min(both), max(both)
        axes.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle="--")
        emid = remid.names[1]
        axes.set_xlabel(f"exact {emid}, {remid.unit}")
        axes.set_ylabel(f"{emid} by {measure_name(remid)}")
        axes.legend()
        caption = "One point per model and shift: exact on the dashed line, too large above."
        return _picture(figure, "truth", "The estimate against the truth", caption)


def bound_picture(bound: BoundResults) -> Picture:
    """The bound's terms stacked beside the measured R-EMID, a panel per model."""
    colours = (ACCENT, ORANGE, GREEN, FAINT, PALE)
    with rc_context(STYLE):
        figure, panels = _panels(len(bound.models), 0.55 + 0.3 * len(bound.subsets), above=0.45)
        for axes, model in zip(panels, bound.models, strict=True):
            axes.set_title(model)
            for y, row in enumerate(bound.subsets):
                terms, left = row.models[model].published, 0.0
                widths: dict[str, float] = {name: terms.inputs[name] for name in INPUT_TEXTS}
                widths |= {"output P": terms.output_p, "output Q": terms.output_q}
                for (name, width), colour in zip(widths.items(), colours, strict=True):
                    label = name if y == 0 and axes is panels[0] else None
                    axes.barh(y, width, left=left, color=colour, height=0.55, label=label)
                    left += width
                floor, remid = terms.noise_floor, row.models[model].remid
                axes.plot([floor, floor], [y - 0.4, y + 0.4], color=INK, linewidth=1.5)
                axes.plot(remid, y, "D", color=INK, markersize=6, fillstyle="none")
            _name_rows(axes, [row.row for row in bound.subsets])
        panels[-1].set_xlabel(bound.unit)
        tight = {"columnspacing": 0.8, "handlelength": 0.9, "handletextpad": 0.4}
        figure.legend(loc="outside upper left", ncols=5, **tight)
        caption = (
            "Stacked: the bound's terms, that is what shifted inputs (user, character, dialogue) "
            "and the model's own distance from the golden responses (output P: as usual, Q: "
            "shifted) can cost at worst. Line: the same bound if nothing had shifted, from noise "
            f"alone. Diamond: R-EMID as measured, by {measure_name(bound)}."
        )
        return _picture(figure, "bound", "How bad it can get, term by term", caption)


def gates_picture(gates: Sequence[Verdict]) -> Picture:
    """Held-out perplexity after every gated phase, and what was kept."""
    with rc_context(STYLE):
        figure, (axes,) = _panels(1, 2.6)
        steps = range(1, len(gates) + 1)
        in_use = [gate.after if gate.kept and gate.after else gate.before for gate in gates]
        current = [gates[0].before, *in_use]
        axes.step([0, *steps], current, where="post", color=ACCENT, linewidth=1.5)
        looks = ((True, "o", ACCENT, "kept"), (False, "x", ORANGE, "rolled back"))
        for kept, marker, colour, label in looks:
            points = [
                (step, gate.after)
                for step, gate in zip(steps, gates, strict=True)
                if gate.kept is kept and gate.after is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)
        axes.plot(0, gates[0].before, "s", color=INK, fillstyle="none", label="cold start")
        rounds: dict[int, int] = {}
        for step, gate in zip(steps, gates, strict=True):
            rounds.setdefault(gate.round, step)
        for start in rounds.values():
            axes.axvline(start - 0.5, color=PALE, linewidth=0.8)
        axes.set_xticks(list(rounds.values()), [f"round {number}" for number in rounds], ha="left")
        axes.set_ylabel("held-out perplexity")
        axes.legend()
        caption = (
            "A phase that makes it worse is rolled back. Lower is better; line: the pair in use."
        )
        return _picture(figure, "rounds", "Perplexity by round", caption)


def training_pictures(metrics: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """What the log has of rewards, losses and held-out perplexity, each against optimizer steps."""
    rows = [row for row in metrics if row.get("coevolve/round") is not None]  # not of baselines
    steps = {role: _steps(rows, role) for role in ROLES}
    both = [sum(counted) for counted in zip(*steps.values(), strict=True)]
    rewards = {role: _named(rows, rf"{role}/rewards/(\w+)/mean", steps[role]) for role in ROLES}
    losses = {role: _named(rows, rf"{role}/(loss)", steps[role]) for role in ROLES}
    held_out = _named(rows, "eval/(perplexity)/validation", both)
    pictures = [
        _curves(
            Look("rewards", "Rewards by step", "mean reward"),
            rewards,
            f"What is reinforced, before weighting. {BREAKS}",
        ),
        _curves(
            Look("losses", "Loss by step", "loss"),
            losses,
            f"What SFT and RL make smaller. {BREAKS}",
        ),
        _curves(
            Look("held-out", "Held-out perplexity by step", "perplexity"),
            {"connector and estimator": held_out},
            "Of golden responses to the held-out rows, after each phase. Lower is better.",
        ),
    ]
    return [picture for picture in pictures if picture]


@dataclass(frozen=True)
class Look:
    """Of a picture of curves: its name and title, and what its vertical axis is."""

    name: str
    title: str
    axis: str


Curves = Mapping[str, Sequence[Sequence[tuple[int, float]]]]
"""Name -> pieces of a line, phase by phase, of (step, value)."""


def _curves(look: Look, panels_of: Mapping[str, Curves], caption: str) -> Picture | None:
    """A panel for each role with anything in it; None where the log has nothing."""
    shown = {title: curves for title, curves in panels_of.items() if curves}
    if not shown:
        return None
    with rc_context(STYLE):
        figure, panels = _panels(len(shown), 1.9, shared=False)
        for axes, (title, curves) in zip(panels, shown.items(), strict=True):
            axes.set_title(title)
            looks = itertools.cycle(LOOKS)
            for (name, pieces), (colour, marker) in zip(curves.items(), looks, strict=False):
                size = 4 if sum(map(len, pieces)) <= FEW_POINTS else 1.5
                for number, points in enumerate(pieces):
                    label = name if number == 0 else None
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, color=colour, marker=marker, markersize=size, label=label)
            axes.set_ylabel(look.axis)
            last = max(x for pieces in curves.values() for points in pieces for x, _ in points)
            axes.set_xlim(0, 1.03 * max(last, 1))
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            if look.axis == "mean reward":
                lowest, highest = axes.get_ylim()  # log-probabilities and scores may lie below 0
                axes.set_ylim(min(0, lowest), max(0, 1.05 * highest))
            axes.set_xlabel("optimizer step")
            if len(curves) > 1:
                axes.legend(loc="best")
        return _picture(figure, look.name, look.title, caption)


def _steps(rows: Sequence[Mapping[str, Any]], role: str) -> list[int]:
    """Of each row, the optimizer steps of the role up to it, over all phases."""
    before, last, phase, counted = 0, 0, None, []
    for row in rows:
        step, now = row.get(f"{role}/phase_step"), _phase(row)
        if isinstance(step, int):
            if now != phase or step <= last:  # a phase may have several parts
                before, phase = before + last, now
            last = step
        counted.append(before + last)
    return counted


def _phase(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("coevolve/round"), row.get("coevolve/phase")


def _named(
    rows: Sequence[Mapping[str, Any]], pattern: str, steps: Sequence[int]
) -> dict[str, list[list[tuple[int, float]]]]:
    """The curves of the figures whose whole name is the pattern, by its group."""
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    phases: dict[str, tuple[Any, Any]] = {}
    for row, step in zip(rows, steps, strict=True):
        phase = _phase(row)
        for key, value in row.items():
            if value is None or not (found := re.fullmatch(pattern, key)):
                continue
            pieces = curves.setdefault(found[1], [])
            if not pieces or (phases[found[1]] != phase and found[1] != "perplexity"):
                pieces.append([])
            phases[found[1]] = phase
            pieces[-1].append((step, value))
    return curves


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names on the vertical axis, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _panels(
    count: int, height: float, *, above: float = 0.0, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    """Panels of that height in inches, one below the other, sharing the horizontal axis or not."""
    figure = Figure(figsize=(WIDTH, count * height + 0.35 + above), layout="constrained")
    return figure, list(figure.subplots(count, 1, sharex=shared, squeeze=False)[:, 0])


def _picture(figure: Figure, name: str, title: str, caption: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    # Matplotlib draws no more than 65,535 pixels in a row.
    figure.savefig(png, format="png", dpi=min(200, TALLEST / figure.get_size_inches()[1]))
    return Picture(name, title, caption, svg.getvalue(), png.getvalue())
