"""How long a chat template may compute.

A template is a program that came with a model. The sandbox that transformers runs it in limits how
long a range is, but not how many of them stand inside one another, so one that is damaged, or meant
ill, never ends.

The limit is counted in processor time of this process, not by the clock: neither a busy machine nor
one that was put to sleep uses it up. It holds in the main thread, where signals arrive, and on
Unix; in other threads there is none. A single long step in C (a text of 10^9 characters, say) is
let through to its end. It costs about 10 microseconds; a short template takes 60, and tokenising
what it renders a thousand.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 3.0


class _ExpiredError(BaseException):
    """No Exception, so that nothing in a template takes it for a fault of its own."""


@contextmanager
def time_limit(seconds: float | None = None) -> Iterator[None]:
    """For rendering one conversation; TimeoutError after `SECONDS` of computing by default."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return
    seconds = SECONDS if seconds is None else seconds
    handler = signal.signal(signal.SIGVTALRM, _expire)
    try:
        # Again every second, in case that something swallows the first one.
        timer = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
            signal.signal(signal.SIGVTALRM, handler or signal.SIG_DFL)
    except _ExpiredError:
        raise TimeoutError(f"it does not end within {seconds:g} seconds of computing") from None


def _expire(*_: Any) -> None:
    raise _ExpiredError
