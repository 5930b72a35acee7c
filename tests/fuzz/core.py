"""One damaged input, what a command made of it, and what counts as a failure."""

import contextlib
import fnmatch
import hashlib
import io
import os
import random
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import coevolve
from coevolve.errors import CoevolveError

FOREIGN = "foreign exception"
HANG = "hang"
CRASH = "crash"
CHANGED = "input changed"
WRONG = "wrong acceptance"
REFUSED_VALID = "valid input refused"
UNREADABLE = "unreadable refusal"
HARNESS = "harness error"
KINDS = (FOREIGN, HANG, CRASH, CHANGED, WRONG, REFUSED_VALID, UNREADABLE, HARNESS)

PROJECT = Path(coevolve.__file__).parent
NOTES = "notes.txt"
LONGEST_REFUSAL = 20_000  # characters; a message that repeats a damaged file tells nobody anything


class Area(Protocol):
    """A kind of input.

    `share` is the number of its inputs in a hundred. `run` makes the case's input, damages it, and
    gives it to the project by `Case.call` and `Case.command`; what it returns from normally was
    accepted.
    """

    name: str
    share: int

    def run(self, case: "Case") -> None: ...


class RefusedError(Exception):
    """The project said no, in words."""


class FailedError(Exception):
    """What must not happen has happened.

    Attributes:
        kind: one of `KINDS`.
        signature: the same for all inputs that show the same fault.
        detail: for a person.
    """

    def __init__(self, kind: str, signature: str, detail: str = ""):
        super().__init__(f"{kind}: {signature}")
        self.kind, self.signature, self.detail = kind, signature, detail


@dataclass(frozen=True)
class Result:
    """What came of an input.

    Attributes:
        kind: one of `KINDS`; None for an input that was answered well.
        accepted: where there is no failure, whether it was taken for valid.
        seconds: of processor time.
    """

    area: str
    index: int
    kind: str | None
    accepted: bool
    signature: str = ""
    detail: str = ""
    did: str = ""
    seconds: float = 0.0


@dataclass
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


