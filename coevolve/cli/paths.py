"""Arguments that are paths: what a command reads, and where it writes.

An output is declared with its kind, and claimed (`coevolve.outputs`) before the command's own code
runs; a command cannot forget to. Every path may begin with `~`.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from coevolve.errors import OutputError
from coevolve.outputs import Kind, claim, plain_path

Outputs = Kind | Callable[[argparse.Namespace], Kind]
"""A kind, or what tells it from the other options."""
Adder = Callable[..., object]


def add_option(
    parser: argparse._ActionsContainer, name: str, what: str | None, **options: Any
) -> argparse.Action:
    """An argument, `what` being its help."""
    return parser.add_argument(name, help=what, **options)


def adders(parser: argparse._ActionsContainer) -> tuple[Adder, Adder, Adder]:
    """`add_option`, `add_input` and `add_output` of a parser."""
    return partial(add_option, parser), partial(add_input, parser), partial(add_output, parser)


def add_input(
    parser: argparse._ActionsContainer,
    name: str,
    what: str,
    *,
    means: Callable[[str], Path] = Path,
    fetched: Callable[[str], Path] | None = None,
    **options: Any,
) -> None:
    """A path or, with `nargs`, several that the command reads; `NAME=FILE` by the metavar. `means`
    gives the path where the text may be another name for it; where it may name what lies elsewhere,
    the command gets what `fetched` gives.
    """
    is_named = options.get("metavar") == "NAME=FILE"
    action = add_option(parser, name, what, type=_named_path if is_named else _path, **options)
    vars(action)["reads"] = _path_of_named if is_named else means
    if fetched is not None:
        vars(action)["fetched"] = fetched


def add_output(
    parser: argparse._ActionsContainer, name: str, what: str, *, kind: Outputs, **options: Any
) -> None:
    """A path that the command writes, and `--overwrite` where older work there may be replaced."""
    vars(add_option(parser, name, what, **options))["writes"] = kind
    asks = not isinstance(kind, Kind) or kind.policy == "ask"
    if asks and "--overwrite" not in parser._option_string_actions:
        what = "replace older work of the same kind"
        add_option(parser, "--overwrite", what, action="store_true")


def claim_outputs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Put claimed paths in place of the outputs that the options name, and fetch the inputs."""
    actions = list(chosen_actions(parser, options))
    for action in actions:
        # Argparse's answer to `--data=--`.
        if action.nargs is None and getattr(options, action.dest, None) == []:
            raise OutputError(f"{_called(action)}: found '--', which is no value. Give one.")
    inputs = {
        f"{_called(action)} {text}": action.reads(text)
        for action in actions
        if hasattr(action, "reads")
        for text in _listed(getattr(options, action.dest))
    }
    for action in actions:
        text = getattr(options, action.dest, None)
        if hasattr(action, "writes") and text is not None:
            kind = action.writes if isinstance(action.writes, Kind) else action.writes(options)
            overwrite = getattr(options, "overwrite", False)
            path = claim(text, kind, option=_called(action), inputs=inputs, overwrite=overwrite)
            setattr(options, action.dest, path)
    for action in actions:
        if hasattr(action, "fetched"):
            setattr(options, action.dest, str(action.fetched(getattr(options, action.dest))))


def chosen_actions(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> Iterator[argparse.Action]:
    """The arguments of a parser and of the subcommands that were chosen."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = getattr(options, action.dest)
            yield from chosen_actions(action.choices[chosen], options) if chosen else ()
        else:
            yield action


def _called(action: argparse.Action) -> str:
    return next(iter(action.option_strings), str(action.metavar or action.dest).upper())


def _listed(value: Any) -> list[str]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _path(text: str) -> str:
    try:
        return str(plain_path(text, "path"))
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _named_path(text: str) -> str:
    name, equals, path = text.partition("=")
    return f"{name}={_path(path)}" if equals and path else text


def _path_of_named(text: str) -> Path:
    return Path(text.partition("=")[2] or text)
