"""Trackers that show a run elsewhere: wandb by its own interface, the others by accelerate's."""

import importlib.metadata
import importlib.util
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from coevolve.errors import RecipeError
from coevolve.libraries.accelerate import TRACKER_CLASSES
from coevolve.training.record.facts import flat
from coevolve.training.record.lines import SAMPLES, Table

TRACKERS = (
    *("clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"),
)
"""What `report_to` may name: transformers takes it, accelerate has it. Each is its package."""

WandbMode = Literal["online", "offline", "disabled", "shared"]

PROJECT = "coevolve"
"""Where runs go that nothing else gives a project."""

INIT_SECONDS = 30
"""wandb's server has so long to answer before the run goes on offline."""

FINISH_SECONDS = 600
"""wandb has so long to upload what is left at the end; then the run says how to do it by hand."""


@dataclass(frozen=True)
class RunOfTracker:
    """How a tracker is to know the run; `id` stays over all sittings, `resumed`: it has met it."""

    folder: Path
    project: str
    name: str
    id: str
    resumed: bool
    entity: str | None = None

    def as_in(self, environ: Mapping[str, str], *, project: str | None) -> "RunOfTracker":
        """As wandb's own variables have it, where the recipe's `project` is silent."""
        return replace(
            self,
            project=project or environ.get("WANDB_PROJECT") or self.project,
            name=environ.get("WANDB_NAME") or self.name,
            entity=environ.get("WANDB_ENTITY") or None,
        )


class Tracker:
    """Shows a run elsewhere, up to step `sent`. Its methods may raise; the record sees to that."""

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

    Online, the server says up to which step it has the run. Offline, nothing can be asked, a crash
    leaves a file that is empty or cut, `wandb sync` refuses all files if one is empty, and shifts
    the steps of a file that was written to resume another. So each offline sitting writes a file
    that is whole, from step 1 on, and the files before it are marked as if they were synced, which
    makes `wandb sync` leave them alone.
    """

    name = "wandb"

    def __init__(self, run: RunOfTracker, config: Mapping[str, Any], say: Callable[[str], None]):
        self.run, self.config, self.say, self.sent = run, config, say, 0
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
            self._start_online("shared" if mode == "shared" else "online")
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
            # A table asks the server several things, so it can fail where points are kept.
            self.say(f"wandb: a table of {table.title} is in {SAMPLES} only: {in_words(error)}")

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
            what_to_do = f"To upload the rest: wandb sync --include-online {self._folder()}"
            self.say(f"wandb: not all was uploaded within {FINISH_SECONDS} s. {what_to_do}")

    def _start_online(self, mode: WandbMode) -> None:
        import wandb

        try:
            if not wandb.login(prompt=False, verify=False):
                raise LookupError("no key found; run `wandb login`, or set WANDB_API_KEY")
            self._init(mode)
        except Exception as error:
            self.say(f"wandb: {in_words(error)}")
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
            how = (
                "The server has a part of this run, and gets the rest when it is resumed online. "
                "To upload another"
            )
            command = f"wandb sync --id {self.run.id}-whole {self._folder()}"
        else:
            how, command = "To upload the run", f"wandb sync {self._folder()}"
        self.say(f"wandb: offline. {how}: {command}")

    def _init(self, mode: WandbMode) -> None:
        import wandb

        offline = mode == "offline"
        self._wandb_run = wandb.init(
            entity=self.run.entity,
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
    """Any other tracker, through accelerate's class for it. It gets the numbers; words stay in
    `metrics.jsonl`.

    But for trackio, they cannot be asked what they have, and count as having what was written in
    earlier sittings, up to `sent`: no point is sent twice, and one not stored when its process was
    killed is missing there.
    """

    def __init__(self, name: str, run: RunOfTracker, config: Mapping[str, Any], *, sent: int):
        self.name, self.run, self.config, self.sent = name, run, config, sent
        self._tracker: Any = None

    def start(self) -> str:
        from accelerate import PartialState

        PartialState()  # accelerate's classes need it to have been made
        run = self.run
        kept = {"resume": "allow", "log_dir": str(run.folder / "swanlab")}
        options: dict[str, dict[str, Any]] = {
            "clearml": {
                "task_name": run.name,
                "reuse_last_task_id": run.id if run.resumed else False,
                "continue_last_task": 0 if run.resumed else False,  # adds nothing to the steps
            },
            "comet_ml": {"experiment_key": run.id},
            "dvclive": {"dir": str(run.folder / "dvclive"), "resume": run.resumed},
            "mlflow": {"run_name": run.name, "run_id": run.id if run.resumed else None},
            "swanlab": {**kept, "id": run.id, "name": run.name},
            "tensorboard": {"logging_dir": str(run.folder / "tensorboard")},
            "trackio": {"name": f"{run.name}-{run.id[:8]}", "resume": "allow"},
        }
        first = run.name if self.name == "tensorboard" else run.project
        self._tracker = TRACKER_CLASSES.find()[self.name](first, **options[self.name])
        self._tracker.start()
        if not run.resumed:
            # Not every tracker takes more than one level, or others than numbers and text.
            level, plain = flat(self.config).items(), (str, int, float)
            config = {name: x if isinstance(x, plain) else str(x) for name, x in level}
            self._tracker.store_init_configuration(config)
        if self.name == "trackio" and self._tracker.tracker.url is None:  # on this machine
            from trackio.sqlite_storage import SQLiteStorage

            stored = SQLiteStorage.get_max_step_for_run(run.project, self._tracker.tracker.name)
            self.sent = stored or 0
        # These two give the ids themselves.
        if self.name == "mlflow":
            return self._tracker.tracker.info.run_id
        return self._tracker.tracker.id if self.name == "clearml" else run.id

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: x for name, x in values.items() if type(x) in (int, float)}
        if step > self.sent:
            self._tracker.log(numbers, step=step)
            self.sent = step

    def close(self, exit_code: int) -> None:
        self._tracker.finish()


def require_tracker(name: str) -> None:
    if name not in TRACKERS:
        raise RecipeError(f"logging.report_to: found {name!r}; accepted are {', '.join(TRACKERS)}.")
    if importlib.util.find_spec(name) is None:
        raise RecipeError(
            f"logging.report_to: {name} is not installed. Run `pip install {name}`, or take it out "
            "of the recipe."
        )


def in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
