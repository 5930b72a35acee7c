"""A run's directory: who holds it, which recipe it is of, where it goes on, how far it has come."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from coevolve.data.corpus import TRAIN_SPLIT, Corpus
from coevolve.data.ledger import digest
from coevolve.documents import read_document
from coevolve.errors import ArtifactError
from coevolve.files import write_json
from coevolve.outputs import RUN_PARTS, remove
from coevolve.prompts.play import play_prompt
from coevolve.prompts.sets import began_as, prompt_set
from coevolve.recipe import Recipe, check_recipe, recipe_values
from coevolve.recipe.rpm import RpmRecipe
from coevolve.scoring.origins import Base, Origin
from coevolve.scoring.roles import ROLES
from coevolve.training.checkpoints import Checkpoint, newest_checkpoint, read_checkpoint
from coevolve.training.distributed.processes import Interrupted, ProcessError, Processes
from coevolve.training.documents import RunFile
from coevolve.training.record.facts import PACKAGES, flat
from coevolve.training.setup import Origins
from coevolve.training.status import (
    LEASE,
    LEASE_SECONDS,
    LOCK,
    NO_LOCKS,
    RUN,
    STATUS,
    finished_checkpoints,
)

HARMLESS = (
    *("logging.", "checkpoints.", "name", "data.path", "data.hub", "model.sharded"),
    "connector_rl.least_content",  # a stop for a person to decide, who has done so
)
"""What may change between two sittings. The data's own fingerprint is compared."""

SIZES = ("per_device_train_batch_size", "gradient_checkpointing", "token_budget")
"""Endings of names that may change as well: how much is held at a time, for a device with less."""

FORMS = ("form", "full-forms-*", "export", "remid")
SEEN_SECONDS = 20.0
"""So long a shared disk may take to show a file on another machine."""

