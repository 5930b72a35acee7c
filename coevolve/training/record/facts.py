"""What a run needs, and what it ran with."""

import importlib.metadata
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    *("coevolve", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets"),
)
"""What training stands on."""

GIB = 2**30


def memory() -> dict[str, float]:
    """Memory of this process in GiB: now, at its peak, and at its peak on a GPU in use."""
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
    """What ran, as JSON values: versions of packages, Python, and `git_facts` of this package."""
    return {
        "packages": {name: _version(name) for name in (*PACKAGES, "wandb")},
        "python": sys.version.split()[0],
        "git": git_facts(Path(__file__).parents[2]),
    }


def git_facts(folder: Path) -> dict[str, Any] | None:
    """{commit, dirty} of the git checkout that tracks `folder/__init__.py`, dirty if `folder`
    differs; None where none does, as for a package that is installed below some other checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
        return {"commit": commit, "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level, with dotted names."""
    level: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            level |= flat(value, f"{prefix}{name}.")
        else:
            level[f"{prefix}{name}"] = value
    return level
