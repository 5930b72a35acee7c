"""How far a run has come, read from its directory without loading anything heavy."""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from coevolve.documents import Document, read_document
from coevolve.errors import ArtifactError
from coevolve.training.distributed.stopping import INTERRUPTED

RUN = "run.json"
STATUS = "status.json"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
LEASE = ".lease"
"""In the lock's place where the filesystem has none; its holder touches it while it lives."""
LEASE_SECONDS = 60.0
"""A lease that was not touched for so long has no holder any more."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What flock fails with where the filesystem has none."""

_CHECKPOINT = re.compile(r"([0-9]{5,9})-[A-Za-z0-9_.+-]+")


class Status(Document):
    """`status.json`: where a run said last that it is."""

    state: Literal["running", "interrupted", "failed", "finished"]
    """As the run itself knows it."""
    stage: str
    """What is being done, or was; empty at the end."""
    round: int | None = None
    """Of the stage, if it is in one."""
    phase: str | None = None
    """Of the stage, if it is one."""
    checkpoint: str | None = None
    """What an interrupted run goes on from."""
    reason: str | None = None
    """Why it was interrupted."""
    error: str | None = None
    """Why it failed."""
    host: str | None = None
    """Where it runs, or ran."""
    pid: int | None = None
    """Of its first process there."""
    updated: str | None = None
    """When this was written."""


def read_status(folder: Path) -> dict[str, Any]:
    """What `status.json` says, put right where the process was killed before it could. A damaged
    file is `note`d, the state then what the lock tells. Raises ArtifactError where there is no run.
    """
    if not (folder / RUN).is_file() and not (folder / STATUS).is_file():
        raise ArtifactError(
            f"{folder}: no run of coevolve. Give the --output-dir of a `coevolve train`."
        )
    status: dict[str, Any] = {"state": "running"}
    if (folder / STATUS).exists():
        try:
            remedy = "The run itself goes on from its checkpoints."
            status = read_document(
                folder / STATUS, Status, remedy=remedy, error=ArtifactError
            ).values()
        except ArtifactError as error:
            status["note"] = str(error)
    if status["state"] == "running" and not is_held(folder):
        status["state"] = "killed"
    with contextlib.suppress(ArtifactError):
        status["checkpoints"] = [path.name for path in finished_checkpoints(folder)]
    return status


def status_code(status: Mapping[str, Any]) -> int:
    """Exit status for a script: 0 finished, 1 failed, 3 running, 75 interrupted or killed."""
    return {"finished": 0, "failed": 1, "running": 3}.get(status["state"], INTERRUPTED)


def is_held(folder: Path) -> bool:
    """Whether a process holds the run's lock; yes for who may not look, to let the run alone."""
    try:
        # Looking takes no right to write. Nor does it wait, whatever may lie under that name.
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return isinstance(error, PermissionError)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS or _is_fresh(folder / LEASE)
    finally:
        os.close(descriptor)
    return False


def _is_fresh(lease: Path) -> bool:
    try:
        return abs(time.time() - lease.stat().st_mtime) < 2 * LEASE_SECONDS  # clocks may differ
    except OSError:
        return False


def finished_checkpoints(folder: Path) -> list[Path]:
    """A run's finished checkpoints, oldest first; ArtifactError where nobody can tell."""
    root = folder / CHECKPOINTS
    try:
        entries = root.iterdir() if folder.is_dir() and os.path.lexists(root) else ()
        named = [path for path in entries if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
        return sorted(named, key=lambda path: (number_of(path), path.name))
    except OSError as error:
        raise ArtifactError(
            f"{root}: cannot be read ({error.strerror}). Mend that, or give another --output-dir."
        ) from None


def number_of(checkpoint: Path) -> int:
    """The number that a checkpoint's name begins with."""
    return int(checkpoint.name.partition("-")[0])
