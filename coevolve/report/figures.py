"""The figures, narrow enough to be read on a phone; colours are told apart by the colour-blind, on
white and black.

Each is drawn once. In the files beside the page its greys suit a white and a black ground; in the
page its colours become variables of the style sheet, so that they follow the reader's light or dark
setting.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coevolve.remid.table import Exact
from coevolve.report.summary import OTHER, losses

INK, FAINT, ACCENT, ORANGE, GREEN, PALE = (
    "#737b83",
    "#9aa1a8",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b8bec4",
)
VARIABLES = MappingProxyType(
    {
        INK: "currentColor",
        FAINT: "var(--faint)",
        ACCENT: "var(--accent)",
        ORANGE: "var(--orange)",
        GREEN: "var(--green)",
        PALE: "var(--pale)",
    }
)
"""Colour in the files -> in the page."""
STYLE = MappingProxyType(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "savefig.transparent": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "coevolve",
        "text.parse_math": False,
    }
)
WIDTH = 4.6  # inches
TALLEST = 30000  # pixels
MARKERS = "osv^DPX*<>"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its files, without the ending.
        title: what it shows.
        caption: how to read it.
        svg: the file's text.
        png: the file's bytes.
    """

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
        return text.replace(
            "<svg ", '<svg role="img" aria-labelledby="' + self.name + '-title" ', 1
        )


def remid_picture(remid: Mapping[str, Any], exact: Exact) -> Picture:
    """R-EMID per shift with intervals, a panel per model; the exact value where it is known."""
    with rc_context(STYLE):
        found = {model: losses(remid, model, exact) for model in remid["models"]}
        rows = max(map(len, found.values()))
        figure, panels = _panels(len(found), 0.45 + 0.24 * rows)
        known = any(loss.exact is not None for listed in found.values() for loss in listed)
        intervals = any(loss.low is not None for listed in found.values() for loss in listed)
        for axes, (model, listed) in zip(panels, found.items(), strict=True):
            axes.set_title(model)
            axes.axvline(0, color=FAINT, linewidth=0.8)
            for place, loss in enumerate(listed):
                if loss.low is not None:
                    axes.plot(
                        [loss.low, loss.high],
                        [place, place],
                        color=ACCENT,
                        linewidth=2,
                        solid_capstyle="butt",
                    )
                axes.plot(loss.value, place, "o", color=ACCENT, markersize=6)
                if loss.exact is not None:
                    axes.plot(loss.exact, place, "D", color=INK, markersize=6, fillstyle="none")
            axes.set_yticks(range(rows), [OTHER.get(loss.shift, "mean of all") for loss in listed])
            axes.set_ylim(rows - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
        panels[-1].set_xlabel(f"R-EMID, {remid['unit']}")
        caption = ["Dot: the estimate; further right is worse."]
        caption.append(
            f"Bar: its {remid['level']:.0%} interval."
            if intervals
            else "No intervals: the results hold none."
        )
        if known:
            caption.append(
                "Diamond: the exact value, known because the dialogues come from a synthetic world."
            )
        return _picture(figure, "remid", "What is lost under each shift", " ".join(caption))


def truth_picture(remid: Mapping[str, Any], exact: Exact) -> Picture:
    """R-EMID estimated against exact, a point per model and shifted subset; `exact` must hold some
    of them.
    """
    with rc_context(STYLE):
        figure, (axes,) = _panels(1, 3.2)
        both: list[float] = []
        for marker, model in zip(MARKERS * len(remid["models"]), remid["models"], strict=False):
            points = [
                (exact[model, subset["row"]], subset["models"][model]["remid"])
                for subset in remid["subsets"]
                if (model, subset["row"]) in exact
                and subset["shift"] is not None
                and not subset.get("reason")
            ]
            if points:
                both += [number for point in points for number in point]
                axes.plot(
                    *zip(*points, strict=True),
                    marker,
                    color=ACCENT,
                    fillstyle="none",
                    label=f" {model}",
                )  # a label that begins with _ is not shown
        ends = min(both), max(both)
        axes.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle="--")
        axes.set_xlabel(f"exact R-EMID, {remid['unit']}")
        axes.set_ylabel("estimated R-EMID")
        axes.legend()
        caption = "One point per model and shift. On the dashed line the estimate is exact; above it is too large."
        return _picture(figure, "truth", "The estimate against the truth", caption)


