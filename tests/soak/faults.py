"""What strikes a run, and when; all drawn from a seed."""

import os
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from coevolve.training.distributed.stopping import INTERRUPTED
from tests.soak.servers import Teacher, Wandb
from tests.soak.sitting import Sitting

KILL, TERM, FULL, TEACHER, TRACKER = "SIGKILL", "asked to stop", "disk full", "teacher", "tracker"
RANK, BOTH, CHANGED = "a rank killed", "both killed", "number of processes changed"

ALONE = {KILL: 40, TERM: 20, FULL: 15, TEACHER: 13, TRACKER: 12}
SHARED = {RANK: 45, BOTH: 25, TERM: 30}
"""Of a hundred faults, about so many of each kind."""

WITH_VLLM = {KILL: 100}
"""The engine does not know what else is amiss."""

LONGEST_DELAY = 0.6
"""Seconds between the place where a fault is due and the fault: about two rounds, or a start."""
FEW_STAGES = 50
"""More than a run does in `LONGEST_DELAY`."""
LEAVES_WITHIN = 30.0
"""Seconds within which a run that was asked to stop has saved and gone."""
MOST_SECONDS = 600.0
"""No sitting of a world so small takes longer."""
DISK_MIB = 96


@dataclass(frozen=True)
class Fault:
    """Strikes `delay` seconds after stage number `at` has begun, or at once where that is past."""

    kind: str
    at: int
    delay: float
    detail: str = ""


