"""Arguments: every command with every option, found by walking the parser, so that a new command is
in it.

Whatever is typed, inputs and other people's files stay as they are, and nothing is made but where
the output was meant to go: not in the folder that the command was started from, unless a relative
path was given.
"""

import argparse
import contextlib
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from coevolve.outputs import RUN_PARTS
from tests.fuzz.core import Case

TEXTS = (
    "", " ", "\x00", "~", "~/x", "~nobody/x", "x" * 300, "[/b]", "[bold]/x", "é\N{PILE OF POO}",
    "\ud800", "-1", "0",
    "1", "nan", "inf", "-inf", "1e309", "99999999999999999999", "1.5", "all", "None", ".", "..",
    "/", "/dev/null",
    "/dev/full", "/proc/self/x", "a=b", "=", "name=", "--", "-", "-x", "{x}", "%s", "\n",
    "\x1b[31m", "nope", "cpu:99",
    "cuda:7", "http://", "club:x", "marginal:0", "marginal:x", "marginal:-1", "0x10", "٣", "1_0",
    "{}", "[1]", "null",
    "a" * 9000,
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command, or one of its kinds: its words, and what it takes."""

    words: tuple[str, ...]
    parser: argparse.ArgumentParser

    @property
    def actions(self) -> list[argparse.Action]:
        no_use = (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)
        return [action for action in self.parser._actions if not isinstance(action, no_use)]


class Arguments:
    name = "arguments"
    share = 8

    def run(self, case: Case) -> None:
        every = [one for one in commands() if not (case.untouched and {*one.words} & NEED_MORE)]
        command = case.rng.choices(every, [1 if one.words[0] in SLOW else 3 for one in every])[0]
        places = _places(case)
        given = {action.dest: _plain(case, command, action, places) for action in command.actions}
        words = list(command.words)
        if not case.untouched:
            for _ in range(case.rng.choice((1, 1, 1, 2))):
                action = case.rng.choice(command.actions)
                given[action.dest] = _odd(case, action, given[action.dest], places)
        given = {dest: value for dest, value in given.items() if value is not None}
        # Places first, in their order: an option that takes several values would swallow them.
        placed = [action for action in command.actions if not action.option_strings]
        options = [action for action in command.actions if action.option_strings]
        case.rng.shuffle(options)
        for action in (*placed, *options):
            if action.dest in given:
                words += _words(action, given[action.dest])
        if not case.untouched and case.chance(0.05):
            words.insert(case.rng.randrange(len(words) + 1), case.rng.choice(TEXTS))
        case.note(
            " ".join(words)
            .replace(str(case.folder), "CASE")
            .replace(str(case.valid.folder), "VALID")[:400]
        )
        case.may_change += [
            "*/report.html",
            "*/report",
            "*/report/*",
            "report.html",
            "report",
            "report/*",
        ]
        # A run keeps to files of its own names, beside what lies there.
        case.may_change += [f"foreign/{part}{rest}" for part in RUN_PARTS for rest in ("", "/*")]
        case.may_change += ["foreign/.lock", "foreign/.sent.json"]
        case.command(*words, accepted=(0, 1, 3, 75) if command.words[0] == "status" else (0,))
        _check_places(case, words)


SLOW = ("train", "remid", "bound", "truth")
ASK = ("respond", "judge")
"""Commands that ask a server."""
NEED_MORE = {*ASK, "import-reference", "custom", "rpm", "compare"}
"""Commands that a plain call does not satisfy: they need a server, the paper's public code, a
user's, or a recipe or grid of their own.
"""


@cache
def commands() -> tuple[Command, ...]:
    """Every command of the command line."""
    found: list[Command] = []

    def walk(words: tuple[str, ...], parser: argparse.ArgumentParser) -> None:
        below = [
            action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        ]
        for action in below:
            for name, one in action.choices.items():
                walk((*words, name), one)
        if not below:
            found.append(Command(words, parser))

    walk((), _parser())
    return tuple(found)


def _parser() -> argparse.ArgumentParser:
    """The parser of the command line, caught when it is about to parse."""
    from coevolve.cli import main

    class Caught(Exception):
        pass

    def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise Caught(parser)

    before = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = catch
    try:
        main([])
    except Caught as caught:
        return caught.args[0]
    finally:
        argparse.ArgumentParser.parse_known_args = before
    raise AssertionError("the command line has no parser of argparse's")


@dataclass(frozen=True)
class Places:
    """Paths that a person may type, rightly or by mistake."""

    data: Path
    responses: Path
    judge: Path
    recipe: Path
    checkpoint: Path
    estimator: Path
    foreign: Path
    run: Path
    out: Path

    @property
    def all(self) -> list[Path]:
        return [
            *vars(self).values(),
            self.foreign / "thesis.txt",
            self.foreign / "thesis.txt" / "x",
            self.out / "a" / "b",
        ]


def _places(case: Case) -> Places:
    """Small copies of the inputs, and a folder of the user's own."""
    source, inputs = case.valid.run, case.inputs
    for name in ("world/dialogues.json", "world/perfect.jsonl"):
        shutil.copy(source / name, inputs / Path(name).name)
    shutil.copy(case.valid.folder / "recipes" / "lora.yaml", inputs / "recipe.yaml")
    (inputs / "judge.json").write_text('[{"model": "p", "subset": "IDTest", "score": 1}]')
    shutil.copytree(source / "estimator", inputs / "estimator")
    run = inputs / "run"
    newest = sorted((source / "checkpoints").iterdir())[-1]
    shutil.copytree(newest, run / "checkpoints" / newest.name)
    shutil.copytree(source / "base", run / "base")
    for name in ("run.json", "status.json", "results.json", "metrics.jsonl"):
        shutil.copy(source / name, run / name)
    shutil.copytree(source / "estimator", run / "estimator")
    foreign = inputs / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work\nwithout a final line break")
    checkpoint = run / "checkpoints" / newest.name
    out = case.outputs / "new"
    files = (
        inputs / "dialogues.json",
        inputs / "perfect.jsonl",
        inputs / "judge.json",
        inputs / "recipe.yaml",
    )
    return Places(*files, checkpoint, inputs / "estimator", foreign, run, out)


def _plain(case: Case, command: Command, action: argparse.Action, places: Places) -> Any:
    """A value that the command can work with; None to leave the option out."""
    kind, name = command.words[0], action.dest
    fixed: dict[str, Any] = {
        "data": places.data,
        "dialogues": places.data,
        "estimator": places.estimator,
        "device": "cpu" if kind in ("score", "remid", "bound", "truth") else None,
        "responses": [f"p={places.responses}"] if action.nargs == "+" else None,
        "out": places.out.with_suffix(".jsonl") if kind in ("score", *ASK) else places.out,
        "output_dir": places.out,
        "recipe": places.recipe,
        "overrides": [
            "rounds.count=0",
            "cold_start.connector.steps=1",
            "cold_start.estimator.steps=1",
        ],
        "run_dir": places.run,
        "folder": places.run,
        "runs": [places.run],
        "source": places.checkpoint,
        "model": "m" if kind in ASK else None,
        "endpoint": "http://127.0.0.1:9/v1" if kind in ASK else None,
        "retries": "0" if kind in ASK else None,
        "no_cache": True,
        "negatives": "4",
        "exact_only": True,
        "test": "8" if kind == "truth" else None,
        "policies": ["perfect"],
        "language": "user",
        "samples": "1",
        "turns": "1",
        "base": places.estimator / "base" if kind in ("bound", "import-reference") else None,
        "checkout": places.foreign,
    }
    if name == "out" and kind == "shift":
        return places.out.with_suffix(".json")
    if name in fixed:
        return fixed[name]
    if action.required or (not action.option_strings and action.nargs not in ("*", "?")):
        return action.choices[0] if action.choices else "1"
    return None


def _odd(case: Case, action: argparse.Action, plain: Any, places: Places) -> Any:
    """What a person may type by mistake."""
    rng = case.rng
    if action.nargs == 0:
        return None if plain else True
    if action.dest == "retries":  # to wait for a server as long as it is asked to is no hang
        return rng.choice((plain, *(text for text in TEXTS if not text.strip().isdigit())))
    paths = [str(path) for path in places.all]
    how = rng.random()
    if how < 0.12 and action.choices:
        value: Any = rng.choice(list(action.choices))
    elif how < 0.45:
        value = rng.choice(paths)
    elif how < 0.55 and isinstance(plain, str | Path):
        value = (
            f"{plain}{rng.choice(('/', '/.', '/..', '.bak', ' ', chr(0), '/x', '[/b]', 'x' * 250))}"
        )
    elif how < 0.6:
        return None
    else:
        value = rng.choice(TEXTS)
    if action.nargs in ("+", "*"):
        named = f"p={value}" if action.dest == "responses" and rng.random() < 0.7 else value
        return rng.choice(([named], [named], [named, named], [*(plain or []), named], []))
    return value


def _words(action: argparse.Action, value: Any) -> list[str]:
    values = (
        []
        if value is True
        else [str(one) for one in value]
        if isinstance(value, list)
        else [str(value)]
    )
    if not action.option_strings:
        return values
    option = action.option_strings[-1]
    return (
        [f"{option}={values[0]}"]
        if len(values) == 1 and values[0].startswith("-")
        else [option, *values]
    )


def _check_places(case: Case, words: list[str]) -> None:
    """Nothing stray where the command was started, unless a relative path says so."""
    relative = {part.split("/")[0] for word in words for part in (word, word.partition("=")[2])} - {
        ""
    }
    stray = [
        path.name
        for path in (case.folder / "cwd").iterdir()
        if path.name not in relative or path.name.startswith("~")
    ]
    case.wrong_if(bool(stray), "something was made where the command was started", stray)
    with contextlib.suppress(OSError):
        left = [path.name for path in case.folder.rglob(".*.tmp")]
        case.wrong_if(bool(left), "a temporary file was left behind", left)


AREA = Arguments()
