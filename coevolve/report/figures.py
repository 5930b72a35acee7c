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

from coevolve.remid.bound import INPUT_TEXTS
from coevolve.remid.bound_results import BoundResults
from coevolve.remid.results import Exact, RemidResults
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
        panels[-1].set_xlabel(f"R-EMID, {remid.unit}")
        caption = ["Dot: the estimate; further right is worse."]
        if remid.level is not None and any(loss.low is not None for loss in every):
            caption.append(f"Bar: its {remid.level:.0%} interval.")
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
        axes.set_xlabel(f"exact R-EMID, {remid.unit}")
        axes.set_ylabel("estimated R-EMID")
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
        panels[-1].set_xlabel("nats per response")
        tight = {"columnspacing": 0.8, "handlelength": 0.9, "handletextpad": 0.4}
        figure.legend(loc="outside upper left", ncols=5, **tight)
        caption = (
            "Stacked: the bound's terms, that is what shifted inputs (user, character, dialogue) "
            "and the model's own distance from the golden responses (output P: as usual, Q: "
            "shifted) can cost at worst. Line: the same bound if nothing had shifted, from noise "
            "alone. Diamond: R-EMID as measured."
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


def rewards_picture(metrics: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Mean rewards by step, a panel per role; None where the log has none."""
    pattern = re.compile(r"(connector|estimator)/rewards/(\w+)/mean")
    names = {key: hit.groups() for row in metrics for key in row if (hit := pattern.fullmatch(key))}
    roles = sorted({role for role, _ in names.values()})
    if not roles:
        return None
    with rc_context(STYLE):
        figure, panels = _panels(len(roles), 1.9)
        for axes, role in zip(panels, roles, strict=True):
            axes.set_title(role)
            parts = [key for key, (of, _) in names.items() if of == role]
            for key, (colour, marker) in zip(parts, itertools.cycle(LOOKS), strict=False):
                for number, points in enumerate(_by_round(metrics, key)):
                    label = names[key][1] if number == 0 else None
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, color=colour, marker=marker, markersize=4, label=label)
            axes.set_ylabel("mean reward")
            lowest, highest = axes.get_ylim()  # log-probabilities and scores may lie below 0
            axes.set_ylim(min(0, lowest), max(0, 1.05 * highest))
            axes.legend(loc="lower right")
        panels[-1].set_xlabel("step of metrics.jsonl")
        caption = "What is reinforced, before weighting; lines break between rounds."
        return _picture(figure, "rewards", "Rewards by step", caption)


def _by_round(metrics: Sequence[Mapping[str, Any]], key: str) -> list[list[tuple[int, float]]]:
    """(step, value) where there is a value, round by round."""
    rounds: dict[int | None, list[tuple[int, float]]] = {}
    for row in metrics:
        if row.get(key) is not None:
            rounds.setdefault(row.get("coevolve/round"), []).append((row["step"], row[key]))
    return list(rounds.values())


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names on the vertical axis, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _panels(count: int, height: float, *, above: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Panels of that height in inches, one below the other, sharing the horizontal axis."""
    figure = Figure(figsize=(WIDTH, count * height + 0.35 + above), layout="constrained")
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _picture(figure: Figure, name: str, title: str, caption: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    # Matplotlib draws no more than 65,535 pixels in a row.
    figure.savefig(png, format="png", dpi=min(200, TALLEST / figure.get_size_inches()[1]))
    return Picture(name, title, caption, svg.getvalue(), png.getvalue())
