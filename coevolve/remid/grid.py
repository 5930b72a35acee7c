"""A table of text, and how it looks on a terminal, in a log file, in LaTeX and in Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box

from coevolve.progress import PlainTable


@dataclass(frozen=True)
class Block:
    """Rows of a table under a heading of their own (empty: none)."""

    heading: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names the rows, the caption says what the numbers are."""

    columns: Sequence[str]
    blocks: Sequence[Block]
    caption: Sequence[str] = ()
    title: str | None = None

    def lines(self) -> Iterator[tuple[str, Sequence[str]]]:
        """(label, other cells) of every row, indented under a heading, which has no cells."""
        for block in self.blocks:
            if block.heading:
                yield block.heading, ()
            for label, *cells in block.rows:
                yield "  " * bool(block.heading) + label, cells


def grid_table(grid: Grid) -> PlainTable:
    """For a terminal."""
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "caption_justify": "left"}
    table = PlainTable(title=grid.title, caption="\n".join(grid.caption), **look)
    first, *others = grid.columns
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    for label, cells in grid.lines():
        table.add_row(label, *cells, style=None if cells else "bold")
    return table


def grid_latex(grid: Grid) -> str:
    """A `tabular` for a paper; needs the package booktabs."""
    count = len(grid.columns)
    text = [f"% {line}" for line in grid.caption]
    text += [rf"\begin{{tabular}}{{l{'r' * (count - 1)}}}", r"\toprule"]
    text += [_latex_line(grid.columns), r"\midrule"]
    for block in grid.blocks:
        if block.heading:
            text.append(rf"\multicolumn{{{count}}}{{l}}{{{_latex(block.heading)}}} \\")
        text += map(_latex_line, block.rows)
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])


def grid_markdown(grid: Grid) -> str:
    """A table of GitHub's Markdown, the caption below it."""
    count = len(grid.columns)
    text = [f"### {_markdown(grid.title)}", ""] if grid.title else []
    text += [_markdown_line(grid.columns), "|" + " --- |" + " ---: |" * (count - 1)]
    for block in grid.blocks:
        if block.heading:
            heading = f"**{_markdown(block.heading)}**"
            text.append(f"| {' | '.join([heading, *[''] * (count - 1)])} |")
        text += map(_markdown_line, block.rows)
    return "\n".join([*text, "", *(f"{_markdown(line)}  " for line in grid.caption), ""])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    """`text` with what LaTeX reads as a command taken literally, and our signs as its symbols."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "*": "$^{*}$"}
    return "".join(special.get(character, character) for character in text)


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(text: str) -> str:
    """`text` with what Markdown reads as markup taken literally."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~" else " " if c == "\n" else c for c in text)
