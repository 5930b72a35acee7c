"""Where a command may write: every output passes through here, and nothing is replaced that is not
this tool's own.

Each kind of output has a mark by which it is known again. A place is claimed before the command
begins its work: it must be free, or carry the mark of that kind. What carries it is older work,
replaced only where the user says so (`--overwrite`), or gone on with where the kind is one that
grows. An input of the command is never its output. Claiming changes nothing on disk.
"""

import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from coevolve.errors import CoevolveError, DataError, OutputError
from coevolve.files import parse_json, read_json, sync_folder, write_file, writing

HEAD_BYTES = 1 << 20
"""A first line that is longer than this is not one that this tool wrote."""


@dataclass(frozen=True)
class Kind:
    """A kind of output.

    Attributes:
        name: as a sentence calls it, with its article.
        is_folder: whether it is a folder; otherwise a file.
        is_own: whether what is at a path carries the mark.
        parts: of a folder, the names that are written into it, the last one the one that carries
            the mark; other names in it are left alone. Empty where the folder is written as a
            whole.
        policy: what becomes of older work: `ask` replaces it with `--overwrite` only, `grow` goes
            on with it, and `renew` writes anew what is made from its own folder.
    """

    name: str
    is_folder: bool
    is_own: Callable[[Path], bool]
    parts: Sequence[str] = ()
    policy: Literal["ask", "grow", "renew"] = "ask"