AFTER_TRAINING: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "remid.": ("remid",),
        "evaluation.marginal_samples": ("*-marginal-*", *FORMS),
        "baselines.": (),
        "export.include_base": ("export",),
        "export.license": ("export",),
        "export.": FORMS,
    }
)
"""What may change as well, with the stages to be done again: the trained pair does not."""


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint, or None to begin anew; patterns of the stages to redo, as something changed."""

    checkpoint: Checkpoint | None = None
    redo: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFolder:
    """One run's directory, as all of its processes see it; made if it is not there."""

    path: Path
    processes: Processes

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other run can use the directory until the process ends, or ArtifactError."""
        let_go = self.processes.on_main(self._take)
        try:
            self._require_one_folder()
            self.processes.on_main(self._sweep)
            yield
        finally:
            if let_go is not None:
                let_go()

    def find(self, recipe: Recipe, resume: str | Path, *, force: bool) -> ResumePoint:
        """What to go on from. Raises ArtifactError where `resume` is `never` and there is a run, or
        that is of another recipe, or all of its checkpoints are damaged.
        """
        start = self.processes.on_main(lambda: self._find(recipe, resume, force))
        known = start and start.checkpoint and (str(start.checkpoint.folder), start.redo)
        shared = self.processes.gather(known)[0]
        if start is not None or shared is None:
            return start or ResumePoint()
        # The main process has compared the hashes; the others need not do so again.
        path, redo = shared
        return ResumePoint(read_checkpoint(Path(path), verify=False), redo)

    def template_date(self, checkpoint: Checkpoint | None) -> str:
        """The day (ISO) for chat templates that show one: of the checkpoint's run, or of this."""
        folder = self.path if checkpoint is None else checkpoint.folder.parent.parent
        run = read_run(folder)[2] if (folder / RUN).is_file() else {}
        date = run.get("template_date") or datetime.date.today().isoformat()
        return self.processes.gather(date)[0]

    def begin(
        self, recipe: Recipe, origins: Origins, corpus: Corpus, date: str, start: ResumePoint
    ) -> ResumePoint:
        """Write `run.json`, or check that data, base models and adapters are still what it names
        (else ArtifactError); returns `start` with the stages that this adds.
        """
        facts = {
            "recipe": recipe_values(recipe),
            "origins": {role: asdict(origin) for role, origin in origins.items()},
            "data_fingerprint": corpus.fingerprint,
            "splits": corpus.split_fingerprints,
            "prompts": digest(words_of(recipe)),
            "template_date": date,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        redo = self.processes.on_main(lambda: self._begin(facts, origins, start.checkpoint)) or ()
        return replace(start, redo=(*start.redo, *self.processes.gather(redo)[0]))

    def say_status(self, state: str, *, stage: str, where: Mapping[str, Any], **more: Any) -> None:
        """Write `status.json` on the main process; `where` is round and phase."""
        if self.processes.main:
            self.require_there()
            phase = {name.removeprefix("coevolve/"): value for name, value in where.items()}
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            status = {"state": state, "stage": stage, **phase, **more, **_holder(), "updated": now}
            write_json(self.path / STATUS, status)

    def require_there(self) -> None:
        """Raise ArtifactError on the main process where the directory is gone, or another run's."""
        if not self.processes.main:
            return
        with contextlib.suppress(FileNotFoundError):
            held = (self.path / LOCK).read_text()
            if not held or all(json.loads(held)[name] == x for name, x in _holder().items()):
                return
        raise ArtifactError(
            f"{self.path}: was deleted or moved while the run wrote to it, and what was saved went "
            "with it. Put it back and start again to go on from there, or begin anew."
        )

    def explain(self, error: Exception) -> Exception:
        """What to raise for an error: that the directory is gone, where it comes of that."""
        if not isinstance(error, (Interrupted, ProcessError)):
            try:
                self.require_there()
            except ArtifactError as gone:
                return gone
        return error

    def say_failed(self, error: BaseException) -> None:
        """Say in `status.json` that starting again will not help, unless others ended the run."""
        if not isinstance(error, (Interrupted, ProcessError)):
            said = f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError, ArtifactError):
                self.say_status("failed", stage="", where={}, error=said)

    def _take(self) -> Callable[[], None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            why = f"cannot be written ({error.strerror}). Give a directory that can"
            raise ArtifactError(f"--output-dir {self.path}: {why}.") from None
        try:
            # Not filelock's: `status` looks at it without a right to write; it says whose it is.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                return self._take_lease()
            raise self._in_use(holder) from None
        words = json.dumps({**_holder(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        with contextlib.suppress(OSError):  # for others; the lock itself holds without them
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, words.encode(), 0)
        return partial(os.close, descriptor)

    def _sweep(self) -> None:
        """Remove what a killed process was writing, under names that nobody writes again."""
        for place in (self.path, *(self.path / part for part in RUN_PARTS)):
            for leftover in place.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    remove(leftover)

    def _require_one_folder(self) -> None:
        """Raise ArtifactError on a process that sees another directory than the main one."""
        here, rank = socket.gethostname(), self.processes.rank
        host, name = self.processes.gather((here, secrets.token_hex(8)))[0]
        token = self.path / f".seen-{name}"
        self.processes.on_main(token.touch)

        def look() -> None:
            until = time.monotonic() + SEEN_SECONDS
            while not token.exists():
                if time.monotonic() > until:
                    raise ArtifactError(
                        f"--output-dir {self.path}: what {host} writes there is not seen on {here} "
                        f"by process {rank} of {self.processes.count}. Give one on a disk that all "
                        "machines share, under one path."
                    )
                time.sleep(0.2)

        try:
            self.processes.together(look, heed_stop=False)
        finally:
            if self.processes.main:
                token.unlink(missing_ok=True)

    def _take_lease(self) -> Callable[[], None]:
        """Without locks (Lustre with noflock, some NFS): a file kept fresh by a live process."""
        path, stop = self.path / LEASE, self.processes.stop

        def lost(_: LeaseCompromise) -> None:
            stop.reason = f"another run took {self.path}, since this one could not keep its lease"

        options: Any = {"on_compromise": lost, "thread_local": False}
        lease = SoftFileLease(path, lease_duration=LEASE_SECONDS, **options)
        if path.exists():
            print_to_stderr(
                f"{self.path} is without locks; up to {LEASE_SECONDS:.0f} s to see if its last run "
                "still lives"
            )
        try:
            lease.acquire(timeout=1.2 * LEASE_SECONDS)
        except Timeout:
            with contextlib.suppress(OSError):
                raise self._in_use(" ".join(path.read_text(errors="replace").split())) from None
            raise self._in_use("unknown") from None
        return lease.release

    def _in_use(self, holder: str) -> ArtifactError:
        what_to_do = "Wait for it, stop it, or give another --output-dir."
        return ArtifactError(f"{self.path} is in use by another run: {holder}. {what_to_do}")

    def _find(self, recipe: Recipe, resume: str | Path, force: bool) -> ResumePoint:
        if resume not in ("auto", "never"):
            checkpoint, folder = read_checkpoint(Path(resume)), Path(resume).parent.parent
            return ResumePoint(checkpoint, _changed_stages(folder, checkpoint, recipe, force))
        if not (self.path / RUN).exists():
            if finished_checkpoints(self.path):
                raise ArtifactError(
                    f"{self.path} has checkpoints, but {RUN} is gone. Restore it, or give another "
                    "--output-dir."
                )
            return ResumePoint()
        if resume == "never":
            raise ArtifactError(
                f"{self.path} holds a run already. Give another --output-dir, or --resume auto to "
                "go on with it."
            )
        newest = newest_checkpoint(self.path, print_to_stderr)
        if newest is None:
            # Nothing was trained, so nothing is lost if it begins with another recipe or data.
            for name in (RUN, "base", "world"):
                remove(self.path / name)
            return ResumePoint()
        return ResumePoint(newest, _changed_stages(self.path, newest, recipe, force))

    def _begin(
        self, facts: dict[str, Any], origins: Origins, checkpoint: Checkpoint | None
    ) -> list[str]:
        """Stages that are to be done again, since their data changed."""
        if not (self.path / RUN).exists():
            write_json(self.path / RUN, facts)
            return []
        _, began, run = read_run(self.path)
        splits = _changed_splits(run, facts)
        changes: list[tuple[str, str | None, str | None]] = []
        data = "data_fingerprint"
        for role, now in origins.items():
            was, base = began[role], f"the {role}'s base model"
            changes.append((base, was.base.fingerprint, now.base.fingerprint))
            adapters = was.adapter_fingerprint, now.adapter_fingerprint
            changes.append((f"the adapter of the {role}", *adapters))
        if TRAIN_SPLIT in splits:
            changes.append(("the training data", run[data], facts[data]))
        for what, before, after in changes:
            if before != after:
                raise ArtifactError(
                    f"{self.path}: {what} changed since the run began (fingerprint {before}, now "
                    f"{after}). Put it back, or give another --output-dir. {_keeping(checkpoint)}"
                )
        renewed = {name: facts[name] for name in ("recipe", data, "splits", "prompts")}
        if any(run.get(name) != value for name, value in renewed.items()):
            write_json(self.path / RUN, {**run, **renewed})
        return [stage for split in splits for stage in _stages_of(split)]


def read_run(folder: Path) -> tuple[Recipe, Origins, dict[str, Any]]:
    """Recipe, origins and all of `run.json`; ArtifactError, RecipeError if they are of no use."""
    if not (folder / RUN).is_file():
        raise ArtifactError(
            f"{folder}: no {RUN}, so no run. Give a `coevolve train`'s --output-dir."
        )
    remedy = f"Restore {RUN} from a backup, or give another --output-dir."
    run = read_document(folder / RUN, RunFile, remedy=remedy, error=ArtifactError).values()
    # Before a role could have its own, a run had one base model.
    origins = run.get("origins") or {role: {"base": run["base"]} for role in ROLES}
    restored = {}
    for role, origin in origins.items():
        base = Base(**origin["base"])
        if base.source == "tiny":  # the run made it, and may lie elsewhere by now
            base = replace(base, path=str(folder / "base"))
        restored[role] = Origin(**{**origin, "base": base})
    # Before version 0.4 there was no reasoning dropout, and the prompt sets have the old names.
    before = {} if "rpm" in run["recipe"] else {"p_none": 0.0}
    recipe = check_recipe({**before, **run["recipe"]}, str(folder / RUN))
    if "prompts" not in run:
        recipe = recipe.model_copy(update={"prompts": began_as(recipe.prompts)})
    return recipe, restored, run


def _changed_stages(
    folder: Path, checkpoint: Checkpoint, recipe: Recipe, force: bool
) -> tuple[str, ...]:
    """Which stages are to be done again; raises ArtifactError where that would not be enough."""
    # As this version reads it: a field that is new since then has its default in both.
    began, _, run = read_run(folder)
    before, after = flat(recipe_values(began)), flat(recipe_values(recipe))
    if began.prompts == recipe.prompts:
        words = digest(words_of(recipe))
        before["prompts.words"], after["prompts.words"] = run.get("prompts", words), words
    redo: list[str] = []
    changed = []
    longer = after.get("rounds.count", 0) > before.get("rounds.count", 0)
    may_grow = longer and after.get("rounds.lr_schedule") == "phase"
    for name in sorted({*before, *after}):
        harmless = name.startswith(HARMLESS) or name.endswith(SIZES)
        if before.get(name) == after.get(name) or harmless:
            continue
        split = name.removeprefix("data.limit.")
        if split not in (name, TRAIN_SPLIT):
            redo += _stages_of(split)
        elif name.startswith(tuple(AFTER_TRAINING)):
            redo += next(again for of, again in AFTER_TRAINING.items() if name.startswith(of))
        elif name != "rounds.count" or not may_grow:
            changed.append(f"  {name}: {before.get(name)!r} -> {after.get(name)!r}\n")
    if changed and not force:
        raise ArtifactError(
            f"{folder} holds a run of another recipe; what differs is:\n{''.join(changed)}Give "
            "another --output-dir, take the change back, or give --force to go on with it from "
            f"here. {_keeping(checkpoint)}"
        )
    return tuple(redo)


def words_of(recipe: Recipe) -> dict[str, Any]:
    """All that models are shown beside the data."""
    words = prompt_set(recipe.prompts).to_dict()
    if isinstance(recipe, RpmRecipe):
        words["play"] = play_prompt(recipe.prompt, thinking=recipe.rpm.thinking).model_dump()
    return words


def _holder() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _stages_of(split: str) -> tuple[str, ...]:
    """Patterns of the stages that a test split goes into."""
    return (f"*-{split}", "remid")


def _changed_splits(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Splits whose rows have changed since the run began; all where that was not written down."""
    if before["data_fingerprint"] == after["data_fingerprint"]:
        return []
    old, new = before.get("splits", {}), after["splits"]
    return [split for split in {**new, **old} if old.get(split) != new.get(split)]


def _keeping(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return ""
    return f"The trained pair can be kept: coevolve export {checkpoint.folder} --out DIR."


def print_to_stderr(text: str) -> None:
    """Words for a person before there is a record to say them."""
    print(f"coevolve: {text}", file=sys.stderr)
