"""How a command ends before its end: what is said, and what the machine's refusals are called."""

import argparse
import errno
import io
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from coevolve.files import os_error
from coevolve.training.distributed.stopping import INTERRUPTED, StopRequested

CTRL_C = 130
"""Exit status, as shells have it for SIGINT."""

HUSH_SECONDS = 5

REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG),
)
"""What a machine answers whatever the file is; its other errors count where they name one."""


def let_any_text_through() -> None:
    """Let no character end a command: what the terminal's encoding lacks is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def failed(options: argparse.Namespace, message: str) -> int:
    """Say what went wrong, in one message; the exit status."""
    say(options, message)
    if _rank() != "0":
        # A launcher ends all processes when the first leaves, and the one that speaks must get to.
        time.sleep(HUSH_SECONDS)
    return 2


def say(options: argparse.Namespace, message: str) -> None:
    # Of several processes that were launched together, one speaks; it learns of the others' errors.
    if _rank() == "0":
        name = "coevolve" if options.command is None else f"coevolve {options.command}"
        print(f"{name}: {message}", file=sys.stderr)


def was_interrupted(error: BaseException) -> bool:
    """Whether it comes of a signal, which a library may wrap in an error of its own."""
    return any(isinstance(link, (KeyboardInterrupt, StopRequested)) for link in _chain(error))


def left_early(options: argparse.Namespace, reason: str) -> int:
    """Say that a signal ended the command; the exit status."""
    by_whom = "" if reason == "SIGINT" else f" by {reason}"
    say(options, f"interrupted{by_whom}. {_kept(options)}".rstrip())
    return CTRL_C if reason == "SIGINT" else INTERRUPTED


def refusal(error: BaseException, options: argparse.Namespace) -> str | None:
    """What the machine did not give, in words; None for any other error."""
    if _is_out_of_memory(error):
        words = " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__
        more = f"{_what_to_lower(options)} a device with more. {_kept(options)}"
        return f"out of memory: {words}. {more}".rstrip()
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read. Flatten it."
    number, name = os_error(error), getattr(error, "filename", None)
    if number is None or (number not in REFUSALS and name is None):
        return None
    where, words = f"{name}: " if name else "", getattr(error, "strerror", None) or ""
    again = _kept(options) or "Then try again."
    return (
        f"{where}{words or os.strerror(number)}. Check the place, its room and its permissions. "
        f"{again}"
    )


def reader_is_gone() -> bool:
    """Whether nobody reads a standard stream any more; what is left for it then goes nowhere."""
    from_here = [x for x in (sys.stdout, sys.stderr) if x is not None and not x.closed]
    gone = [stream for stream in from_here if _fails(stream) or _has_no_reader(stream)]
    for stream in gone:
        from coevolve.progress import lead_nowhere

        lead_nowhere(stream)
    return bool(gone)


def _fails(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _has_no_reader(stream: TextIO) -> bool:
    """Whether it is a pipe closed at its other end, also where nothing is left to be written."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError):  # a system without it, a stream of no file
        return False


def _kept(options: argparse.Namespace) -> str:
    """What a command leaves that did not come to its end, and how to go on; "" for one that is
    short, or leaves nothing.
    """
    again = "the same command goes on from there."
    if hasattr(options, "output_dir"):
        return f"What was saved is whole: {again}"
    if hasattr(options, "no_cache"):
        kept = f"What was computed is kept: {again}"
        return "Nothing is kept (--no-cache)." if options.no_cache else kept
    if hasattr(options, "endpoint") and options.model:
        return f"The answers that came are kept: {again}"
    return ""


def _what_to_lower(options: argparse.Namespace) -> str:
    if options.command == "train":
        return (
            "Lower per_device_train_batch_size of the phase or evaluation.token_budget, set "
            "gradient_checkpointing, or use"
        )
    names = [name for name in ("token_budget", "batch_size") if hasattr(options, name)]
    return f"Lower --{names[0].replace('_', '-')}, or use" if names else "Use"


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from coevolve.scoring.foreign import is_out_of_memory

    return is_out_of_memory(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _rank() -> str:
    return os.environ.get("RANK", "0")
