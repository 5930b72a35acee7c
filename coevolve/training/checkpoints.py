"""What a run leaves on disk on its way, and how it is read again.

    run/
      run.json           recipe, base models and adapters, data fingerprint, package versions
      status.json        whether it is running, interrupted or finished, and after what
      metrics.jsonl      every figure, a line at a time
      samples.jsonl      samples of what the models wrote, with their rewards
      traces.jsonl       the teacher's reasonings
      checkpoints/00007-round-1-estimator_sft/
        state.json       everything that is no tensor
        connector.safetensors, ...    the pair, the best pair, optimizer states, rollouts under way
        manifest.json    last: sizes and SHA-256 of the other files
      estimator/         the export
      results.json       the figures at the end

A checkpoint is written under a temporary name, synced, and renamed; so a directory with a proper
name is complete, and what the disk did to it afterwards shows in the manifest.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coevolve.documents import Model, read_document
from coevolve.errors import ArtifactError
from coevolve.files import sha256_file, sync_folder, write_json, write_text
from coevolve.scoring.roles import Role, Weights
from coevolve.training.documents import STATE, CheckpointManifest, CheckpointState, RoleName
from coevolve.training.status import CHECKPOINTS, finished_checkpoints, number_of

MANIFEST = "manifest.json"
FORMAT = "coevolve-checkpoint"
VERSION = 1
REMEDY = "Use another checkpoint."

Written = dict[int, tuple[Weights, str, dict[str, Any]]]
"""Of a checkpoint: id of the weights -> the weights (so that the id stays theirs), file, hash."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read and undamaged. `tensors`: file's stem -> name -> CPU tensor."""

    folder: Path
    state: CheckpointState
    tensors: dict[str, dict[str, Tensor]]

    def require_fit(self, train: int, held_out: int, pair: Mapping[Role, Weights]) -> None:
        """Raise ArtifactError unless it is of as many examples, and of models like `pair`."""
        held: list[tuple[str, Any, int]] = [("training", self.state, train)]
        held += [("held-out (probe)", self.state.probe, held_out)]
        held += [("held-out (gate)", self.state.gate, held_out)]
        for what, part, expected in held:
            if part is not None and len(part.reasoning) != expected:
                count = len(part.reasoning)
                raise ArtifactError(
                    f"{self.folder}: is of {count} {what} examples, and the run has {expected}. "
                    f"{REMEDY}"
                )
        for role, weights in pair.items():
            file = self.folder / f"{role}.safetensors"
            _require_alike(file, self.tensors[role], weights, "the model")


