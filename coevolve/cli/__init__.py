"""The command line: `coevolve train`, `remid`, `respond`, ... Arguments here, the work elsewhere.

Errors that coevolve raises on purpose are printed as one message, with exit status 2; anything else is a bug and
keeps its traceback.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from coevolve import __version__
from coevolve.cli import bound, export, import_reference, remid, report, respond, score, shift, status, train, truth
from coevolve.cli.paths import claim_outputs
from coevolve.errors import CoevolveError

HUSH_SECONDS = 5
COMMANDS = (train, status, respond, shift, score, remid, bound, report, truth, export, import_reference)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="coevolve",
        description="Co-evolving reinforcement learning of a probability model of role-play responses, and R-EMID.",
    )
    parser.add_argument("--version", action="version", version=f"coevolve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        summary = (module.__doc__ or "").split("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes `key=value` only before the options; a person may put it behind them as well.
    misplaced = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if rest:
        options.overrides += rest
    try:
        claim_outputs(parser, options)
        return options.run(options) or 0
    except CoevolveError as error:
        # Of several processes that were launched together, one speaks; it learns of the others' errors.
        if os.environ.get("RANK", "0") == "0":
            print(f"coevolve {options.command}: {error}", file=sys.stderr)
        else:
            # A launcher ends all processes when the first one leaves, and the one that speaks must get to do so.
            time.sleep(HUSH_SECONDS)
        return 2