def drawn(
    kinds: dict[str, int],
    count: int,
    stages: Sequence[str],
    rng: random.Random,
    longest: float = LONGEST_DELAY,
) -> list[Fault]:
    """So many faults over a run of these stages, in their order, with `longest` as delay.

    The teacher's strike where it is asked: at the start, and where the oracle is measured.
    """
    oracle = next(place for place, name in enumerate(stages) if name.startswith("oracle"))
    names = [name for name, share in kinds.items() for _ in range(max(1, count * share // 100))]
    names = [*names, *[next(iter(kinds))] * count][:count]
    faults, teachers = [], names.count(TEACHER)
    for name in names:
        at, detail = rng.randrange(-1, len(stages)), ""
        if name == TEACHER:
            # Where it is but busy it is asked to the end, so that comes last.
            teachers -= 1
            at, passing = (-1, oracle - 1)[teachers % 2], teachers < 2
            detail = rng.choice(("busy", "cut") if passing else ("slow", "broken", "gone"))
        elif name == TRACKER:
            detail = rng.choice(("not there", "goes away"))
        elif name == TERM:
            detail = rng.choice(("SIGTERM", "SIGUSR1"))
        elif name == RANK:
            detail = rng.choice("01")
        faults.append(Fault(name, at, rng.uniform(0, longest), detail))
    return sorted(faults, key=lambda fault: (fault.at, fault.kind != TEACHER))


@dataclass
class Disturbed:
    """A run, sitting after sitting, and what was seen of it."""

    folder: Path
    arguments: Sequence[str]
    stages: Sequence[str]
    teacher: Teacher
    wandb: Wandb
    rng: random.Random
    struck: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sittings: int = 0
    largest: tuple[float, int] = (0.0, 0)
    """MiB of memory and open files of any sitting on one process."""
    slowest_stop: float = 0.0
    processes: int = 0
    """Of the last sitting."""

    @property
    def traces(self) -> Path:
        """Is there when no trace of a training example is missing."""
        return self.folder / "traces.kept.json"

    def go_on(self, *, processes: int = 1, tracker: str = "") -> Sitting:
        """Begin another sitting. `tracker`: whether it reports to W&B, and how that is."""
        environ, told = {}, []
        if tracker:
            there = self.wandb.environ["WANDB_BASE_URL"]
            address = "http://127.0.0.1:9" if tracker == "not there" else there
            home = {name: str(self.folder.parent / "home") for name in ("HOME", "WANDB_CACHE_DIR")}
            environ = {**home, **self.wandb.environ, "WANDB_BASE_URL": address}
            told = ["logging.report_to=[wandb]"]
        if self.processes not in (0, processes):
            self.struck[CHANGED] += 1
        self.processes, self.sittings = processes, self.sittings + 1
        log = self.folder.parent / f"{self.folder.name}-{self.sittings:04d}.log"
        arguments = [*self.arguments, *told]
        return Sitting.start(arguments, self.folder, log, processes=processes, environ=environ)

    def suffer(self, faults: Sequence[Fault], *, shared: bool = False) -> None:
        """All of them, in sittings; the last one is left to its end."""
        asked = next(place for place, name in enumerate(self.stages) if name.startswith("oracle"))
        for fault in faults:
            # Nobody needs the teacher between the two places where it is asked.
            needed = not self.traces.exists() or fault.at > asked - FEW_STAGES
            self.teacher.become("fine" if needed else "gone")
            if fault.kind == TEACHER:
                self.teacher.become(fault.detail)
            number = (2 if fault.kind in (RANK, BOTH) else self.rng.choice((1, 2))) if shared else 1
            sitting = self.go_on(
                processes=number, tracker=fault.detail if fault.kind == TRACKER else ""
            )
            try:
                early = self._wait_for(sitting, fault)
                self._strike(sitting, fault, early)
            finally:
                sitting.kill()
                self.wandb.ask("up")
        self.teacher.become("fine")
        self.finish("fine" if not shared else "")

    def finish(self, tracker: str) -> None:
        """A last sitting that nothing strikes."""
        sitting = self.go_on(tracker=tracker)
        codes = sitting.wait(MOST_SECONDS)
        if codes != [0]:
            self._note(sitting, "the last sitting", f"ended with {codes}")
        sitting.kill()

    def _wait_for(self, sitting: Sitting, fault: Fault) -> list[int] | None:
        """Wait until the fault is due; the exit statuses, where the sitting ends before."""
        until = time.monotonic() + MOST_SECONDS
        while time.monotonic() < until:
            codes = sitting.wait(0.01)
            if codes is not None:
                return codes
            if fault.at < 0 or self._place(sitting) >= fault.at:
                return sitting.wait(fault.delay)
        self._note(sitting, fault.kind, f"did not come to {self.stages[fault.at]}")
        return None

    def _place(self, sitting: Sitting) -> int:
        stage = sitting.stage()
        return self.stages.index(stage) if stage in self.stages else -1

    def _strike(self, sitting: Sitting, fault: Fault, early: list[int] | None) -> None:
        if fault.kind == TEACHER:
            self._without_teacher(sitting, fault, early)
            return
        if early is not None:
            if any(early):
                self._note(sitting, f"before {fault.kind}", f"ended with {early}")
            return  # it came to its end first, which is no fault
        size, files = sitting.footprint()
        if len(sitting.children) == 1 and fault.kind != TRACKER:
            self.largest = max(self.largest[0], size), max(self.largest[1], files)
        if fault.kind in (KILL, BOTH):
            sitting.send(signal.SIGKILL)
            self._expect(sitting, fault, {-signal.SIGKILL}, within=LEAVES_WITHIN)
        elif fault.kind == TERM:
            began = time.monotonic()
            sitting.send(getattr(signal, fault.detail))
            self._expect(sitting, fault, {INTERRUPTED}, within=LEAVES_WITHIN)
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - began)
        elif fault.kind == RANK:
            sitting.send(signal.SIGKILL, int(fault.detail))
            # The other one finds out by itself, and says so: 2 with a message, or 70 out of a call.
            self._expect(sitting, fault, {-signal.SIGKILL, 2, 70}, within=120)
        elif fault.kind == FULL:
            with full_disk(sitting, self.folder):
                self._expect(sitting, fault, {2}, within=120)
        elif fault.kind == TRACKER:
            if fault.detail == "goes away":
                self.wandb.ask("down")
            self.struck[fault.kind] += 1
            time.sleep(2 * fault.delay)
            sitting.send(self.rng.choice((signal.SIGKILL, signal.SIGTERM)))
            codes = sitting.wait(LEAVES_WITHIN + 20)
            if codes is None or codes[0] not in (0, -signal.SIGKILL, INTERRUPTED):
                self._note(sitting, fault.kind, f"ended with {codes}")

    def _without_teacher(self, sitting: Sitting, fault: Fault, early: list[int] | None) -> None:
        """It is slow or busy, which must not end the run, or out of order, which must in words."""
        codes = early or sitting.wait(20 if fault.detail in ("broken", "gone") else 2)
        if fault.detail == "gone" or self.teacher.refused():
            self.struck[fault.kind] += 1
        if codes is None:
            sitting.kill()
        elif not {*codes} <= ({0, 2} if fault.detail in ("broken", "gone") else {0}):
            self._note(sitting, f"teacher {fault.detail}", f"ended with {codes}")

    def _expect(self, sitting: Sitting, fault: Fault, codes: set[int], *, within: float) -> None:
        found = sitting.wait(within)
        what = f"{fault.kind} {fault.detail}".strip()
        if found is None:
            self._note(sitting, what, f"still there after {within:.0f} s")
        elif not {*found} <= {*codes, 0}:
            self._note(sitting, what, f"ended with {found}")
        elif any(found):
            self.struck[fault.kind] += 1
            said = sitting.log.read_text(errors="replace")
            if "Traceback" in said:
                self._note(sitting, what, "a traceback is shown")

    def _note(self, sitting: Sitting, what: str, how: str) -> None:
        tail = sitting.log.read_text(errors="replace")[-1500:]
        self.wrong.append(f"sitting {self.sittings} ({sitting.log.name}), {what}: {how}\n{tail}")


@contextmanager
def full_disk(sitting: Sitting, folder: Path) -> Iterator[None]:
    """Inside, nothing more can be written to the folder; the disk is its own,
    or files are limited.
    """
    if not os.path.ismount(folder.parent):
        for child in sitting.children:
            with suppress(ProcessLookupError):
                resource.prlimit(child, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        yield
        return
    balloon = folder.parent / "balloon"
    try:
        with open(balloon, "wb", buffering=0) as file:
            with suppress(OSError):
                for size in (1 << 20, 1 << 12, 1):
                    with suppress(OSError):
                        while file.write(b"\0" * size) == size:
                            pass
            yield
    finally:
        balloon.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A folder on a disk that can be filled without harm, where this process may mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