@dataclass
class CheckpointWriter:
    """Writes checkpoints on the main process; keeps the newest `keep`, and the newest best."""

    folder: Path
    keep: int
    seconds_taken: float = 0.0
    """By the last one."""
    _written: Written = field(default_factory=dict)
    _last: Path = Path()
    _done: float = field(default_factory=time.monotonic)

    @property
    def seconds_since(self) -> float:
        """Since the last one, or since the run began or went on."""
        return time.monotonic() - self._done

    def write(
        self, name: str, state: Mapping[str, Any], tensors: Mapping[str, Weights], *, best: bool
    ) -> Path:
        """Write a checkpoint named after what was just done; `best`: its pair is the best so far.

        A group of `tensors` that is the same object as one written before is linked, not written.
        Raises ArtifactError where it cannot be written; older checkpoints are as they were.
        """
        began, root = time.monotonic(), self.folder / CHECKPOINTS
        number = max(map(number_of, finished_checkpoints(self.folder)), default=0) + 1
        final = root / f"{number:05d}-{name}"
        temporary = root / f".{final.name}.tmp"
        try:
            root.mkdir(parents=True, exist_ok=True)
            for leftover in root.glob(".*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir()
            files: dict[str, Any] = {}
            written: Written = {}
            for group, weights in tensors.items():
                path = temporary / f"{group}.safetensors"
                description = self._link(path, weights, written)
                if description is None:
                    save_file({name: x.contiguous() for name, x in weights.items()}, path)
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
                    description = _described(path)
                files[path.name] = description
                written[id(weights)] = (weights, path.name, description)
            # A figure that is gathered for the log may be NaN; Python reads its own NaN back.
            write_text(temporary / STATE, json.dumps(state, ensure_ascii=False))
            files[STATE] = _described(temporary / STATE)
            marks = {"format": FORMAT, "version": VERSION}
            write_json(temporary / MANIFEST, {**marks, "name": name, "best": best, "files": files})
            sync_folder(temporary)
            temporary.rename(final)
            sync_folder(root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise ArtifactError(
                f"{final}: the checkpoint could not be written ({error}). Make room, and start "
                "again."
            ) from None
        self._last, self._written = final, written
        self._prune()
        self._done = time.monotonic()
        self.seconds_taken = self._done - began
        return final

    def _link(self, path: Path, weights: Weights, written: Written) -> dict[str, Any] | None:
        """Link a group that is written already, here or in the last checkpoint; None if not."""
        for folder, groups in ((path.parent, written), (self._last, self._written)):
            _, name, description = groups.get(id(weights), (None, "", None))
            if description is not None and (folder / name).is_file():
                try:
                    os.link(folder / name, path)
                    return description
                except OSError:
                    return None  # a file system without hard links
        return None

    def _prune(self) -> None:
        complete, best = finished_checkpoints(self.folder), []
        for path in complete:
            with suppress(ArtifactError):  # a damaged one is of no use as the best
                best += [path] if _read(path / MANIFEST, CheckpointManifest).best else []
        for path in set(complete[: -self.keep]) - set(best[-1:]):
            # Renamed first: what is deleted halfway must not look like a checkpoint. What cannot be
            # deleted is no reason to stop; `write` tries again.
            doomed = path.with_name(f".{path.name}.tmp")
            with suppress(OSError):
                path.rename(doomed)
                shutil.rmtree(doomed)


def newest_checkpoint(
    folder: Path, say: Callable[[str], None], *, before: Checkpoint | None = None
) -> Checkpoint | None:
    """The newest undamaged checkpoint older than `before`; what is wrong with newer ones is said.

    Raises ArtifactError if there are checkpoints, and every one is damaged.
    """
    complete = finished_checkpoints(folder)[::-1]
    for path in complete:
        if before is not None and number_of(path) >= number_of(before.folder):
            continue
        try:
            checkpoint = read_checkpoint(path)
        except ArtifactError as error:
            say(f"damaged checkpoint, not used: {error}")
            continue
        if path != complete[0]:
            say(f"lost: what was done after {path.name}; it will be done again")
        return checkpoint
    if complete:
        damaged = f"all {len(complete)} checkpoints are damaged"
        where = folder / CHECKPOINTS
        raise ArtifactError(f"{where}: {damaged}. Restore one, or give a new --output-dir.")
    return None


def read_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """A checkpoint whose files fit its manifest and state; ArtifactError names one that does not.

    Sizes are always compared, hashes if `verify`.
    """
    if not os.path.lexists(path / MANIFEST):
        missing = "missing, so this is no complete checkpoint"
        raise ArtifactError(f"{path / MANIFEST}: {missing}. {REMEDY}")
    manifest = _read(path / MANIFEST, CheckpointManifest)
    if STATE not in manifest.files:
        raise ArtifactError(f"{path / MANIFEST}: files: {STATE} is missing. {REMEDY}")
    tensors = {}
    for name, expected in manifest.files.items():
        file = path / name
        try:
            if not file.is_file():
                raise ArtifactError(f"{file}: listed in the manifest but missing. {REMEDY}")
            size = file.stat().st_size
            if size != expected.bytes:
                told = f"{size} bytes, {expected.bytes} by the manifest"
                raise ArtifactError(f"{file}: {told}. {REMEDY}")
            if verify and sha256_file(file) != expected.sha256:
                raise ArtifactError(f"{file}: its SHA-256 differs from the manifest's. {REMEDY}")
            if name != STATE:
                tensors[name.removesuffix(".safetensors")] = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{file}: cannot be read ({error}). {REMEDY}") from None
    state = _read(path / STATE, CheckpointState)
    _require_tensors(path, state, tensors)
    return Checkpoint(path, state, tensors)


def _read(path: Path, model: type[Model]) -> Model:
    return read_document(path, model, remedy=REMEDY, error=ArtifactError)


def _require_tensors(path: Path, state: CheckpointState, tensors: Mapping[str, Weights]) -> None:
    """Raise ArtifactError unless the weights to go on with are there, alike and finite."""
    held = {"": True, "best-": state.gate is not None, "cold-": "cold-start-gate" in state.done}
    held |= {"direct-": "cold-start-direct" in state.done, "trained-": "trained" in state.done}
    for role in get_args(RoleName):
        for group in [f"{prefix}{role}" for prefix, there in held.items() if there]:
            file, weights = path / f"{group}.safetensors", tensors.get(group)
            if not weights:
                raise ArtifactError(f"{file}: missing, although the run has come past it. {REMEDY}")
            _require_alike(file, weights, tensors[role], f"{role}.safetensors")
            odd = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
            if odd:
                raise ArtifactError(f"{file}: {odd[0]!r} has entries that are no numbers. {REMEDY}")


def _require_alike(file: Path, weights: Weights, others: Weights, whose: str) -> None:
    def shape(of: Weights, name: str) -> Any:
        return tuple(of[name].shape) if name in of else "missing"

    for name in sorted({*weights, *others}):
        here, there = shape(weights, name), shape(others, name)
        if here != there:
            raise ArtifactError(f"{file}: {name!r} is {here}, in {whose} {there}. {REMEDY}")


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