def claim(
    text: str | Path,
    kind: Kind,
    *,
    option: str,
    inputs: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> Path:
    """The path that `text` names, after every check that can be made before there is something to
    write; `option` and the keys of `inputs` are what the user calls output and inputs.
    """
    path = plain_path(str(text), option)
    for name, given in (inputs or {}).items():
        _require_apart(path, kind, given, option, name)
    _require_outside_runs(path, option)
    _require_writable(path, kind, option)
    if _is_older_work(path, kind, option) and kind.policy == "ask" and not overwrite:
        raise OutputError(
            f"{option} {path}: holds {kind.name} already. Give another path, or --overwrite to "
            "replace it."
        )
    return path


def _is_older_work(path: Path, kind: Kind, option: str) -> bool:
    """Whether the place holds work of this kind; OutputError where it holds anything else."""
    if not os.path.lexists(path):
        return False
    if path.is_dir() != kind.is_folder or not (path.is_dir() or path.is_file()):
        sort = "folder" if kind.is_folder else "file"
        found = f"{kind.name} is a {sort}; found a {_found(path)}"
        raise OutputError(f"{option} {path}: {found}. Give another path.")
    taken = next(_taken(path, kind), None)
    if taken is not None and not kind.is_own(path):
        theirs = f"{taken} is there already and is not {kind.name} that coevolve wrote"
        raise OutputError(f"{option} {path}: {theirs}. Give another path, or move it away.")
    return taken is not None


def plain_path(text: str, option: str) -> Path:
    """The path that `text` names, `~` expanded."""
    if not text.strip():
        raise OutputError(f"{option}: found {text!r}; accepted is a path. Give one.")
    if "\0" in text:
        raise OutputError(f"{option}: found {text!r}, which holds a NUL. Give another path.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OutputError(
            f"{option}: found {text!r}, which is not UTF-8 as this process reads it. Set "
            "PYTHONUTF8=1 if your terminal's language is the cause, or give another path."
        )
    try:
        path = Path(text).expanduser()
        os.fsencode(path)
        os.path.lexists(path)
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # said by `_require_writable`, with the part that is a file
    except (OSError, RuntimeError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(
            f"{option} {text}: no such path can be ({told}). Give another one."
        ) from None
    return path


# Writing. What was claimed may be hours ago, so each looks once more whose the place is.


@contextmanager
def new_folder(path: Path, kind: Kind) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends well, and is gone when
    it does not. Older work stays until the new one is complete.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with writing(path):
            yield temporary
        _make_readable(temporary)
        _is_older_work(path, kind, "the output")
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Give all files and folders the permissions of new ones: safetensors writes for oneself alone,
    and copies keep what they had.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)  # of a folder made just now, so the umask's
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished folder in place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a part of an output of one's own, whether it is a file, a folder, or not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_parts(folder: Path, kind: Kind, texts: Mapping[str, str | bytes]) -> None:
    """Write a folder's parts, the one with the mark last; parts that are no more, go."""
    _is_older_work(folder, kind, "the output")
    for name in kind.parts:
        if name in texts:
            write_file(folder / name, texts[name])
        else:
            remove(folder / name)
    sync_folder(folder)


def write_output(path: Path, kind: Kind, text: str | Iterable[str]) -> None:
    """Write a file's output, whole or piece by piece."""
    _is_older_work(path, kind, "the output")
    write_file(path, text)


# Marks.


def has_json(path: Path, key: str, prefix: str) -> bool:
    """Whether a file is a JSON object whose `key` begins with `prefix`."""
    try:
        value = read_json(path)
    except CoevolveError:
        return False
    return isinstance(value, dict) and key in value and str(value[key]).startswith(prefix)


def _in_folder(name: str, key: str, prefix: str) -> Callable[[Path], bool]:
    return lambda folder: has_json(folder / name, key, prefix)


def _first_row_has(keys: Iterable[str]) -> Callable[[Path], bool]:
    expected = set(keys)

    def is_own(path: Path) -> bool:
        with open(path, "rb") as file:
            line = file.readline(HEAD_BYTES)
        try:
            row = parse_json(line.decode(), str(path))
        except ValueError:
            return False
        return isinstance(row, dict) and expected <= set(row)

    return is_own


def _is_corpus(path: Path) -> bool:
    """Whether a row of a corpus says what `coevolve convert` or `coevolve shift` made it of."""
    with open(path, "rb") as file:
        head = [file.readline(HEAD_BYTES).strip().rstrip(b",") for _ in range(2)]
    for line in head:  # converted rows have a line each, and may be many
        try:
            row = parse_json(line.decode(), str(path))
        except ValueError:
            continue
        if isinstance(row, dict) and {"sample_ID", "source"} <= row.keys():
            return True
    try:
        splits = read_json(path)
    except DataError:
        return False
    of_splits = splits.values() if isinstance(splits, dict) else ()
    lists = [rows for rows in of_splits if isinstance(rows, list)]
    rows = itertools.chain(*lists)
    return any(isinstance(row, dict) and isinstance(row.get("shift"), dict) for row in rows)


def _holds_text(name: str, text: str) -> Callable[[Path], bool]:
    def is_own(folder: Path) -> bool:
        try:
            return text in (folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False

    return is_own


def _holds_a_report(folder: Path) -> bool:
    """Whether the page is ours or, where a report was killed before it had one, the pictures."""
    if os.path.lexists(folder / "report.html"):
        return _holds_text("report.html", 'name="generator" content="coevolve')(folder)
    pictures = folder / "report"
    return pictures.is_dir() and all(path.suffix in (".svg", ".png") for path in pictures.iterdir())


RUN_PARTS = (
    *("base", "world", "oracle", "failed", "checkpoints", "estimator", "model"),
    *("traces.jsonl", "metrics.jsonl", "samples.jsonl", "results.json", "status.json", "run.json"),
)


def is_run(folder: Path) -> bool:
    """Whether the folder is, or began to be, a run's, whose lock is written first."""
    lock = folder / ".lock"
    begun = lock.is_file() and (lock.stat().st_size == 0 or has_json(lock, "host", ""))
    return begun or has_json(folder / "run.json", "data_fingerprint", "")


_is_estimator = _in_folder("manifest.json", "format", "coevolve-estimator")
ESTIMATOR = Kind("an exported estimator", True, _is_estimator)
_is_reference = _holds_text("templates.py", "coevolve_export")
REFERENCE = Kind("an estimator in the reference layout", True, _is_reference)
_TABLES = ("results.csv", "results.tex", "results.md", "results.txt")
REMID = Kind(
    "the results of coevolve remid",
    True,
    _in_folder("results.json", "schema", "coevolve.remid/"),
    (*_TABLES, "contributions.jsonl", "judge.json", "results.json"),
)
COMPARED = Kind(
    "a comparison",
    True,
    _in_folder("grid.json", "schema", "coevolve.grid/"),
    (
        *("estimator", "reward", "models", "responses", "exact", "measured", "dialogues.json"),
        *("judged.jsonl", "results.csv", "results.tex", "results.md", "results.json", "grid.json"),
    ),
    "grow",
)
_is_bound = _in_folder("bound.json", "schema", "coevolve.bound/")
BOUND = Kind(
    "the results of coevolve bound", True, _is_bound, ("blame.json", "bound.md", "bound.json")
)
_is_truth = partial(has_json, key="schema", prefix="coevolve.truth/")
TRUTH = Kind("the results of coevolve truth", False, _is_truth)
SCORES = Kind("scores", False, _first_row_has(("sample_ID", "log_prob", "tokens", "reasoning")))
CORPUS = Kind("a converted or shifted corpus", False, _is_corpus)
RESPONSES = Kind("responses", False, _first_row_has(("model", "prompt", "address")), policy="grow")
_is_judged = _first_row_has(("judge", "rubric", "asked", "address"))
JUDGED = Kind("a judge's answers", False, _is_judged, policy="grow")
_is_ledger = _first_row_has(("translator", "language", "prompt", "address"))
TRANSLATIONS = Kind("translations", False, _is_ledger, policy="grow")
RUN = Kind("a run", True, is_run, parts=RUN_PARTS, policy="grow")
CACHE = Kind("a cache of work", True, lambda folder: True, policy="grow")
RECIPE_COPY = Kind("a copy of a recipe", True, lambda folder: False, policy="renew")
"""Its user's own from the first moment, so that it is never replaced."""
REPORT = Kind("a report", True, _holds_a_report, parts=("report", "report.html"), policy="renew")


def _taken(path: Path, kind: Kind) -> Iterator[str]:
    """What is in the way: names of its parts, the whole folder, or a file that is not empty."""
    if not kind.is_folder:
        if path.stat().st_size:
            yield "this file"
    elif kind.parts:
        if kind not in (RUN, REPORT) and is_run(path):
            raise OutputError(f"{path}: is the directory of a run. Give {kind.name} their own.")
        yield from (name for name in kind.parts if os.path.lexists(path / name))
    elif kind is not CACHE:
        yield from (name.name for name in itertools.islice(path.iterdir(), 1))


def _require_apart(path: Path, kind: Kind, given: Path, option: str, name: str) -> None:
    """Raise OutputError if an output is an input, or one of them lies in the other."""
    output, read = Path(os.path.realpath(path)), Path(os.path.realpath(given))
    same = output == read or (path.exists() and given.exists() and path.samefile(given))
    parts = {output / part for part in kind.parts}
    # Of a run, whatever it reads in its own folder is there already, and is not written again.
    touched = not parts or bool(parts & {read, *read.parents})
    holds = output in read.parents and kind not in (RUN, CACHE) and touched
    apart = is_run(read) or name.startswith("RECIPE ")
    inside = read in output.parents and read.is_dir() and not apart
    if same and kind.policy == "renew":
        return
    if same or holds or inside:
        how = "is" if same else "holds" if holds else "lies in"
        what = f"{how} what this command reads ({name})"
        raise OutputError(f"{option} {path}: {what}, which is never written to. Give another path.")


def _require_outside_runs(path: Path, option: str) -> None:
    """Raise OutputError if the path lies in a part of a run, which only the run writes."""
    output = Path(os.path.realpath(path))
    for run in output.parents:
        if output.relative_to(run).parts[0] in RUN_PARTS and is_run(run):
            place = f"{output.relative_to(run).parts[0]} of the run {run}"
            raise OutputError(f"{option} {path}: lies in {place}. Give another path.")


def _require_writable(path: Path, kind: Kind, option: str) -> None:
    """Raise OutputError unless files can be made where `path` is, or would be."""
    place = path if kind.is_folder and path.is_dir() else path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    problem = None
    if not place.is_dir():
        problem = f"{place} is a {_found(place)}, not a folder"
    else:
        try:
            # Without a name, where the system can, so that the folder does not change its time.
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            problem = f"{place} cannot be written ({error.strerror})"
    if problem is None and path.is_file() and not os.access(path, os.W_OK):
        problem = "the file is write-protected"
    if problem is not None:
        raise OutputError(f"{option} {path}: {problem}. Give a place that can be written.")


def _found(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "link that leads nowhere"
    mode = path.stat().st_mode
    names = {stat.S_IFDIR: "folder", stat.S_IFREG: "file"}
    names |= {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")
