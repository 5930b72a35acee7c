"""The record of a run: what the terminal shows, `metrics.jsonl`, `samples.jsonl`, and trackers such as wandb.

The two files on disk are the truth, and what every tracker gets is taken from them:

- A step that only grows numbers every line of either file. A resumed process cuts both back to the step of its
  checkpoint and goes on from there, so that no point is there twice.
- Trackers may lose points (wandb keeps up to 32 KiB in memory, which a kill -9 takes with it) or have more than a
  checkpoint knows of. So they are asked, or told from a note on disk, up to which step they have the run; what they
  lack is sent again from the files, what they have is not.
- A tracker that fails never ends a run, and never changes it.

`report_to` of TRL's own trainers stays "none": a run has a dozen trainers, and each would open a run of its own, with
steps from 0. The trackers that it names get everything from here instead, through accelerate's tracker classes.
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import re
import resource
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from coevolve.errors import DataError, RecipeError
from coevolve.files import read_json, write_json, write_text
from coevolve.progress import Advance, make_console, task

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
SENT = ".sent.json"
NOT_FINITE = "not_finite"

TRACKERS = ("clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""What `report_to` may name: what transformers takes and accelerate has a tracker for. Each is also its package."""

PACKAGES = ("coevolve", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "wandb")

INIT_SECONDS = 30
"""wandb's server has so long to answer before the run goes on offline."""

FINISH_SECONDS = 600
"""wandb has so long to upload what is left at the end, before the run ends and says how to upload the rest."""

GIB = 2**30


@dataclass
class Work:
    """What a piece of work calls as it goes on: `work(3)` says that three more units are done.

    Attributes:
        tokens: how many tokens were processed, where the work says so.
    """

    advance: Advance
    tokens: int = 0

    def __call__(self, count: int, tokens: int = 0) -> None:
        self.tokens += tokens
        self.advance(count)


