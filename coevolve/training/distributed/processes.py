"""The processes of one run: who this one is, work spread over all of them, and agreement on when to
leave.

Work that differs from process to process must not fail or stop on one of them alone: the others
would wait for it in the next collective call for ever. `together` is the way: every process learns
how the others fared before any goes on.

Nor may it take long on one of them alone: a collective call ends the run when the backend's timeout
is over (gloo 30 minutes, NCCL 10). So processes meet by asking the launcher's store, which waits
for as long as all of them live, and only then enter the call.
"""

import contextlib
import os
import pickle
import socket
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from coevolve.errors import CoevolveError
from coevolve.scoring.divided import Parts
from coevolve.training.distributed.stopping import LOST, Stop, StopRequested

T = TypeVar("T")

BEAT_SECONDS = 2.0
"""How often a process says that it is alive."""

SILENT_SECONDS = 40.0
"""Silent for so long, a process is taken for dead. Long C++ calls let the beat go on."""

LONGEST_PAUSE = 0.2
"""Seconds between two looks whether the others have come."""

LAST_SECONDS = 25.0
"""So long the other processes wait for the main one to come to its end."""


class Interrupted(Exception):
    """All processes agreed to save and leave."""


class ProcessError(CoevolveError, RuntimeError):
    """Another process of the run failed."""


