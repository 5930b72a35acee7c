"""How a command ends before its end: what is said, and what the machine's refusals are called."""

import argparse
import errno
import io
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from typing import TextIO

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
    """Whether it comes of Ctrl-C, which a library may wrap in an error of its own."""
    return any(isinstance(link, KeyboardInterrupt) for link in _chain(error))


def refusal(error: BaseException, options: argparse.Namespace) -> str | None:
    """What the machine did not give, in words; None for any other error."""
    if _is_out_of_memory(error):
        words = " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__
        return f"out of memory: {words}. {_what_to_lower(options)} a device with more."
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read. Flatten it."
    # Libraries written in Rust have errors of their own, with the number in their words.
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno not in REFUSALS and error.filename is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. Check the place, its room and its permissions, and try again."


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