def bound_picture(bound: Mapping[str, Any]) -> Picture:
    """The bound's terms stacked beside the measured R-EMID, a panel per model."""
    terms = {
        "user": ACCENT,
        "character": ORANGE,
        "dialogue": GREEN,
        "output P": FAINT,
        "output Q": PALE,
    }
    with rc_context(STYLE):
        rows = bound["subsets"]
        figure, panels = _panels(len(bound["models"]), 0.55 + 0.3 * len(rows), above=0.45)
        for axes, model in zip(panels, bound["models"], strict=True):
            axes.set_title(model)
            for place, row in enumerate(rows):
                found = row["models"][model]
                published, left = found["published"], 0.0
                widths = {
                    **published["inputs"],
                    "output P": published["output_p"],
                    "output Q": published["output_q"],
                }
                for name, colour in terms.items():
                    label = name if place == 0 and axes is panels[0] else None
                    axes.barh(
                        place, widths[name], left=left, color=colour, height=0.55, label=label
                    )
                    left += widths[name]
                floor = published["noise_floor"]
                axes.plot([floor, floor], [place - 0.4, place + 0.4], color=INK, linewidth=1.5)
                axes.plot(found["remid"], place, "D", color=INK, markersize=6, fillstyle="none")
            axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
        panels[-1].set_xlabel("nats per response")
        figure.legend(
            loc="outside upper left",
            ncols=5,
            columnspacing=0.8,
            handlelength=0.9,
            handletextpad=0.4,
        )
        caption = (
            "Stacked: the bound's terms, that is what shifted inputs (user, character, dialogue) and the model's own "
            "distance from the golden responses (output P: as usual, Q: shifted) can cost at worst. Line: the same "
            "bound if nothing had shifted, from noise alone. Diamond: R-EMID as measured."
        )
        return _picture(figure, "bound", "How bad it can get, term by term", caption)


def gates_picture(gates: Sequence[Mapping[str, Any]]) -> Picture:
    """Held-out perplexity after every gated phase, and what was kept."""
    with rc_context(STYLE):
        figure, (axes,) = _panels(1, 2.6)
        places = range(1, len(gates) + 1)
        in_use = (gate["after"] if gate["kept"] else gate["before"] for gate in gates)
        current = [gates[0]["before"], *in_use]
        axes.step([0, *places], current, where="post", color=ACCENT, linewidth=1.5)
        for kept, marker, colour, label in (
            (True, "o", ACCENT, "kept"),
            (False, "x", ORANGE, "rolled back"),
        ):
            points = [
                (place, gate["after"])
                for place, gate in zip(places, gates, strict=True)
                if gate["kept"] is kept and gate["after"] is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)
        axes.plot(0, gates[0]["before"], "s", color=INK, fillstyle="none", label="cold start")
        starts = [
            place
            for place, gate in zip(places, gates, strict=True)
            if _begins_round(gates, place - 1)
        ]
        for start in starts:
            axes.axvline(start - 0.5, color=PALE, linewidth=0.8)
        axes.set_xticks(
            starts, [f"round {gates[start - 1]['round']}" for start in starts], ha="left"
        )
        axes.set_ylabel("held-out perplexity")
        axes.legend()
        caption = "A phase that makes perplexity worse is rolled back. Lower is better; the line is the pair in use."
        return _picture(figure, "rounds", "Perplexity by round", caption)


def rewards_picture(metrics: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Mean rewards by step, a panel per role; None where the log has none."""
    pattern = re.compile(r"(connector|estimator)/rewards/(\w+)/mean")
    names = {
        key: found.groups() for row in metrics for key in row if (found := pattern.fullmatch(key))
    }
    roles = sorted({role for role, _ in names.values()})
    if not roles:
        return None
    with rc_context(STYLE):
        figure, panels = _panels(len(roles), 1.9)
        for axes, role in zip(panels, roles, strict=True):
            axes.set_title(role)
            parts = [key for key, (of, _) in names.items() if of == role]
            looks = [*zip((ACCENT, ORANGE, GREEN, FAINT), ("o", "s", "^", "v"), strict=True)]
            for index, key in enumerate(parts):
                colour, marker = looks[index % len(looks)]
                for number, points in enumerate(_by_round(metrics, key)):
                    label = names[key][1] if number == 0 else None
                    axes.plot(
                        *zip(*points, strict=True),
                        color=colour,
                        marker=marker,
                        markersize=4,
                        label=label,
                    )
            axes.set_ylabel("mean reward")
            lowest, highest = axes.get_ylim()  # log-probabilities and scores may lie below 0
            axes.set_ylim(min(0, lowest), max(0, 1.05 * highest))
            axes.legend(loc="lower right")
        panels[-1].set_xlabel("step of metrics.jsonl")
        caption = (
            "What reinforcement learning rewards, before weighting; lines break between rounds."
        )
        return _picture(figure, "rewards", "Rewards by step", caption)


def _by_round(metrics: Sequence[Mapping[str, Any]], key: str) -> list[list[tuple[int, float]]]:
    """(step, value) where there is a value, round by round."""
    rounds: dict[int | None, list[tuple[int, float]]] = {}
    for row in metrics:
        if row.get(key) is not None:
            rounds.setdefault(row.get("coevolve/round"), []).append((row["step"], row[key]))
    return list(rounds.values())


def _begins_round(gates: Sequence[Mapping[str, Any]], index: int) -> bool:
    return index == 0 or gates[index]["round"] != gates[index - 1]["round"]


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
