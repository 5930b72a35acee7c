"""Showing that something is under way: a bar on a terminal, a line now and then in a log file."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]

NOTE_EVERY_SECONDS = 20
"""Without a terminal, a long task says how far it is this often."""

LOG_WIDTH = 150
"""Columns of a log file's tables."""


def make_console(file: TextIO, *, quiet: bool = False) -> Console:
    """A console for plain words and tables; wide where the width is not a terminal's, so that tables stay whole."""
    console = Console(file=file, quiet=quiet, highlight=False)
    return console if console.is_terminal else Console(file=file, quiet=quiet, highlight=False, width=LOG_WIDTH)


def quieten_libraries() -> None:
    """Leave the terminal to our own display: no bars and no deprecation notes from inside the libraries."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")


@contextmanager
def task(console: Console, title: str, total: int) -> Iterator[Advance]:
    """Yields what advances the display by a number of units of `total`."""
    if not console.is_terminal:
        yield _notes(console, title, total)
        return
    with Progress(
        TextColumn("      {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        bar_task = bar.add_task(title, total=total)
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
            console.print(f"         {title}: {done} of {total}, about {left:.0f} s left", markup=False)

    return advance


def from_totals(advance: Advance) -> Callable[[int], None]:
    """For work that reports how much is done in all, where a display wants how much more."""
    seen = 0

    def report(done: int) -> None:
        nonlocal seen
        advance(done - seen)
        seen = done

    return report
