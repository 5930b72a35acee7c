"""Runs inputs in processes of their own, so that a hang or a crash costs one input and the rest
goes on.
"""

import faulthandler
import gc
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.core import (
    CRASH,
    HANG,
    HARNESS,
    NOTES,
    PROJECT,
    WRONG,
    Area,
    Case,
    FailedError,
    RefusedError,
    Result,
)
from tests.fuzz.core import REFUSED_VALID as REFUSED

BUSY, IDLE = 0.8, 0.05
"""An input that worked for this part of its seconds has had them, and so has one that did next to
nothing for as long; one in between waits for a busy machine, and is given more.
"""
UNTOUCHED = 0.03
"""The share of inputs that are given as they are: a harness that refused everything would find
nothing.
"""


@dataclass(frozen=True)
class Limits:
    """What an input may cost.

    Attributes:
        seconds: of work, or of doing nothing; a busy machine is not its fault.
        most: seconds by the clock, in any case, as a multiple of `seconds`.
        room: bytes of memory more than the libraries take; beyond them Python raises MemoryError.
        inputs: after so many a process makes room for a new one.
    """

    seconds: float = 10.0
    most: float = 12.0
    room: int = 3 << 29
    inputs: int = 2000


_fork = multiprocessing.get_context("fork")


def schedule(areas: Sequence[Area]) -> list[Area]:
    """A hundred places or so, each area as often as its share says,
    well mixed and always the same.
    """
    places = [area for area in areas for _ in range(area.share)]
    random.Random(0).shuffle(places)
    return places


def indices(areas: Sequence[Area], count: int, only: str | None) -> Iterator[tuple[int, Area]]:
    """The first `count` inputs, of one area where `only` is given: (index, area)."""
    places = schedule(areas)
    found = index = 0
    while found < count:
        area = places[index % len(places)]
        if only in (None, area.name):
            yield index, area
            found += 1
        index += 1


def run_case(area: Area, seed: int, index: int, valid: Any, folder: Path) -> Result:
    """One input, from its seed to its verdict. An exception that leaves this is a fault of the
    harness.
    """
    rng = random.Random(f"{seed}:{area.name}:{index}")
    case = Case(area.name, index, rng, folder, valid, untouched=rng.random() < UNTOUCHED)
    began, kind, accepted, mark, detail = _processor_time(), None, True, "", ""
    try:
        try:
            area.run(case)
        except RefusedError as error:
            accepted, detail = False, str(error)
            if case.untouched:
                raise FailedError(REFUSED, detail.replace(str(folder), "")[:80], detail) from None
        case.check_untouched_inputs()
    except FailedError as error:
        kind, mark, detail = error.kind, error.signature, error.detail
    except Exception as error:
        if not case.answered:
            raise
        # What was accepted is so odd that the oracle stumbles over it.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind, mark = WRONG, f"an oracle cannot read it: {type(error).__name__} in {frame.name}"
        detail = traceback.format_exc()
    did = "; ".join(case.did) or "as it is"
    return Result(area.name, index, kind, accepted, mark, detail, did, _processor_time() - began)


def _processor_time() -> float:
    """Of this process and of those that it started and waited for."""
    times = os.times()
    return sum(times[:4])


@dataclass
class _Worker:
    process: Any
    connection: Connection
    log: Path
    under_way: tuple[int, Area] | None = None
    since: float = 0.0
    cpu: float = 0.0
    done: int = 0


def run_all(
    areas: Sequence[Area],
    todo: Sequence[tuple[int, Area]],
    seed: int,
    valid: Any,
    *,
    limits: Limits,
    processes: int,
    keep: Path | None,
    report: Callable[[Result], None],
) -> None:
    """Run the inputs and tell of each.

    Args:
        keep: where the folders of failed inputs go; None deletes them.
    """
    root = Path(tempfile.mkdtemp(prefix="coevolve-fuzz-"))
    work = _Work(root, {area.name: area for area in areas}, seed, valid, limits, keep)
    gc.collect()
    gc.freeze()
    queue = list(reversed(todo))
    workers: list[_Worker] = []
    try:
        while queue or any(worker.under_way for worker in workers):
            workers = [worker for worker in workers if worker.under_way or _goes_on(worker, limits)]
            while queue and len(workers) < processes:
                workers.append(_start(work))
            for worker in workers:
                if worker.under_way is None and queue:
                    _give(worker, queue.pop())
            ready = wait([worker.connection for worker in workers], timeout=0.5)
            for worker in workers:
                result = (
                    _received(worker) if worker.connection in ready else _overdue(worker, limits)
                )
                if result is not None:
                    if result.kind in (HANG, CRASH):
                        result = work.told(worker.process.pid, result)
                    worker.under_way = None
                    report(result)
    finally:
        for worker in workers:
            _stop(worker)
        shutil.rmtree(root, onerror=_unlock)


def _goes_on(worker: _Worker, limits: Limits) -> bool:
    if worker.process.is_alive() and worker.done < limits.inputs:
        return True
    _stop(worker)
    return False


