"""The command line: `coevolve train`, `remid`, `respond`, ... Arguments here, the work elsewhere.

Errors that coevolve raises on purpose are printed as one message, with exit status 2, and so is
what the machine refuses: memory, room, permission. Ctrl-C is one line and exit status 130, another
signal that ends a command one and 75. Anything else is a bug and keeps its traceback.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from coevolve import __version__
from coevolve.cli.ending import (
    failed,
    left_early,
    let_any_text_through,
    reader_is_gone,
    refusal,
    was_interrupted,
)
from coevolve.cli.paths import chosen_actions, claim_outputs
from coevolve.errors import CoevolveError, meant
from coevolve.shipped import clause
from coevolve.training.distributed.stopping import Stop, StopRequested

READER_GONE = 141
"""Exit status, as shells have it for SIGPIPE."""

GROUPS = {
    "data": ("convert", "respond", "shift"),
    "train": ("recipes", "launch_file", "validate", "train", "rpm", "status"),
    "measure": ("score", "judge", "remid", "compare", "bound", "report", "truth"),
    "publish": ("export", "check", "push", "import_reference"),
    "other": ("schema", "completion"),
}
COMMANDS = tuple(
    import_module(f"coevolve.cli.{name}") for names in GROUPS.values() for name in names
)
"""Each with `add_arguments` and `run`; its docstring is its help."""


class Parser(argparse.ArgumentParser):
    """Says of a word that it does not know which one may have been meant."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        words = re.findall(r"[\w.-]+", found[2]) if found else ()
        super().error(f"{message}.{meant(found[1], words)}" if found else message)


def add_volume(parser: argparse.ArgumentParser) -> None:
    """How much is said, before the command or behind it."""
    levels = parser.add_mutually_exclusive_group()
    says = {
        "--quiet": (logging.ERROR, "results and errors only"),
        "--verbose": (logging.INFO, "what libraries say as well"),
    }
    for name, (level, what) in says.items():
        options: Any = {"const": level, "dest": "log_level", "default": argparse.SUPPRESS}
        levels.add_argument(name, action="store_const", help=what, **options)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    about = "Co-evolving reinforcement learning of a model of role-play responses, and R-EMID."
    parser = Parser(
        prog="coevolve", formatter_class=argparse.RawDescriptionHelpFormatter, description=about
    )
    parser.add_argument("--version", action="version", version=f"coevolve {__version__}")
    add_volume(parser)
    parser.usage = "coevolve [-h] [--version] [--quiet | --verbose] COMMAND ..."
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog=parser.prog
    )
    heads = {names[0]: group for group, names in GROUPS.items()}
    lines = []
    for module in COMMANDS:
        stem = module.__name__.rpartition(".")[2]
        name = stem.replace("_", "-")
        summary = " ".join((module.__doc__ or "").partition("\n\n")[0].split())
        command = commands.add_parser(name, description=summary)
        module.add_arguments(command)
        add_volume(command)
        command.set_defaults(run=module.run)
        lines += [f"{heads[stem]}:"] if stem in heads else []
        lines.append(f"  {name:16} {clause(summary)}")
    parser.epilog = "\n".join((*lines, "", "coevolve COMMAND --help says more."))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    let_any_text_through()
    options, stop = argparse.Namespace(command=None), Stop()
    with stop.listening():
        return _run(arguments, options, stop)


def _run(arguments: Sequence[str] | None, options: argparse.Namespace, stop: Stop) -> int:
    try:
        with stop.raising():
            parser = make_parser()
            _require_text(sys.argv[1:] if arguments is None else arguments)
            options = _parsed(parser, arguments)
            options.stop = stop
            _set_volume(getattr(options, "log_level", logging.WARNING))
            claim_outputs(parser, options)
            code = options.run(options) or 0
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except CoevolveError as error:
        return failed(options, str(error))
    except (Exception, KeyboardInterrupt, StopRequested) as error:
        if was_interrupted(error):
            return left_early(options, stop.reason or "SIGINT")
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            return READER_GONE
        message = refusal(error, options)
        if message is None:
            raise
        return failed(options, message)
    finally:
        reader_is_gone()


def _set_volume(level: int) -> None:
    """What `coevolve.progress` goes by."""
    logging.getLogger("coevolve").setLevel(level)
    if level == logging.INFO:
        logging.basicConfig(level=level, format="%(name)s: %(message)s")


def _require_text(arguments: Sequence[str]) -> None:
    """Every argument may end in a file or a message, and those are UTF-8."""
    for number, text in enumerate(arguments, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CoevolveError(
                f"argument {number}: found {text!r:.200}, which is not UTF-8 as this process reads "
                "it. Type it again, or give the file another name."
            ) from None


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options, rest = parser.parse_known_args(arguments)
    # argparse takes `key=value` only before the options; a person may put it behind them as well.
    misplaced = [
        text
        for text in rest
        if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")
    ]
    if misplaced:
        known = [name for x in chosen_actions(parser, options) for name in x.option_strings]
        likely = meant(misplaced[0].partition("=")[0], known)
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}.{likely}")
    if rest:
        options.overrides += rest
    return options