class Record:
    """Everything a run says, on the main process; silent on the others.

    Args:
        folder: where `metrics.jsonl` and `samples.jsonl` go.
        main: False on every process but the first.
    """

    def __init__(self, folder: Path, *, main: bool = True, console: Console | None = None):
        self.folder = folder
        self.path = folder / METRICS
        self.samples_path = folder / SAMPLES
        self.main = main
        self.console = console or make_console(sys.stderr, quiet=not main)
        self._trackers: list[Tracker] = []
        self._ids: dict[str, str] = {}
        self._step = 0
        self._sent = 0
        self._began = time.monotonic()

    # Resuming.

    @property
    def seconds(self) -> float:
        """Seconds since the run began, not counting the time between its sittings."""
        return time.monotonic() - self._began

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the record, as JSON values. What was logged so far is safe on disk afterwards.

        - step: the number of the last line;
        - seconds: see `seconds`;
        - trackers: tracker name -> the id under which it knows this run.
        """
        for path in (self.path, self.samples_path):
            if self.main and path.exists():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        return {"step": self._step, "seconds": self.seconds, "trackers": dict(self._ids)}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken: to be called before anything is logged.

        Lines with a later step are removed from the files: the resumed run writes them again. The state of a new
        Record is that of a run that begins, and removes all that an attempt without a checkpoint left.

        Raises:
            DataError: a line of a file is damaged; it is named. A last line that was torn by a crash is just removed.
        """
        self._step = state["step"]
        self._began = time.monotonic() - state["seconds"]
        self._ids = dict(state["trackers"])
        if not self.main:
            return
        note = self.folder / SENT
        lines = {path: _read_lines(path) for path in (self.path, self.samples_path)}
        steps = [values["step"] for rows in lines.values() for _, values in rows]
        self._sent = max([read_json(note)["step"] if note.exists() else 0, *steps])
        # In this order, so that a crash in between loses neither.
        write_json(note, {"step": self._sent})
        for path, rows in lines.items():
            if path.exists():
                write_text(path, "".join(f"{text}\n" for text, values in rows if values["step"] <= self._step))

    # Words, figures, samples.

    def say(self, text: str) -> None:
        """One line for a person, with the minutes and seconds since the start."""
        seconds = int(self.seconds)
        # Not wrapped: a command or a path in it is to be copied.
        self.console.print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", markup=False, soft_wrap=True)

    def log(self, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl` and one point of each tracker, under the next step.

        A float that is not finite is null in the file, and `not_finite` says what it was: JSON has no name for it.

        Args:
            values: numbers and words by name.
        """
        if not self.main:
            return
        self._step += 1
        step, line = self._step, {"seconds": round(self.seconds, 3), **_plain(values)}
        _append(self.path, [{"step": step, **_encode(line)}])
        self._tell(lambda tracker: tracker.log(step, line))

    def samples(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, where: Mapping[str, Any]
    ) -> None:
        """A table of samples: a line of `samples.jsonl` per row, and one table in wandb, under the next step.

        Args:
            title: the same for the tables that belong together, such as `samples/connector_rl`.
            columns: names, one per entry of each row.
            where: round and phase.

        Raises:
            ValueError: a row has another number of entries than there are columns.
        """
        if not self.main:
            return
        self._step += 1
        table = Table(self._step, title, tuple(columns), [list(row) for row in rows], dict(where))
        _append(self.samples_path, table.lines())
        self._tell(lambda tracker: tracker.table(table))

    def artifact(self, folder: Path, *, name: str, type: str, metadata: Mapping[str, Any]) -> None:
        """Keep a folder, such as the exported estimator, as an artifact of the wandb run, if there is one."""
        for tracker in self._trackers:
            try:
                tracker.artifact(folder, name, type, metadata)
            except Exception as error:
                self.say(f"{tracker.name}: {folder} could not be kept as an artifact: {_words(error)}")

    @contextmanager
    def task(
        self, title: str, total: int, *, key: str | None = None, where: Mapping[str, Any] | None = None
    ) -> Iterator[Work]:
        """A piece of work that takes a while: shown as it goes, and said when it is done.

        Args:
            total: units of work.
            key: also log `time/<key>` (seconds, in this sitting), `tokens_per_second/<key>` if the work counted
                tokens, and `memory()`.
            where: round and phase, for that line.

        Yields:
            what advances it: `work(count)` or `work(count, tokens=...)`.
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

    def start_trackers(self, report_to: Sequence[str], *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Report to trackers as well: one run for all rounds, phases and sittings, with this record's steps.

        What was logged before is sent to them too. One that cannot start is named in words and left out.

        Args:
            report_to: some of `TRACKERS`.
            project: where the trackers put the run.
            name: of the run.
            config: recipe, versions, data: nested JSON values. Nothing secret.

        Raises:
            RecipeError: an unknown name, or one whose package is not installed. On every process.
        """
        for tracker_name in report_to:
            _require_tracker(tracker_name)
        if not self.main:
            return
        for tracker_name in dict.fromkeys(report_to):
            resumed = tracker_name in self._ids
            run = RunOfTracker(self.folder, project, name, self._ids.get(tracker_name, uuid.uuid4().hex), resumed)
            tracker = (
                WandbTracker(run, config, self.say)
                if tracker_name == "wandb"
                else AccelerateTracker(tracker_name, run, config, sent=self._sent if resumed else 0)
            )
            try:
                self._ids[tracker_name] = tracker.start()
                self._trackers.append(tracker)
            except Exception as error:
                self.say(f"{tracker_name}: could not start, so the run goes on without it: {_words(error)}")
        self._tell(self._send_missing)

    def close(self, *, exit_code: int = 0) -> None:
        """End the trackers' runs.

        Args:
            exit_code: 0 for a run that reached its end; wandb shows others as failed.
        """
        for tracker in list(self._trackers):
            try:
                tracker.close(exit_code)
            except Exception as error:
                if self._recover(tracker, error):
                    with suppress(Exception):
                        tracker.close(exit_code)
        self._trackers.clear()

    def _tell(self, what: Callable[["Tracker"], None]) -> None:
        """Do something with each tracker."""
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:
                self._recover(tracker, error)

    def _recover(self, tracker: "Tracker", error: Exception) -> bool:
        """A tracker that failed starts anew if it can, and is left out if not. Returns whether it is there again."""
        self.say(f"{tracker.name}: {_words(error)}. The run goes on.")
        try:
            tracker.recover()
            self._send_missing(tracker)
        except Exception:
            self._trackers.remove(tracker)
            self.say(f"{tracker.name}: off from here on; {self.path} holds every figure.")
            return False
        return True

    def _send_missing(self, tracker: "Tracker") -> None:
        """Send a tracker what the files hold and it has not."""
        figures = {values.pop("step"): _decode(values) for _, values in _read_lines(self.path)}
        tables = Table.read(self.samples_path)
        for step in sorted({*figures, *tables}):
            if step in figures:
                tracker.log(step, figures[step])
            else:
                tracker.table(tables[step])


# What the files hold.


@dataclass(frozen=True)
class Table:
    """Samples that were shown together, under one step."""

    step: int
    title: str
    columns: tuple[str, ...]
    rows: list[list[Any]]
    where: dict[str, Any]

    def lines(self) -> list[dict[str, Any]]:
        """A JSON object per row."""
        head = {"step": self.step, **self.where, "table": self.title}
        return [{**head, "sample": _encode(_plain(dict(zip(self.columns, row, strict=True))))} for row in self.rows]

    @classmethod
    def read(cls, path: Path) -> dict[int, "Table"]:
        """The tables of a file, by step."""
        tables: dict[int, Table] = {}
        for _, line in _read_lines(path):
            step, title, sample = line.pop("step"), line.pop("table"), _decode(line.pop("sample"))
            tables.setdefault(step, cls(step, title, tuple(sample), [], line)).rows.append(list(sample.values()))
        return tables


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    # Not synced: that costs 5 ms a line, and `state` syncs before a checkpoint counts on the lines.
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(text, values) of each line; what a crash tore off after the last whole line is left out."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, raw in enumerate(whole, start=1):
        try:
            text = raw.decode()
            lines.append((text, json.loads(text)))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not a line of JSON ({error}). Delete that line, then resume.") from None
    return lines


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's scalars as Python's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _encode(values: Mapping[str, Any]) -> dict[str, Any]:
    odd = {name: repr(x) for name, x in values.items() if isinstance(x, float) and not math.isfinite(x)}
    return {**values, **dict.fromkeys(odd), **({NOT_FINITE: odd} if odd else {})}


def _decode(values: Mapping[str, Any]) -> dict[str, Any]:
    odd = {name: float(text) for name, text in values.get(NOT_FINITE, {}).items()}
    return {name: odd.get(name, value) for name, value in values.items() if name != NOT_FINITE}


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")


# Trackers.


@dataclass(frozen=True)
class RunOfTracker:
    """How a tracker is to know the run.

    Attributes:
        id: stays the same over all sittings.
        resumed: the tracker has met this run before.
    """

    folder: Path
    project: str
    name: str
    id: str
    resumed: bool


class Tracker:
    """Something that shows a run elsewhere. Any of its methods may raise; the record takes care of that.

    Attributes:
        sent: the last step that it has; earlier ones and that one are not sent to it again.
    """

    name: str
    sent: int

    def start(self) -> str:
        """Begin, or go on. Returns the run's id."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """A point, if the tracker does not have it."""
        raise NotImplementedError

    def table(self, table: Table) -> None:
        """Most trackers have no tables; `samples.jsonl` holds them."""

    def artifact(self, folder: Path, name: str, type: str, metadata: Mapping[str, Any]) -> None:
        """Most trackers have no artifacts; the folder itself stays."""

    def recover(self) -> None:
        """Start anew after a failure, where that is possible."""
        raise RuntimeError(f"{self.name} cannot start anew")

    def close(self, exit_code: int) -> None:
        """The end of this sitting."""
        raise NotImplementedError


class WandbTracker(Tracker):
    """wandb, by its own interface.

    Online, the server says up to which step it has the run. Offline, nothing can be asked, a crash leaves a file
    that is empty or cut, `wandb sync` refuses all files if one is empty, and shifts the steps of a file that was
    written to resume another. So each offline sitting writes a file that is whole, from step 1 on, and the files
    before it are marked as if they were synced, which makes `wandb sync` leave them alone.
    """

    name = "wandb"

    def __init__(self, run: RunOfTracker, config: Mapping[str, Any], say: Callable[[str], None]):
        self.run = run
        self.config = config
        self.say = say
        self.sent = 0
        self._wandb_run: Any = None
        self._online_note = run.folder / f".wandb-online-{run.id}"

    def start(self) -> str:
        import wandb

        # wandb's own words would be a second voice in the terminal.
        mode = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
        if mode == "disabled":
            self._init(mode)
        elif mode in ("offline", "dryrun"):
            self._start_offline()
        else:
            self._start_online(mode)
        return self.run.id

    def recover(self) -> None:
        import wandb

        # A service that died cannot be told to end; a new one is started all the same.
        with suppress(Exception):
            wandb.teardown()
        self._start_offline()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if step > self.sent:
            self._wandb_run.log(dict(values), step=step, commit=True)
            self.sent = step

    def table(self, table: Table) -> None:
        import wandb

        try:
            shown = wandb.Table(columns=list(table.columns), data=table.rows)
            self.log(table.step, {**table.where, table.title: shown})
        except Exception as error:
            # A table asks the server several things at once, so it can fail where points are just kept for later.
            self.say(f"wandb: a table of {table.title} is in {SAMPLES} only: {_words(error)}")

    def artifact(self, folder: Path, name: str, type: str, metadata: Mapping[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=type, metadata=dict(metadata))
        # Immutable: uploaded from where it lies, not from a copy.
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
        self._wandb_run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        try:
            self._wandb_run.finish(exit_code=exit_code)
        except TimeoutError:
            self.say(
                f"wandb: not everything could be uploaded within {FINISH_SECONDS} s. To upload the rest: "
                f"wandb sync --include-online {self._folder()}"
            )

    def _start_online(self, mode: str) -> None:
        import wandb

        try:
            if not wandb.login(prompt=False, verify=False):
                raise LookupError("no key found; run `wandb login`, or set WANDB_API_KEY")
            self._init(mode)
        except Exception as error:
            self.say(f"wandb: {_words(error)}")
            self.recover()
        else:
            self._online_note.touch()
            self._retire_offline_files()
            self.say(f"wandb: {self._wandb_run.url}")

    def _start_offline(self) -> None:
        self._init("offline")
        self._retire_offline_files()
        if self._online_note.exists():
            # Under its own id, `wandb sync` would append the points that the server has once more.
            how = "The server has a part of this run, and gets the rest when it is resumed online. To upload another"
            command = f"wandb sync --id {self.run.id}-whole {self._folder()}"
        else:
            how, command = "To upload the run", f"wandb sync {self._folder()}"
        self.say(f"wandb: offline. {how}: {command}")

    def _init(self, mode: str) -> None:
        import wandb

        offline = mode == "offline"
        self._wandb_run = wandb.init(
            project=self.run.project,
            name=self.run.name,
            id=self.run.id,
            config=dict(self.config),
            dir=self.run.folder,
            mode=mode,
            resume=None if offline else "allow",
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self.sent = self._wandb_run.starting_step - 1

    def _retire_offline_files(self) -> None:
        for log in (self.run.folder / "wandb").glob(f"offline-run-*-{self.run.id}/*.wandb"):
            if not log.parent.samefile(self._wandb_run.settings.sync_dir):
                log.with_suffix(".wandb.synced").touch()

    def _folder(self) -> str:
        return shlex.quote(str(self._wandb_run.settings.sync_dir))


class AccelerateTracker(Tracker):
    """Any other tracker, through accelerate's class for it. It gets the numbers; words stay in `metrics.jsonl`.

    None of them can be asked what it has, so it counts as having what was written in earlier sittings: a point is
    never sent twice, and one that a tracker had not stored when its process was killed is missing there.

    Args:
        sent: the last step that was written in an earlier sitting.
    """

    def __init__(self, name: str, run: RunOfTracker, config: Mapping[str, Any], *, sent: int):
        self.name = name
        self.run = run
        self.config = config
        self.sent = sent
        self._tracker: Any = None

    def start(self) -> str:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's classes need it to have been made
        run = self.run
        options: dict[str, dict[str, Any]] = {
            "clearml": {
                "task_name": run.name,
                "reuse_last_task_id": run.id if run.resumed else False,
                "continue_last_task": 0 if run.resumed else False,  # adds nothing to the steps
            },
            "comet_ml": {"experiment_key": run.id},
            "dvclive": {"dir": str(run.folder / "dvclive"), "resume": run.resumed},
            "mlflow": {"run_name": run.name, "run_id": run.id if run.resumed else None},
            "swanlab": {"name": run.name, "id": run.id, "resume": "allow", "log_dir": str(run.folder / "swanlab")},
            "tensorboard": {"logging_dir": str(run.folder / "tensorboard")},
            "trackio": {"name": f"{run.name}-{run.id[:8]}", "resume": "allow"},
        }
        first = run.name if self.name == "tensorboard" else run.project
        self._tracker = LOGGER_TYPE_TO_CLASS[self.name](first, **options[self.name])
        self._tracker.start()
        if not run.resumed:
            self._tracker.store_init_configuration(_flat(self.config))
        # These two give the ids themselves.
        if self.name == "mlflow":
            return self._tracker.tracker.info.run_id
        return self._tracker.tracker.id if self.name == "clearml" else run.id

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: x for name, x in values.items() if isinstance(x, (int, float)) and not isinstance(x, bool)}
        if step > self.sent:
            self._tracker.log(numbers, step=step)
            self.sent = step

    def close(self, exit_code: int) -> None:
        self._tracker.finish()


def _require_tracker(name: str) -> None:
    if name not in TRACKERS:
        raise RecipeError(f"logging.report_to: found {name!r}; accepted are {', '.join(TRACKERS)}.")
    if importlib.util.find_spec(name) is None:
        raise RecipeError(
            f"logging.report_to: {name} is not installed. Install it with `pip install {name}`, or take it out of the "
            "recipe."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested values as one level with dotted names, since not every tracker takes more; others than numbers as text."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (str, int, float)) else str(value)
    return flat


# What a run needs, and what it ran with.


def memory() -> dict[str, float]:
    """Memory of this process in GiB: now, at its peak, and at its peak on the GPU where one is used."""
    import torch

    # Kilobytes, but on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    now = psutil.Process().memory_info().rss
    # The kernel notes the peak now and then only.
    peak = max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    values = {"memory/rss_gib": now / GIB, "memory/rss_peak_gib": peak / GIB}
    if torch.cuda.is_initialized():
        values["memory/cuda_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return {name: round(value, 3) for name, value in values.items()}


def environment_facts() -> dict[str, Any]:
    """What ran, as JSON values.

    - packages: name -> version, None where it is not installed;
    - python: its version;
    - git: {commit, dirty} of the checkout that holds this package; None where it is not part of one.
    """
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "git": git_facts(Path(__file__).parents[1]),
    }


def git_facts(folder: Path) -> dict[str, Any] | None:
    """{commit, dirty} of the git checkout that tracks `folder/__init__.py`; None where there is none.

    A package that was installed into a folder below some other checkout is not part of it. `dirty` says whether
    anything in `folder` differs from the commit.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
