"""Words, tables and the progress of work, on a terminal or in a log file.

Much of it was written by others (names, tags, paths, turns), and rich reads `[...]` as markup and
`:name:` as an emoji. So every console and every table of this package is one of the two here, which
show text as it is.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

Advance = Callable[[int], None]

NOTE_EVERY_SECONDS = 20
"""Without a terminal, a long task says how far it is this often."""

LOG_WIDTH = 150
"""Columns of a log file's tables."""


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""Characters that would move the cursor or colour the terminal, and how they are shown."""


class PlainTable(Table):
    """A table whose texts are shown as they are, whatever console it is printed on.

    One of numbers, all columns but the first to the right, never loses a digit: where it is wider
    than the console, its columns stand one below the other.
    """

    def __init__(self, *, title: str | None = None, caption: str | None = None, **options: Any):
        shown: Any = None if title is None else _as_it_is(title, "table.title")
        below: Any = None if caption is None else _as_it_is(caption, "table.caption")
        super().__init__(title=shown, caption=below, **options)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        super().add_column(_as_it_is(header), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_as_it_is, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        numbers = all(column.justify == "right" for column in self.columns[1:])
        shown = self._parts(console, options) if numbers else [self]
        if len(shown) == 1:
            yield from super().__rich_console__(console, options)
        else:
            yield from shown

    def _parts(self, console: Console, options: ConsoleOptions) -> list["PlainTable"]:
        """Tables that fit, each with the first column and some of the others."""
        parts: list[PlainTable] = []
        beside: list[Column] = []
        unlimited = options.update_width(10_000)
        for column in self.columns[1:]:
            wider = console.measure(self._part([*beside, column]), options=unlimited).maximum
            if beside and wider > options.max_width:
                parts.append(self._part(beside))
                beside = []
            beside.append(column)
        parts.append(self._part(beside))
        parts[0].title, parts[-1].caption = self.title, self.caption
        return parts

    def _part(self, beside: Sequence[Column]) -> "PlainTable":
        looks: dict[str, Any] = {"box": self.box, "title_justify": self.title_justify}
        part = PlainTable(**looks, caption_justify=self.caption_justify)
        part.add_column(self.columns[0].header, overflow="fold")
        for column in beside:
            part.add_column(column.header, justify="right", no_wrap=True)
        cells = zip(*(column.cells for column in (self.columns[0], *beside)), strict=True)
        for of_row, row in zip(cells, self.rows, strict=True):
            part.add_row(*of_row, style=row.style)
        return part


class PlainConsole(Console):
    """Shows text as it is. Plain lines are not wrapped: paths and commands are to be copied."""

    def __init__(self, file: TextIO, **options: Any):
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(item, str) for item in objects):
            options.setdefault("soft_wrap", True)
        super().print(*map(_as_it_is, objects), **options)

    def on_broken_pipe(self) -> None:
        """Who reads no longer (`| head`) ends the display, not the work, as rich would have it."""
        self.quiet = True
        lead_nowhere(self.file)


def make_console(file: TextIO, *, quiet: bool = False) -> PlainConsole:
    """A console; wide where the width is not a terminal's, so that tables stay whole. What is said
    beside results, on stderr, is left out where only errors are logged (`--quiet`).
    """
    quiet = quiet or (file is sys.stderr and _log_level() >= logging.ERROR)
    console = PlainConsole(file, quiet=quiet)
    return console if console.is_terminal else PlainConsole(file, quiet=quiet, width=LOG_WIDTH)


def lead_nowhere(stream: Any) -> None:
    """Give a stream whose reader is gone another end, so that what is left in it fails nobody."""
    with suppress(OSError, ValueError):  # a stream of no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _log_level() -> int:
    return logging.getLogger("coevolve").getEffectiveLevel()


def _as_it_is(item: str | RenderableType, style: str = "") -> RenderableType:
    return Text(item.translate(_CONTROLS), style) if isinstance(item, str) else item


def quieten_libraries() -> None:
    """Leave the terminal to our own display: no bars or deprecation notes from libraries, unless
    more is logged (`--verbose`).
    """
    if _log_level() <= logging.INFO:
        return
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if "datasets" in sys.modules:  # which scoring can do without
        sys.modules["datasets"].disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")


@contextmanager
def task(console: Console, title: str, total: int) -> Iterator[Advance]:
    """Yields what advances the display by a number of units of `total`."""
    if not console.is_terminal:
        yield _notes(console, title, total)
        return
    with Progress(
        TextColumn("      {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        bar_task = bar.add_task(title.translate(_CONTROLS), total=total)
        yield lambda count: bar.advance(bar_task, count)


def _notes(console: Console, title: str, total: int) -> Advance:
    done, began = 0, time.monotonic()
    last = began

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= NOTE_EVERY_SECONDS and 0 < done < total:
            last = now
            left = (now - began) / done * (total - done)
            console.print(_as_it_is(f"         {title}: {done} of {total}, some {left:.0f} s left"))

    return advance


def from_totals(advance: Advance) -> Callable[[int], None]:
    """For work that reports how much is done in all, where a display wants how much more."""
    seen = 0

    def report(done: int) -> None:
        nonlocal seen
        advance(done - seen)
        seen = done

    return report