class Processes:
    """This process among the others of the run; rank 0, the main one, alone writes and speaks."""

    def __init__(self, device: torch.device, stop: Stop):
        self.device = device
        self.stop = stop
        self.distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.distributed else 0
        self.count = dist.get_world_size() if self.distributed else 1
        self._heartbeat = Heartbeat(self.rank, self.count, stop) if self.count > 1 else None
        self._pools = 0
        self.parts: Parts | None = None
        if self._heartbeat is not None:
            stop.share(self._heartbeat.store)

    def share_base(self) -> Parts | None:
        """What divides bases among all processes; None where there is one. A collective call."""
        if self.count > 1 and self.parts is None:
            undisturbed = partial(self.stop.raising, False)
            self.parts = Parts(self.device, undisturbed, StopRequested)
        return self.parts

    @property
    def main(self) -> bool:
        return self.rank == 0

    def together(self, work: Callable[[], T], *, heed_stop: bool = True) -> T:
        """Do this process's part of a common piece of work, and go on only if all did theirs.

        Raises:
            Interrupted: a process was asked to stop (if heeded, also while it worked to the end).
            ProcessError: the work failed on another process; its own error is raised there.
        """
        result: Any
        result, failure, left = None, None, False
        try:
            result = work()
        except StopRequested:
            left = True
        except Exception as error:
            failure = error
            self.stop.tell(f"process {self.rank} failed")  # so that the others' work ends early
        left = left or (heed_stop and self.stop.requested)
        failed, leave = self._any(failure is not None, left)
        if failed:
            said = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
            if failure is not None:
                raise failure
            rank = next(rank for rank, text in enumerate(said) if text is not None)
            raise ProcessError(f"process {rank} of {self.count} failed: {said[rank]}")
        if leave:
            raise Interrupted
        return result

    def agree(self, *flags: bool, heed_stop: bool = True) -> tuple[bool, ...]:
        """For each flag whether any process has it; Interrupted if one was asked to stop."""
        leave, *found = self._any(heed_stop and self.stop.requested, *flags)
        if leave:
            raise Interrupted
        return tuple(found)

    def _any(self, *flags: bool) -> tuple[bool, ...]:
        if self.count == 1:
            return flags
        self._meet()
        values = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return tuple(map(bool, values))

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Let the main process do what the others must not run ahead of; they get None."""
        return self.together(lambda: work() if self.main else None, heed_stop=False)

    def on_main_first(self, work: Callable[[], T]) -> T:
        """Let every process do the same, the others when the main one has left its files."""
        result: Any = self.on_main(work)
        return self.together(lambda: result if self.main else work(), heed_stop=False)

    def distribute(
        self, costs: Sequence[float], work: Callable[[list[int]], Sequence[T]]
    ) -> list[T]:
        """Results of all items, in order and on every process, each item worked on by one process.

        The shares cost about the same; `work` gives one result for each index of this one's share.
        """
        share = shares(costs, self.count)[self.rank]
        results = self.together(lambda: list(work(share)))
        if self.count == 1:
            return results
        everything: list[Any] = [None] * len(costs)
        for indices, values in self.gather((share, results)):
            for index, value in zip(indices, values, strict=True):
                everything[index] = value
        return everything

    def pooled(self, own: Iterable[T]) -> Iterator[T]:
        """On the main process what every one's `own` yields, as it comes; nothing on the others.
        Asked to stop, it still yields what the others have. To be used up inside `together`; what
        is yielded is finished, so it polls.
        """
        if self._heartbeat is None:
            for item in own:
                yield item
                self.stop.poll()
            return
        self._pools += 1
        store, place = self._heartbeat.store, f"pool/{self._pools}"
        if not self.main:
            sent = 0
            try:
                for item in own:
                    sent += 1
                    text = b64encode(pickle.dumps(item)).decode()
                    store.set(f"{place}/{self.rank}/{sent}", text)
                    self.stop.poll()
            finally:
                store.set(f"{place}/{self.rank}/all", str(sent))
            return
        come, stopped = dict.fromkeys(range(1, self.count), 0), None
        try:
            for item in own:
                yield item
                yield from _arrived(store, place, come)
                self.stop.poll()
        except StopRequested as asked:
            stopped = asked
        while come:
            ends = [f"{place}/{rank}/{n}" for rank, of in come.items() for n in (of + 1, "all")]
            self._heartbeat.wait(partial(_any_in, store, ends))
            yield from _arrived(store, place, come)
        if stopped is not None:
            raise stopped

    def explain(self, error: Exception) -> Exception:
        """What to raise for an error in a collective call: another process's death, if any."""
        if self._heartbeat is None or isinstance(error, CoevolveError):
            return error
        lost = self._heartbeat.find_lost(within=4 * BEAT_SECONDS)
        if lost is None:
            return error
        if not self.main:
            # The main process, which speaks for all, may be the one that is gone.
            self._heartbeat.say_leaving(lost)
        return ProcessError(lost)

    def close(self, error: BaseException | None = None) -> None:
        """Tell the others that this process leaves, and why."""
        if self._heartbeat is not None:
            self._heartbeat.stop(None if error is None else f"{type(error).__name__}: {error}")
            if error is None and not self.main:
                # When one process leaves, launchers end the others; the main one has files open.
                with contextlib.suppress(Exception):
                    self._heartbeat.store.wait(["left/0"], timedelta(seconds=LAST_SECONDS))
            self._heartbeat = None

    def _meet(self) -> None:
        """Return when all processes have come here, however long that takes them."""
        if self.parts is not None:
            self.parts.serve()
        if self._heartbeat is not None:
            self._heartbeat.meet()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, on every process."""
        if self.count == 1:
            return [value]
        self._meet()
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def _any_in(store: dist.Store, keys: Sequence[str]) -> bool:
    return any(store.check([key]) for key in keys)


def _arrived(store: dist.Store, place: str, come: dict[int, int]) -> Iterator[Any]:
    """What other processes have sent; `come` is how much each did, without those that sent all."""
    for rank, number in list(come.items()):
        while store.check([key := f"{place}/{rank}/{number + 1}"]):
            number += 1
            come[rank] = number
            item = pickle.loads(b64decode(store.get(key)))
            store.delete_key(key)
            yield item
        end = f"{place}/{rank}/all"
        if store.check([end]) and int(store.get(end)) == number:
            del come[rank]


def shares(costs: Sequence[float], count: int) -> list[list[int]]:
    """Items in `count` shares of about the same cost, each ascending: the dearest first, to the
    least busy. The result depends on nothing but the arguments.
    """
    if count == 1:
        return [list(range(len(costs)))]
    loads = [0.0] * count
    members: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(count), key=lambda share: (loads[share], share))
        loads[least] += costs[index]
        members[least].append(index)
    return [sorted(indices) for indices in members]


_STORE_GONE = "process 0 of the run, or the launcher that holds its store, is gone ({error})"


class Heartbeat:
    """A thread that says that this process lives, and ends it when another one died or failed.

    A collective call cannot be left from Python, so a process whose peer is gone would hang in it;
    hence `os._exit`.
    """

    def __init__(self, rank: int, count: int, stop: Stop):
        self.rank, self.count, self._stop = rank, count, stop
        self.store = self._connect()
        # A client of its own: a call that waits must not hold up those of another thread.
        self._thread_store = self._connect()
        self._leaving = threading.Event()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._met = 0
        self._say_alive()
        self._thread = threading.Thread(target=self._watch, name="coevolve-heartbeat", daemon=True)
        self._thread.start()

    def _connect(self) -> dist.Store:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
        )
        # After a restart by the launcher the store still has old messages.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"coevolve/{restarts}", store)

    def meet(self) -> None:
        """Return when every process has called this as often; ProcessError: one of them is lost."""
        self._met += 1
        key = f"met/{self._met}"
        self.store.add(key, 1)
        self.wait(lambda: self.store.add(key, 0) >= self.count)
        if self.rank == 0:  # all have come here, so nobody looks at the last one any more
            self.store.delete_key(f"met/{self._met - 1}")

    def wait(self, over: Callable[[], bool]) -> None:
        """Return when something is `over`; ProcessError: another process is lost."""
        pause, looked = 0.0, time.monotonic()
        while not over():
            time.sleep(pause)
            pause = min(2 * pause + 1e-4, LONGEST_PAUSE)
            if time.monotonic() - looked > BEAT_SECONDS:
                looked = time.monotonic()
                lost = self._lost(silent=SILENT_SECONDS)
                if lost is not None and not over():
                    raise ProcessError(lost)

    def stop(self, error: str | None) -> None:
        self._leaving.set()
        # Python ends threads as it ends; one that is in a call of C++ then takes the process along.
        self._thread.join(timeout=2 * BEAT_SECONDS)
        said = f"{self._place()} failed: {error}" if error else "done"
        with contextlib.suppress(Exception):  # it may have gone with the process that held it
            self.store.set(f"left/{self.rank}", said)

    def find_lost(self, within: float) -> str | None:
        """Who failed or fell silent, in words; waits up to `within` seconds to find out."""
        until = time.monotonic() + within
        while True:
            try:
                lost = self._lost(silent=within / 2)
            except dist.DistError as error:
                return _STORE_GONE.format(error=type(error).__name__)
            if lost is not None or time.monotonic() > until:
                return lost
            time.sleep(0.2)

    def _watch(self) -> None:
        while not self._leaving.wait(BEAT_SECONDS):
            try:
                self._say_alive()
                if self._stop.reason is not None:  # which the main thread may be too busy to tell
                    self._thread_store.set("stop", self._stop.reason)
                lost = self._lost(silent=SILENT_SECONDS)
            except dist.DistError as error:
                lost = _STORE_GONE.format(error=type(error).__name__)
            if lost is not None and not self._leaving.wait(2 * BEAT_SECONDS):
                # Still here: the main thread hangs in a collective call and will never say it.
                self.say_leaving(lost)
                os._exit(LOST)

    def say_leaving(self, lost: str) -> None:
        said = f"coevolve: {lost}. Process {self.rank} leaves. Start again to resume."
        print(said, file=sys.stderr, flush=True)

    def _say_alive(self) -> None:
        self._thread_store.set(f"beat/{self.rank}", f"{self._place()}|{time.time()}")

    def _lost(self, silent: float) -> str | None:
        now, store = time.monotonic(), self._thread_store
        for rank in range(self.count):
            if rank == self.rank:
                continue
            if store.check([f"left/{rank}"]):
                said = store.get(f"left/{rank}").decode()
                if said != "done":
                    return said
                continue
            if not store.check([f"beat/{rank}"]):
                continue  # still starting
            beat = store.get(f"beat/{rank}")
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = (beat, now)
            elif now - self._seen[rank][1] > silent:
                place = beat.decode().partition("|")[0]
                return f"{place} stopped answering; it was killed, or its machine is gone"
        return None

    def _place(self) -> str:
        where = f"host {socket.gethostname()}, pid {os.getpid()}"
        return f"process {self.rank} of {self.count} ({where})"