def _stop(worker: _Worker) -> None:
    """End a worker, and what it has started that has not ended."""
    with suppress(psutil.Error):
        for child in psutil.Process(worker.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    worker.process.kill()
    worker.process.join()


def _start(work: "_Work") -> _Worker:
    here, there = _fork.Pipe()
    log = Path(tempfile.mkstemp(dir=work.root, suffix=".log")[1])
    process = _fork.Process(target=work.live, args=(there, log), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, log)


def _give(worker: _Worker, item: tuple[int, Area]) -> None:
    worker.under_way, worker.since, worker.done = item, time.monotonic(), worker.done + 1
    worker.cpu = _cpu(worker)
    worker.connection.send((item[0], item[1].name))


def _received(worker: _Worker) -> Result | None:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        if worker.under_way is None:
            return None
        said = worker.log.read_text(errors="replace")
        (index, area), code = worker.under_way, worker.process.exitcode
        name = signal.Signals(-code).name if code and code < 0 else f"exit status {code}"
        return Result(area.name, index, CRASH, False, f"{name}{_where(said)}", said[:2500])


def _overdue(worker: _Worker, limits: Limits) -> Result | None:
    """A hang, if the input has had its seconds; its process is ended then."""
    passed = time.monotonic() - worker.since
    if worker.under_way is None or passed < limits.seconds:
        return None
    used = _cpu(worker) - worker.cpu
    if (
        used > BUSY * limits.seconds
        or used < IDLE * passed
        or passed > limits.most * limits.seconds
    ):
        return _hung(worker, limits)
    return None


def _hung(worker: _Worker, limits: Limits) -> Result:
    with suppress(ProcessLookupError):
        os.kill(worker.process.pid, signal.SIGUSR2)  # writes where it is to the log
        time.sleep(0.3)
    _stop(worker)
    said = worker.log.read_text(errors="replace")
    index, area = worker.under_way
    return Result(
        area.name, index, HANG, False, f"over {limits.seconds:.0f} s{_where(said)}", said[:2500]
    )


def _cpu(worker: _Worker) -> float:
    """Seconds of processor time of a worker, and of what it started, ended or not."""
    used = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(worker.process.pid)
        times = process.cpu_times()
        used = times.user + times.system + times.children_user + times.children_system
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                used += sum(child.cpu_times()[:2])
    return used


def _where(said: str) -> str:
    """The innermost place in the project of a traceback that faulthandler wrote: it begins with the
    innermost.
    """
    for line in said.splitlines():
        if f'"{PROJECT}/' in line:
            file, _, rest = line.partition(f"{PROJECT}/")[2].partition('"')
            return f" in {file}:{rest.rpartition(' in ')[2]}"
    return ""


@dataclass
class _Work:
    """What a worker needs to know, and its life: indices in, results out."""

    root: Path
    areas: Mapping[str, Area]
    seed: int
    valid: Any
    limits: Limits
    keep: Path | None

    def live(self, connection: Connection, log: Path) -> None:
        file = open(log, "w")  # noqa: SIM115 (for as long as the process lives)
        faulthandler.enable(file=file)
        faulthandler.register(signal.SIGUSR2, file=file)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size = psutil.Process().memory_info().vms + self.limits.room
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        folder = self.folder(os.getpid())
        while True:
            try:
                index, name = connection.recv()
            except EOFError:
                return
            try:
                if folder.exists():  # a server's thread may have noted the last request late
                    shutil.rmtree(folder, onerror=_unlock)
                folder.mkdir()
                result = run_case(self.areas[name], self.seed, index, self.valid, folder)
            except Exception as error:
                mark = (
                    f"{type(error).__name__} in "
                    f"{traceback.extract_tb(error.__traceback__)[-1].name}"
                )
                result = Result(name, index, HARNESS, False, mark, traceback.format_exc())
            self.dispose(folder, result)
            connection.send(replace(result, detail=result.detail[-4000:]))

    def folder(self, pid: int) -> Path:
        """Of the inputs of one worker, one after the other."""
        return self.root / f"case-{pid}"

    def told(self, pid: int, result: Result) -> Result:
        """The result with what a process that is gone had noted; its folder is disposed of."""
        notes = self.folder(pid) / NOTES
        did = "; ".join(notes.read_text("utf-8", "replace").splitlines()) if notes.is_file() else ""
        self.dispose(self.folder(pid), result)
        return replace(result, did=did)

    def dispose(self, folder: Path, result: Result) -> None:
        """Delete an input's folder, or move it to where failed ones are kept."""
        if self.keep is not None and result.kind is not None and folder.exists():
            place = self.keep / f"{result.area}-{self.seed}-{result.index}".replace(" ", "-")
            shutil.rmtree(place, onerror=_unlock)
            self.keep.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                shutil.move(folder, place)
        shutil.rmtree(folder, onerror=_unlock)


def _unlock(function: Callable[..., Any], path: str, _: Any) -> None:
    """What an input made unreadable can be deleted all the same."""
    with suppress(OSError):
        for part in (Path(path).parent, Path(path)):
            if not part.is_symlink():
                part.chmod(stat.S_IRWXU)
        function(path)


def in_a_process(function: Callable[[], Any]) -> None:
    """Call it in a process of its own: threads that it starts, and memory that it takes, are not
    inherited.
    """
    process = _fork.Process(target=function)
    process.start()
    process.join()
