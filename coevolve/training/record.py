"""The record of a run: what the terminal shows, `metrics.jsonl`, and wandb where it is asked for."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from coevolve.progress import Advance, make_console, task


class Record:
    """Everything a run says, on the main process; silent on the others.

    Args:
        folder: where `metrics.jsonl` goes.
        main: False on every process but the first.
    """

    def __init__(self, folder: Path, *, main: bool = True, console: Console | None = None):
        self.path = folder / "metrics.jsonl"
        self.main = main
        self.console = console or make_console(sys.stderr, quiet=not main)
        self.wandb_run: Any = None
        self._step = 0
        self._start = time.monotonic()

    def start_wandb(self, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Log to wandb as well. Without a key or a network, `WANDB_MODE=offline` keeps the run on disk."""
        if not self.main:
            return
        import wandb

        self.wandb_run = wandb.init(project=project, name=name, config=dict(config), dir=self.path.parent)

    def say(self, text: str) -> None:
        """One line for a person, with the minutes and seconds since the start."""
        seconds = int(time.monotonic() - self._start)
        self.console.print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", markup=False)

    def log(self, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl` (and one point in wandb), with a step that only grows."""
        if not self.main:
            return
        self._step += 1
        line = {"step": self._step, "seconds": round(time.monotonic() - self._start, 3), **values}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.wandb_run is not None:
            self.wandb_run.log(dict(values), step=self._step)

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        """A piece of work that takes a while: shown as it goes, and said when it is done. Yields what advances it."""
        began = time.monotonic()
        with task(self.console, title, total) as advance:
            yield advance
        self.say(f"{title}: done in {time.monotonic() - began:.1f} s")

    def close(self) -> None:
        """End the wandb run, if there is one."""
        if self.wandb_run is not None:
            self.wandb_run.finish()
            self.wandb_run = None
