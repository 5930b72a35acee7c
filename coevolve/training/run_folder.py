"""The directory of a run: who holds it, which recipe it is of, where it goes on, and how far it has come."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coevolve.errors import ArtifactError, DataError
from coevolve.files import read_json, write_json
from coevolve.recipe import Recipe, check_recipe, recipe_values
from coevolve.scoring.origins import Base, Origin
from coevolve.scoring.roles import ROLES
from coevolve.training.checkpoints import CHECKPOINTS, Checkpoint, newest_checkpoint, read_checkpoint
from coevolve.training.distributed.processes import Interrupted, ProcessError, Processes
from coevolve.training.distributed.stopping import INTERRUPTED
from coevolve.training.setup import Origins

RUN = "run.json"
STATUS = "status.json"
LOCK = ".lock"
PACKAGES = ("coevolve", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets")

HARMLESS = ("logging.", "checkpoints.", "name")
"""What may change between two sittings: it does not touch what is trained."""


class RunFolder:
    """One run's directory, as all of its processes see it.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path, processes: Processes):
        self.path = path
        self.processes = processes

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other run can use the directory. The system ends the hold with the process, however that ends.

        Raises:
            ArtifactError: another run holds it; it is named. Or the directory cannot be written.
        """
        lock = self.processes.on_main(self._take)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def find(self, recipe: Recipe, resume: str | Path, *, force: bool) -> Checkpoint | None:
        """The checkpoint to go on from; None to begin anew.

        Raises:
            ArtifactError: the directory holds a run and `resume` is `never`, or its recipe is another one, or its
                checkpoints are damaged.
        """
        found = self.processes.on_main(lambda: self._find(recipe, resume, force))
        path = self.processes.gather(None if found is None else str(found.folder))[0]
        if path is None or found is not None:
            return found
        # The main process has compared the hashes; the others need not do so again.
        return read_checkpoint(Path(path), verify=False)

    def begin(self, recipe: Recipe, origins: Origins, data_fingerprint: str) -> None:
        """Write `run.json`, or check that what it names is still what it was.

        Raises:
            ArtifactError: the data, a base model or an adapter has changed since the run began.
        """
        self.processes.on_main(lambda: self._begin(recipe, origins, data_fingerprint))

    def say_status(self, state: str, *, stage: str, where: Mapping[str, Any], **more: Any) -> None:
        """Write `status.json` on the main process.

        Args:
            state: `running`, `interrupted`, `failed` or `finished`.
            stage: what is being done.
        """
        if self.processes.main:
            place = {name.removeprefix("coevolve/"): value for name, value in where.items()}
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            status = {"state": state, "stage": stage, **place, **more, **_holder(), "updated": now}
            write_json(self.path / STATUS, status)

    def say_failed(self, error: Exception) -> None:
        """Write to `status.json` that starting again will not help, as it does where a process was stopped or died."""
        if not isinstance(error, (Interrupted, ProcessError)):
            with contextlib.suppress(OSError):
                self.say_status("failed", stage="", where={}, error=f"{type(error).__name__}: {error}")

    def _take(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ArtifactError(
                f"--output-dir {self.path}: cannot be written ({error.strerror}). Give a directory that can."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise ArtifactError(
                f"{self.path} is in use by another run: {holder}. Wait for it, stop it, or give another --output-dir."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({**_holder(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode(), 0)
        return descriptor

    def _find(self, recipe: Recipe, resume: str | Path, force: bool) -> Checkpoint | None:
        if resume not in ("auto", "never"):
            checkpoint = read_checkpoint(Path(resume))
            self._compare(Path(resume).parent.parent, recipe, force)
            return checkpoint
        if not (self.path / RUN).exists():
            return None
        if resume == "never":
            raise ArtifactError(
                f"{self.path} holds a run already. Give another --output-dir, delete that one, or leave --resume at "
                "auto to go on with it."
            )
        self._compare(self.path, recipe, force)
        checkpoint = newest_checkpoint(self.path, print_to_stderr)
        if checkpoint is not None and force:
            write_json(self.path / RUN, {**read_json(self.path / RUN), "recipe": recipe_values(recipe)})
        return checkpoint

    def _compare(self, folder: Path, recipe: Recipe, force: bool) -> None:
        before, after = _flat(read_run(folder)[2]["recipe"]), _flat(recipe_values(recipe))
        changed = [
            name
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
            and not name.startswith(HARMLESS)
            and not (name == "rounds.count" and after[name] > before[name] and after["rounds.lr_schedule"] == "phase")
        ]
        if changed and not force:
            lines = "\n".join(f"  {name}: {before.get(name)!r} -> {after.get(name)!r}" for name in changed)
            raise ArtifactError(
                f"{folder} holds a run of another recipe; what differs is:\n{lines}\n"
                "Give another --output-dir, take the change back, or give --force to go on with it from here."
            )

    def _begin(self, recipe: Recipe, origins: Origins, data_fingerprint: str) -> None:
        if not (self.path / RUN).exists():
            write_json(
                self.path / RUN,
                {
                    "recipe": recipe_values(recipe),
                    "origins": {role: asdict(origin) for role, origin in origins.items()},
                    "data_fingerprint": data_fingerprint,
                    "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                },
            )
            return
        _, began, run = read_run(self.path)
        changes = [("the data", run["data_fingerprint"], data_fingerprint)]
        for role, now in origins.items():
            before = began[role]
            changes.append((f"the {role}'s base model", before.base.fingerprint, now.base.fingerprint))
            changes.append((f"the adapter of the {role}", before.adapter_fingerprint, now.adapter_fingerprint))
        for what, before, after in changes:
            if before != after:
                raise ArtifactError(
                    f"{self.path}: {what} changed since the run began (fingerprint {before}, now {after}). Put it "
                    "back, or give another --output-dir."
                )


def read_run(folder: Path) -> tuple[Recipe, Origins, dict[str, Any]]:
    """The recipe, what the roles started from, and the rest of `run.json`.

    Raises:
        ArtifactError: there is no run in the folder.
    """
    if not (folder / RUN).is_file():
        raise ArtifactError(f"{folder}: no {RUN}, so no run of coevolve. Give the --output-dir of a `coevolve train`.")
    run = read_json(folder / RUN)
    # Before a role could have its own, a run had one base model.
    origins = run.get("origins") or {role: {"base": run["base"]} for role in ROLES}
    return (
        check_recipe(run["recipe"], str(folder / RUN)),
        {role: Origin(**{**origin, "base": Base(**origin["base"])}) for role, origin in origins.items()},
        run,
    )


def read_status(folder: Path) -> dict[str, Any]:
    """What `status.json` says, with `state` put right where the process was killed before it could say so.

    Raises:
        ArtifactError: there is no run in the folder.
    """
    if not (folder / RUN).is_file() and not (folder / STATUS).is_file():
        raise ArtifactError(f"{folder}: no run of coevolve. Give the --output-dir of a `coevolve train`.")
    try:
        status = read_json(folder / STATUS)
    except DataError:
        status = {"state": "running"}
    if status["state"] == "running" and not _is_held(folder):
        status["state"] = "killed"
    status["checkpoints"] = sorted(path.name for path in (folder / CHECKPOINTS).glob("[0-9]*"))
    return status


def status_code(status: Mapping[str, Any]) -> int:
    """Exit status for a script: 0 finished, 1 failed, 3 running, 75 to be started again (interrupted or killed)."""
    return {"finished": 0, "failed": 1, "running": 3}.get(status["state"], INTERRUPTED)


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _holder() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def print_to_stderr(text: str) -> None:
    """Words for a person before there is a record to say them."""
    print(f"coevolve: {text}", file=sys.stderr)
