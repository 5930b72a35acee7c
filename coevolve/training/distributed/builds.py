"""The lock of a helper that DeepSpeed has torch compile at its first use.

torch waits for it without a word and for ever, and a process that is killed while it compiles
leaves it there.
"""

import os
import sys
import time
from pathlib import Path

from coevolve.errors import RecipeError

QUIET_SECONDS = 60.0
"""A build in which no file has changed for so long is over."""


def wait_for_builds(root: Path | None = None) -> None:
    """Return when nothing is being compiled; raises RecipeError, which names the lock, where it was
    left behind.
    """
    told = False
    for lock in _locks(root or _root()):
        while lock.exists():
            if time.time() - _changed(lock.parent) > QUIET_SECONDS:
                raise RecipeError(
                    f"{lock}: another process compiles a helper of DeepSpeed, or was killed while "
                    f"it did; nothing has changed there for {QUIET_SECONDS:.0f} s. Delete this "
                    "file, and start again."
                )
            if not told:
                print(f"coevolve: waiting for a build: {lock}", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.5)


def _root() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _locks(root: Path) -> list[Path]:
    return sorted([*root.glob("*/lock"), *root.glob("*/*/lock")])


def _changed(folder: Path) -> float:
    """When a file of the folder changed last."""
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # gone meanwhile
            times.append(time.time())
    return max(times)