@dataclass
class Case:
    """One input.

    Attributes:
        rng: all chance comes from here.
        folder: of this input alone.
        valid: what is damaged.
        untouched: the input is given as it is, and must be accepted.
        may_change: patterns of paths below `inputs` that the command is free to write to.
        answered: the project has accepted something.
    """

    area: str
    index: int
    rng: random.Random
    folder: Path
    valid: Any
    untouched: bool = False
    did: list[str] = field(default_factory=list)
    may_change: list[str] = field(default_factory=list)
    answered: bool = False
    _before: Mapping[str, str] | None = None

    @property
    def inputs(self) -> Path:
        """Where everything lies that the command may only read."""
        return _made(self.folder / "in")

    @property
    def outputs(self) -> Path:
        return _made(self.folder / "out")

    def note(self, text: str) -> None:
        """Say what was damaged, and how."""
        self.did.append(text)
        with open(self.folder / NOTES, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{text}\n")  # for who finds the folder, or the place where a process died

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function of the project returns.

        Raises:
            RefusedError: it raised an error of the project's own.
            FailedError: it raised another one.
        """
        with self._watched():
            return function(*arguments, **options)

    def command(self, *arguments: str | Path, accepted: Sequence[int] = (0,)) -> Said:
        """Run a command of the command line, as a person would, on a terminal that may not be
        UTF-8.

        Raises:
            RefusedError: exit status 2.
            FailedError: an exception left it, or the exit status is none that the command
                documents.
        """
        from coevolve.cli import main

        encoding = self.rng.choices(("utf-8", "latin-1", "ascii"), (18, 1, 1))[0]
        if encoding != "utf-8":
            self.note(f"terminal is {encoding}")
        out, err = _Terminal(encoding, "strict"), _Terminal(encoding, "backslashreplace")
        with self._watched(), _terminal(out, err):
            try:
                status = main([str(part) for part in arguments])
            except SystemExit as error:  # argparse
                status = error.code if isinstance(error.code, int) else 2
        said = Said(status, out.text, err.text)
        if status == 2:
            if "Traceback (most recent" in said.err:
                raise FailedError(UNREADABLE, "a traceback beside the message", said.err[-2000:])
            self._refuse(
                said.err.strip().rpartition("\n")[2] if "usage: " in said.err else said.err
            )
        if status not in accepted:
            raise FailedError(FOREIGN, f"exit status {status}", said.err[-2000:])
        return said

    def wrong_if(self, condition: bool, what: str, detail: Any = "") -> None:
        """Raise FailedError where an oracle sees that what was accepted is wrong."""
        if condition:
            raise FailedError(WRONG, what, str(detail)[:2000])

    def protect(self) -> None:
        """From now on, the files below `inputs` must stay as they are."""
        if self._before is None:
            self._before = contents(self.inputs)

    def check_untouched_inputs(self) -> None:
        """Raise FailedError if a file below `inputs` is not what it was."""
        if self._before is None:
            return
        after = contents(self.inputs)
        changed = sorted(
            name
            for name in {*self._before, *after}
            if self._before.get(name) != after.get(name)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.may_change)
        )
        if changed:
            name = changed[0]
            how = (
                "made"
                if name not in self._before
                else "deleted"
                if name not in after
                else "changed"
            )
            raise FailedError(
                CHANGED,
                f"{how}: {Path(name).suffix or 'a file or folder'}",
                f"{how}: {changed[:9]}",
            )

    def _refuse(self, message: str) -> None:
        if not message.strip():
            raise FailedError(UNREADABLE, "no words")
        if len(message) > LONGEST_REFUSAL:
            raise FailedError(UNREADABLE, f"more than {LONGEST_REFUSAL} characters", message[:500])
        raise RefusedError(message)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self.protect()
        with _restored(self.folder):
            try:
                yield
                self.answered = True
            except CoevolveError as error:
                self._refuse(str(error))
            except (RefusedError, FailedError):
                raise
            except Exception as error:
                raise FailedError(
                    FOREIGN, signature(error), "".join(traceback.format_exception(error))[-3000:]
                ) from None


def signature(error: BaseException) -> str:
    """The kind of an exception and the innermost place in the project that it went through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(PROJECT)
    ]
    place = (
        f" in {Path(frames[-1].filename).relative_to(PROJECT)}:{frames[-1].name}" if frames else ""
    )
    return f"{type(error).__name__}{place}"


def contents(folder: Path) -> dict[str, str]:
    """What lies below a folder: relative path -> kind, mode and hash. Links and pipes are not
    followed.
    """
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            found[str(path.relative_to(folder))] = _description(path)
    return found


def _description(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(mode):
        return f"{stat.S_IFMT(mode)}"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


class _Terminal(io.TextIOWrapper):
    """What Python makes of a terminal: encoded at once, and strictly on standard output."""

    def __init__(self, encoding: str, errors: str):
        super().__init__(
            io.BytesIO(), encoding=encoding, errors=errors, newline="\n", write_through=True
        )

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding, "replace")


@contextlib.contextmanager
def _terminal(out: io.TextIOBase, err: io.TextIOBase) -> Iterator[None]:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


@contextlib.contextmanager
def _restored(folder: Path) -> Iterator[None]:
    """Commands run in an empty folder of their own, with a home of their own; afterwards all is as
    before.
    """
    environ, where, recursion = dict(os.environ), os.getcwd(), sys.getrecursionlimit()
    os.environ.update(HOME=str(_made(folder / "home")), XDG_CACHE_HOME=str(_made(folder / "cache")))
    os.chdir(_made(folder / "cwd"))
    try:
        yield
    finally:
        os.chdir(where)
        sys.setrecursionlimit(recursion)
        os.environ.clear()
        os.environ.update(environ)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
