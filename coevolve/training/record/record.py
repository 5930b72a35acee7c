"""The record of a run: what the terminal shows, `metrics.jsonl`, `samples.jsonl`, and trackers such
as wandb.

The two files on disk are the truth, and what every tracker gets is taken from them:

- A step that only grows numbers every line of either file. A resumed process cuts both back to the
  step of its checkpoint and goes on from there, so that no point is there twice.
- Trackers may lose points (wandb keeps up to 32 KiB in memory, which a kill -9 takes with it) or
  have more than a checkpoint knows of. So they are asked, or told from a note on disk, up to which
  step they have the run; what they lack is sent again from the files, what they have is not.
- A tracker that fails never ends a run, and never changes it.

`report_to` of TRL's own trainers stays "none": a run has a dozen trainers, and each would open a
run of its own, with steps from 0. The trackers that it names get everything from here instead,
through accelerate's tracker classes.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from coevolve.documents import Part, read_document
from coevolve.errors import DataError
from coevolve.files import write_json, write_text
from coevolve.progress import Advance, make_console, task
from coevolve.training.documents import Line, SampleLine, Sent
from coevolve.training.record.facts import memory
from coevolve.training.record.lines import (
    METRICS,
    SAMPLES,
    Table,
    append_lines,
    decoded,
    encoded,
    plain,
    read_lines,
)
from coevolve.training.record.trackers import (
    PROJECT,
    AccelerateTracker,
    RunOfTracker,
    Tracker,
    WandbTracker,
    in_words,
    require_tracker,
)

SENT = ".sent.json"


@dataclass
class Work:
    """What a piece of work calls as it goes on: `work(3)` says that three more units are done."""

    advance: Advance
    tokens: int = 0
    """Processed so far, where the work says so."""

    def __call__(self, count: int, tokens: int = 0) -> None:
        self.tokens += tokens
        self.advance(count)


class Record:
    """Everything a run says, into `folder` and to people, on the main process; silent elsewhere."""

    def __init__(self, folder: Path, *, main: bool = True, console: Console | None = None):
        self.folder, self.main = folder, main
        self.path, self.samples_path = folder / METRICS, folder / SAMPLES
        self.console = console or make_console(sys.stderr, quiet=not main)
        self._trackers: list[Tracker] = []
        self._ids: dict[str, str] = {}
        self._step = self._sent = 0
        self._began = time.monotonic()

    # Resuming.

    @property
    def seconds(self) -> float:
        """Seconds since the run began, not counting the time between its sittings."""
        return time.monotonic() - self._began

    def state(self) -> dict[str, Any]:
        """The record's part of a checkpoint (`RecordState`); what was logged is synced by then."""
        for path in (self.path, self.samples_path):
            if self.main and path.exists():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        return {"step": self._step, "seconds": self.seconds, "trackers": dict(self._ids)}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken, before anything is logged: later lines are cut from
        the files. The state of a new Record removes what an attempt without a checkpoint left.
        Raises DataError for a damaged line; a last one that a crash tore off is just removed.
        """
        self._step = state["step"]
        self._began = time.monotonic() - state["seconds"]
        self._ids = dict(state["trackers"])
        if not self.main:
            return
        note = self.folder / SENT
        kinds: dict[Path, type[Part]] = {self.path: Line, self.samples_path: SampleLine}
        lines = {path: read_lines(path, kind) for path, kind in kinds.items()}
        steps = [values["step"] for rows in lines.values() for _, values in rows]
        noted = self._noted(note)
        self._sent = max([noted.step, *steps])
        if self._step:  # else it begins anew, and so do its trackers' runs
            self._ids = {**noted.trackers, **self._ids}
        # In this order, so that a crash in between loses neither.
        self._note()
        for path, rows in lines.items():
            if path.exists():
                kept = (f"{text}\n" for text, values in rows if values["step"] <= self._step)
                write_text(path, "".join(kept))

    def _note(self) -> None:
        write_json(self.folder / SENT, {"step": self._sent, "trackers": self._ids})

    def _noted(self, note: Path) -> Sent:
        if not os.path.lexists(note):
            return Sent(step=0)
        try:
            remedy = "A tracker may get the last points once more."
            return read_document(note, Sent, remedy=remedy)
        except DataError as error:
            if note.is_dir():
                raise DataError(f"{note}: is a folder, where a file belongs. Delete it.") from None
            self.say(str(error))
            return Sent(step=0)

    # Words, figures, samples.

    def say(self, text: str) -> None:
        """One line for a person, with the minutes and seconds since the start."""
        seconds = int(self.seconds)
        line = f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}"
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)

    def log(self, values: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl` and a point of each tracker, under the next step: numbers and
        words by name. A float that is not finite is null there, and `not_finite` says what it was.
        """
        if not self.main:
            return
        self._step += 1
        step, line = self._step, {"seconds": round(self.seconds, 3), **plain(values)}
        append_lines(self.path, [{"step": step, **encoded(line)}])
        self._tell(lambda tracker: tracker.log(step, line))

    def samples(
        self, title: str, columns: Sequence[str], rows: Sequence[Any], *, where: Mapping[str, Any]
    ) -> None:
        """A table of samples: a line of `samples.jsonl` per row, one table in wandb, one step."""
        if not self.main:
            return
        self._step += 1
        table = Table(self._step, title, tuple(columns), [list(row) for row in rows], dict(where))
        append_lines(self.samples_path, table.lines())
        self._tell(lambda tracker: tracker.table(table))

    def artifact(self, folder: Path, *, name: str, type: str, metadata: Mapping[str, Any]) -> None:
        """Keep a folder, such as the exported estimator, as an artifact of the wandb run."""
        for tracker in self._trackers:
            try:
                tracker.artifact(folder, name, type, metadata)
            except Exception as error:
                self.say(f"{tracker.name}: {folder} could not be kept: {in_words(error)}")

    @contextmanager
    def task(
        self,
        title: str,
        total: int,
        *,
        key: str | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Iterator[Work]:
        """A piece of work of `total` units: shown as it goes on, and said when it is done. Yields
        what advances it. With `key`, also logs `time/KEY` (seconds, in this sitting), `memory()`
        and `tokens_per_second/KEY`, if the work counted tokens, on a line with `where`.
        """
        began = time.monotonic()
        with task(self.console, title, total) as advance:
            work = Work(advance)
            yield work
        seconds = time.monotonic() - began
        speed = f", {work.tokens / seconds:.0f} tokens/s" if work.tokens else ""
        self.say(f"{title}: done in {seconds:.1f} s{speed}")
        if key is not None and self.main:
            rate = {f"tokens_per_second/{key}": work.tokens / seconds} if work.tokens else {}
            self.log({**(where or {}), f"time/{key}": round(seconds, 3), **rate, **memory()})

    # Trackers.

    def start_trackers(
        self,
        report_to: Sequence[str],
        *,
        project: str | None,
        name: str,
        config: Mapping[str, Any],
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Report to trackers as well, some of `TRACKERS`: one run for all sittings, with the
        record's steps, earlier ones included. One that cannot start is named and left out.

        `config` is shown (nothing secret); wandb's project, name and entity may be in `environ`.
        Raises RecipeError, on every process, for a name that is unknown or not installed.
        """
        for tracker_name in report_to:
            require_tracker(tracker_name)
        if not self.main:
            return
        for tracker_name in dict.fromkeys(report_to):
            resumed = tracker_name in self._ids
            run_id = self._ids.get(tracker_name, uuid.uuid4().hex)
            run = RunOfTracker(self.folder, project or PROJECT, name, run_id, resumed)
            tracker: Tracker = WandbTracker(run.as_in(environ, project=project), config, self.say)
            if tracker_name != "wandb":
                sent = self._sent if resumed else 0
                tracker = AccelerateTracker(tracker_name, run, config, sent=sent)
            try:
                self._ids[tracker_name] = tracker.start()
                self._trackers.append(tracker)
            except Exception as error:
                why = in_words(error)
                self.say(f"{tracker_name}: could not start, so the run goes on without it: {why}")
        self._tell(self._send_missing)
        self._note()  # the next checkpoint may never come

    def close(self, *, exit_code: int = 0) -> None:
        """End the trackers' runs; wandb shows one whose `exit_code` is not 0 as failed."""
        for tracker in list(self._trackers):
            try:
                tracker.close(exit_code)
            except Exception as error:
                if self._recover(tracker, error):
                    with suppress(Exception):
                        tracker.close(exit_code)
        self._trackers.clear()

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        """Do something with each tracker."""
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:
                self._recover(tracker, error)

    def _recover(self, tracker: Tracker, error: Exception) -> bool:
        """A tracker that failed starts anew if it can, and is left out if not; whether it did."""
        self.say(f"{tracker.name}: {in_words(error)}. The run goes on.")
        try:
            tracker.recover()
            self._send_missing(tracker)
        except Exception:
            self._trackers.remove(tracker)
            self.say(f"{tracker.name}: off from here on; {self.path} holds every figure.")
            return False
        return True

    def _send_missing(self, tracker: Tracker) -> None:
        """Send a tracker what the files hold and it has not."""
        figures = {values.pop("step"): decoded(values) for _, values in read_lines(self.path, Line)}
        tables = Table.read(self.samples_path)
        for step in sorted({*figures, *tables}):
            if step in figures:
                tracker.log(step, figures[step])
            else:
                tracker.table(tables[step])
