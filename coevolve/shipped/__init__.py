"""The recipes and launch files that come with the package, by name.

At the top of the repository they are for readers; here are links to them, in whose place a wheel
has the files. Nothing else lives here.
"""

import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from coevolve.errors import RecipeError, meant
from coevolve.files import read_text

FOLDER = Path(__file__).parent
CONFIG, GRID = "config.yaml", "grid.yaml"
SCHEMA = "$schema=../"
"""What editors find the schema of a recipe or grid by, in its first line, begins so."""
FOR_SOFTWARE = ("#!", "# yaml-language-server")


def shipped_recipes() -> Mapping[str, Path]:
    """Files by name: `quickstart` is its folder's `config.yaml`, `qwen3-8b/qlora` another one."""
    files = sorted(
        (FOLDER / "recipes").glob("*/*.yaml"), key=lambda x: (x.parent, x.name != CONFIG, x.stem)
    )
    return {
        file.parent.name if file.name == CONFIG else f"{file.parent.name}/{file.stem}": file
        for file in files
    }


def shipped_grids() -> Mapping[str, Path]:
    """Grids by the names of their folders."""
    return {file.parent.name: file for file in shipped_recipes().values() if file.name == GRID}


def recipe_path(source: str | Path) -> Path:
    """What a recipe is read from: what lies at a path goes before a name."""
    return _at_path_or_named(source, shipped_recipes)


def grid_path(source: str | Path) -> Path:
    """What a grid is read from: likewise, a name being that of a recipe's folder."""
    return _at_path_or_named(source, shipped_grids)


def launch_path(source: str | Path) -> Path:
    """What a launch file is read from: likewise."""
    return _at_path_or_named(source, shipped_launch_files)


def _at_path_or_named(source: str | Path, files: Callable[[], Mapping[str, Path]]) -> Path:
    named = None if os.path.lexists(source) else files().get(str(source))
    return named or Path(source)


def shipped_launch_files() -> Mapping[str, Path]:
    """Files by name: `zero2` is `zero2.yaml`, `slurm.sh` keeps its ending."""
    files = sorted((FOLDER / "launch").iterdir())
    named = {file.stem if file.suffix == ".yaml" else file.name: file for file in files}
    return {name: file for name, file in named.items() if file.suffix in (".yaml", ".sh")}


def shipped(kind: str, files: Mapping[str, Path], name: str) -> Path:
    """The file of this name; RecipeError lists those that there are."""
    if name not in files:
        accepted = f"accepted are {', '.join(files)}.{meant(name, files)}"
        raise RecipeError(f"{kind} {name!r}: unknown; {accepted}")
    return files[name]


def summary(file: Path) -> str:
    """The first sentence of the comment at the file's head."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), read_text(file).splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines if not line.startswith(FOR_SOFTWARE))
    return clause(comment)


def clause(text: str) -> str:
    """What a line has room for of a text: to the first stop that is not right at its beginning."""
    found = re.match(r".{24,}?(?=[.:;](?: |$))", text)
    return found[0] if found else text
