"""Commands called by their names, with options as Python values,
which go through the same checks.
"""

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from coevolve.cli.paths import claim_outputs
from coevolve.errors import CoevolveError
from coevolve.training.distributed.stopping import Stop


def call(command: str, **given: Any) -> int:
    """Run a command with these options; its exit status.

    Raises:
        TypeError: an option that the command does not have, or one that it needs is left out.
        CoevolveError: as the command would say it.
    """
    options = options_of(command, given)
    with contextlib.redirect_stdout(io.StringIO()):  # the tables, which the results are
        return import_module(f"coevolve.cli.{command}").run(options) or 0


def options_of(
    command: str, given: Mapping[str, Any], *, claimed: bool = True, stop: Stop | None = None
) -> argparse.Namespace:
    """A command's options, each as given or by default; what is to be written is `claimed`. Raises
    as `call`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    import_module(f"coevolve.cli.{command}").add_arguments(parser)
    options, actions = argparse.Namespace(), {x.dest: x for x in parser._actions}
    needed = [name for name, action in actions.items() if action.required and name not in given]
    for name in (*needed, *(name for name in given if name not in actions)):
        how = "is missing" if name in needed else "is none of its options"
        raise TypeError(f"{command}: {name} {how}; they are {', '.join(actions)}")
    for name, action in actions.items():
        value = _as_of_words(action, given[name]) if name in given else action.default
        if name in given and action.choices and value not in action.choices:
            accepted = ", ".join(map(str, action.choices))
            raise CoevolveError(f"{command}: {name}: found {value!r}; accepted are {accepted}.")
        setattr(options, name, value)
    options.stop = stop or Stop()
    if claimed:
        claim_outputs(parser, options)
    return options


def _as_of_words(action: argparse.Action, value: Any) -> Any:
    """A value as argparse would have made it of words."""
    if isinstance(value, Mapping):
        value = [f"{name}={item}" for name, item in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_of_words(action, item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    kind: Any = action.type or str
    try:
        return kind(str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise CoevolveError(f"{action.dest}: found {value!r}; {error}.") from None
