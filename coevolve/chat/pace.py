"""Requests in threads: so many at a time, so many a minute, and left when the run is to be left."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from coevolve.chat.base import Poll

POLL_SECONDS = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pace:
    """Lets requests begin no faster than so many a minute, none before a server is ready again."""

    def __init__(self, per_minute: float | None):
        self._interval = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Return when a request may begin, or at once when `stop` is set."""
        if stop.is_set():
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._interval
        stop.wait(begin - now)

    def hold(self, seconds: float) -> None:
        """No request begins for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], count: int, poll: Poll
) -> Iterator[Result]:
    """Results as they come. Unlike an executor's, these threads do not hold up Ctrl-C."""
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[Future[Result]] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def serve() -> None:
        with suppress(Empty):
            while True:
                item, future = waiting.get_nowait(), Future[Result]()
                try:
                    future.set_result(work(item))
                except BaseException as error:
                    future.set_exception(error)
                done.put(future)

    for _ in range(min(count, len(items))):
        threading.Thread(target=serve, name="endpoint", daemon=True).start()
    for _ in items:
        try:
            future = _next_of(done, poll)
        except BaseException:  # to be left, with what has come
            while not done.empty():
                yield done.get().result()
            raise
        yield future.result()


def _next_of(queue: SimpleQueue[Item], poll: Poll) -> Item:
    while True:
        poll()
        with suppress(Empty):
            return queue.get(timeout=POLL_SECONDS)
