"""List the recipes that come with coevolve; `copy` makes one of them your own.

`coevolve train NAME` takes a name as well as a path.
"""

import argparse
import shutil
from typing import Any

from coevolve.cli.paths import add_option, add_output
from coevolve.files import read_text, write_text
from coevolve.outputs import RECIPE_COPY, new_folder
from coevolve.shipped import SCHEMA, shipped, shipped_recipes, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    told: dict[str, Any] = dict.fromkeys(("help", "description"), "copy one, with its page")
    copy = actions.add_parser("copy", **told)
    add_option(copy, "name", "as `coevolve recipes` lists it", metavar="NAME")
    add_output(copy, "out", "the folder to make", metavar="DIR", kind=RECIPE_COPY)


def run(options: argparse.Namespace) -> None:
    recipes = shipped_recipes()
    if options.action is None:
        for name, file in recipes.items():
            print(f"{name:22} {summary(file)}")
        return
    folder = shipped("recipe", recipes, options.name).parent
    with new_folder(options.out, RECIPE_COPY) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        for file in temporary.glob("*.yaml"):
            stays = f"$schema={folder.parent}/"
            write_text(file, read_text(file).replace(SCHEMA, stays, 1))
    print(f"{options.out}: {', '.join(sorted(file.name for file in options.out.iterdir()))}")
