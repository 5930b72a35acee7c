"""Print what completes commands, options and names in a shell.

In bash: eval "$(coevolve completion)"; in zsh the same behind: autoload -U bashcompinit;
bashcompinit.
"""

import argparse
from collections.abc import Iterator

from coevolve.shipped import GRID, grid_path, recipe_path, shipped_grids, shipped_recipes

_SCRIPT = """\
_coevolve() {{
    local words
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _coevolve coevolve"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> None:
    from coevolve.cli import make_parser

    parser = make_parser()
    commands = next(x.choices for x in parser._actions if x.dest == "command")
    assert isinstance(commands, dict)
    cases = [f'        {name}) words="{" ".join(_words(x))}" ;;' for name, x in commands.items()]
    print(_SCRIPT.format(cases="\n".join(cases), commands=" ".join(commands)))


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What may stand behind a command: its options, and the names that its arguments know."""
    for action in parser._actions:
        yield from action.option_strings or action.choices or ()
        reads = getattr(action, "reads", None)
        if reads is recipe_path:
            yield from (name for name, file in shipped_recipes().items() if file.name != GRID)
        if reads is grid_path:
            yield from shipped_grids()
