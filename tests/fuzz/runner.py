"""Runs inputs in processes of their own, so that a hang or a crash costs one input and the rest goes on."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.core import CRASH, HANG, HARNESS, WRONG, Area, Case, FailedError, RefusedError, Result
from tests.fuzz.core import REFUSED_VALID as REFUSED

HANG_SECONDS = 10.0
BUSY = 0.8
"""A process that worked for this part of the time has had its seconds; so has one that did nothing. One in between
waits for a busy machine, and is given more."""
IDLE = 0.05
MOST_SECONDS = 120.0
ROOM = 3 << 30
"""Bytes of memory that an input may take; beyond them Python raises MemoryError, which is a foreign exception."""
UNTOUCHED = 0.03
"""The share of inputs that are given as they are: a harness that refused everything would find nothing."""

_fork = multiprocessing.get_context("fork")


def schedule(areas: Sequence[Area]) -> list[Area]:
    """A hundred places or so, each area as often as its share says, well mixed and always the same."""
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
    """One input, from its seed to its verdict. An exception that leaves this is a fault of the harness."""
    rng = random.Random(f"{seed}:{area.name}:{index}")
    case = Case(area.name, index, rng, folder, valid, untouched=rng.random() < UNTOUCHED)
    began, kind, accepted, mark, detail = time.monotonic(), None, True, "", ""
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
    return Result(area.name, index, kind, accepted, mark, detail, did, time.monotonic() - began)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    log: Path
    under_way: tuple[int, Area] | None = None
    since: float = 0.0
    cpu: float = 0.0
    looked: float = 0.0


def run_all(
    todo: Sequence[tuple[int, Area]],
    seed: int,
    valid: Any,
    *,
    processes: int,
    keep: Path | None,
    report: Callable[[Result], None],
) -> None:
    """Run the inputs and tell of each.

    Args:
        keep: where the folders of failed inputs go; None deletes them.
    """
    root = Path(tempfile.mkdtemp(prefix="coevolve-fuzz-"))
    gc.collect()
    gc.freeze()
    queue = list(reversed(todo))
    workers: list[_Worker] = []
    try:
        while queue or any(worker.under_way for worker in workers):
            workers = [worker for worker in workers if worker.process.is_alive() or worker.under_way]
            while queue and len(workers) < processes:
                workers.append(_start(root, seed, valid, keep))
            for worker in workers:
                if worker.under_way is None and queue:
                    _give(worker, queue.pop())
            ready = wait([worker.connection for worker in workers], timeout=0.5)
            for worker in workers:
                result = _received(worker) if worker.connection in ready else _overdue(worker)
                if result is not None:
                    if result.kind in (HANG, CRASH):
                        _dispose(_folder_of(root, worker.process.pid), keep, seed, result)
                    worker.under_way = None
                    report(result)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
        shutil.rmtree(root, onerror=_unlock)


def _start(root: Path, seed: int, valid: Any, keep: Path | None) -> _Worker:
    here, there = _fork.Pipe()
    log = Path(tempfile.mkstemp(dir=root, suffix=".log")[1])
    process = _fork.Process(target=_work, args=(there, root, log, seed, valid, keep), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, log)


def _give(worker: _Worker, item: tuple[int, Area]) -> None:
    worker.under_way, worker.since = item, time.monotonic()
    worker.cpu, worker.looked = _cpu(worker), worker.since
    worker.connection.send((item[0], item[1].name))


def _received(worker: _Worker) -> Result | None:
    try:
        return worker.connection.recv()
    except EOFError:
        worker.process.join()
        if worker.under_way is None:
            return None
        said = worker.log.read_text(errors="replace")
        (index, area), code = worker.under_way, worker.process.exitcode
        name = signal.Signals(-code).name if code and code < 0 else f"exit status {code}"
        return Result(area.name, index, CRASH, False, f"{name}{_where(said)}", said[-2500:])


def _overdue(worker: _Worker) -> Result | None:
    """A hang, if the input has had its seconds; its process is ended then."""
    now = time.monotonic()
    if worker.under_way is None or now - worker.looked < HANG_SECONDS:
        return None
    used = (_cpu(worker) - worker.cpu) / (now - worker.looked)
    if IDLE < used < BUSY and now - worker.since < MOST_SECONDS:
        return None if now - worker.since < HANG_SECONDS / used else _hung(worker)
    return _hung(worker)


def _hung(worker: _Worker) -> Result:
    with suppress(ProcessLookupError):
        os.kill(worker.process.pid, signal.SIGUSR2)  # writes where it is to the log
        time.sleep(0.3)
    worker.process.kill()
    worker.process.join()
    said = worker.log.read_text(errors="replace")
    index, area = worker.under_way
    seconds = time.monotonic() - worker.since
    return Result(area.name, index, HANG, False, f"over {HANG_SECONDS:.0f} s{_where(said)}", said[-2500:], "", seconds)


def _cpu(worker: _Worker) -> float:
    try:
        times = psutil.Process(worker.process.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _where(said: str) -> str:
    """The innermost place in the project of a traceback that faulthandler wrote: it begins with the innermost."""
    for line in said.splitlines():
        if "/coevolve/" in line:
            file, _, rest = line.rpartition("/coevolve/")[2].partition('"')
            return f" in {file}:{rest.rpartition(' in ')[2]}"
    return ""


def _work(connection: Connection, root: Path, log: Path, seed: int, valid: Any, keep: Path | None) -> None:
    """A worker's life: indices in, results out."""
    from tests.fuzz.areas import AREAS

    areas = {area.name: area for area in AREAS}
    file = open(log, "w")  # noqa: SIM115 (for as long as the process lives)
    faulthandler.enable(file=file)
    faulthandler.register(signal.SIGUSR2, file=file)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _limit_memory()
    folder = _folder_of(root, os.getpid())
    while True:
        try:
            index, name = connection.recv()
        except EOFError:
            return
        try:
            folder.mkdir()
            result = run_case(areas[name], seed, index, valid, folder)
            _dispose(folder, keep, seed, result)
        except Exception as error:
            mark = f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}"
            result = Result(name, index, HARNESS, False, mark, traceback.format_exc())
        connection.send(replace(result, detail=result.detail[-4000:]))


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _folder_of(root: Path, pid: int) -> Path:
    return root / f"case-{pid}"


def _dispose(folder: Path, keep: Path | None, seed: int, result: Result) -> None:
    """Delete an input's folder, or move it to where failed ones are kept."""
    if keep is not None and result.kind is not None and folder.exists():
        place = keep / f"{result.area}-{seed}-{result.index}"
        shutil.rmtree(place, onerror=_unlock)
        keep.mkdir(parents=True, exist_ok=True)
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
    """Call it in a process of its own: threads that it starts, and memory that it takes, are not inherited."""
    process = _fork.Process(target=function)
    process.start()
    process.join()
