"""Leaving in time: a signal or a deadline asks a command to stop. Training looks whether it was
asked; work that cannot look, and leaves nothing half done, is left where the signal finds it.

Slurm warns with SIGUSR1 or SIGTERM, torchrun passes on to its workers what ends it, a terminal that
is closed sends SIGHUP, a person presses Ctrl-C: all mean "save and go". A second one means "go": at
once, with the last checkpoint untouched, since a checkpoint becomes one only by the rename at its
end.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coevolve.errors import RecipeError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

INTERRUPTED = 75
"""Exit status of a run that was asked to stop, saved, and can go on (EX_TEMPFAIL)."""

LOST = 70
"""Exit status of a process that leaves because another one is gone (EX_SOFTWARE)."""

ORPHAN_SECONDS = 1.0
"""How often a process looks whether its launcher lives."""

SAME_SECONDS = 1.0
"""Signals so close are one warning: Slurm may send it to a process and to its launcher."""

ASK_SECONDS = 0.5
"""How often the other processes are asked whether one of them was told to stop."""


class StopRequested(BaseException):
    """Raised in the midst of work, by `poll` or a signal; no Exception, as it is no fault."""


class Stop:
    """Whether the command was asked to stop, and by what; after `deadline` seconds by itself."""

    def __init__(self, deadline: float | None = None):
        self.reason: str | None = None
        self._until: float | None = None
        self._raises = False
        if deadline is not None:
            self.end_after(deadline)
        self._store: Any = None
        self._next_question = 0.0
        self._asked = 0.0

    def end_after(self, seconds: float) -> None:
        """Ask by itself so many seconds from now."""
        self._until = time.monotonic() + seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals ask this object to stop; not those that are ignored (`nohup`)."""
        here = threading.current_thread() is threading.main_thread()  # the only one that may
        heard = [
            number for number in SIGNALS if here and signal.getsignal(number) != signal.SIG_IGN
        ]
        previous = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def raising(self, at_once: bool = True) -> Iterator[None]:
        """Inside, a signal raises StopRequested where it finds the main thread, or does not."""
        before, self._raises = self._raises, at_once
        try:
            if at_once and self.reason is not None:
                raise StopRequested
            yield
        finally:
            self._raises = before

    def share(self, store: Any) -> None:
        """Tell the other processes, and learn from them, through a torch.distributed store."""
        self._store = store

    def tell(self, reason: str) -> None:
        """Have the other processes leave what they are at."""
        if self._store is not None:
            self._store.set("stop", reason)

    @property
    def requested(self) -> bool:
        """Whether to stop. Cheap enough to be asked between any two tokens."""
        now = time.monotonic()
        if self.reason is None and self._until is not None and now >= self._until:
            self.reason = "the deadline"
        if self._store is not None and now >= self._next_question:
            self._next_question = now + ASK_SECONDS
            if self.reason is not None:
                self.tell(self.reason)
                self._store = None
            elif self._store.check(["stop"]):
                self.reason = self._store.get("stop").decode()
                self._store = None
        return self.reason is not None

    def poll(self) -> None:
        """Raise StopRequested if it is time to stop."""
        if self.requested:
            raise StopRequested

    def _on_signal(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.reason is None:
            self._asked = now
        elif now - self._asked >= SAME_SECONDS:
            # No clean-up: whatever is being written keeps its temporary name.
            os.write(2, f"coevolve: {name} again, leaving at once\n".encode())
            os._exit(128 + number)
        self.reason = self.reason or name
        self._next_question = 0.0
        if self._raises:
            raise StopRequested


def end_with_launcher(stop: Stop) -> None:
    """From now on, end this process when the one that started it is gone: what is started in its
    place goes on from what was saved, and this must not write beside that. One that was asked to
    stop before is let save and leave.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        time.sleep(ORPHAN_SECONDS)  # who ended the launcher may be about to tell this process
        if stop.reason is None:
            said = f"coevolve: its launcher (pid {parent}) is gone. Process {os.getpid()} leaves"
            os.write(2, f"{said}, with what was saved before; start again to resume.\n".encode())
            os._exit(LOST)

    threading.Thread(target=watch, name="coevolve-launcher", daemon=True).start()


def seconds_of(text: str) -> float:
    """Seconds of `3h50m`, `90m`, `45s`, `1d2h`, or a plain number; else RecipeError."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise RecipeError(
            f"--deadline {text!r}: accepted is for example 3h50m, 90m, 45s, or seconds."
        )
    return sum(float(number) * units[unit] for number, unit in parts)
