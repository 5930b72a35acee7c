"""Reading a recipe from YAML, with overrides by dotted key."""

import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from coevolve.errors import DataError, RecipeError, meant
from coevolve.files import DEEPEST, is_folder, plain_file, read_text
from coevolve.recipe.grid import Grid
from coevolve.recipe.rpm import RpmRecipe
from coevolve.recipe.schema import Recipe
from coevolve.recipe.section import EXTENDS, Section
from coevolve.recipe.yaml_text import LARGEST, parse_yaml
from coevolve.shipped import CONFIG, GRID, grid_path, recipe_path, shipped_recipes

Kind = TypeVar("Kind", bound=Section)


def load_recipe(
    source: str | Path, overrides: Sequence[str] = (), kind: type[Recipe] = Recipe
) -> Recipe:
    """The recipe at `source`, a folder with `config.yaml`, a YAML file or the name of one that
    comes with the package, changed by the overrides, `dotted.key=value` with a value in YAML, and
    checked; else RecipeError. What lies at a path goes before a name.
    """
    return read_recipe(source, overrides, kind)[0]


def read_recipe(
    source: str | Path, overrides: Sequence[str] = (), kind: type[Recipe] = Recipe
) -> tuple[Recipe, Mapping[str, str]]:
    """The recipe as `load_recipe`, and for each dotted key given, by which file or override."""
    origins: dict[str, str] = {}
    try:
        path = recipe_path(source)
        path = path / CONFIG if is_folder(source) else path
        values = _read(path, (), origins)
    except DataError as error:
        raise RecipeError(
            f"{error} A recipe is a folder with {CONFIG} in it, a YAML file, or one that "
            f"`coevolve recipes` lists.{meant(str(source), shipped_recipes())}"
        ) from None
    for override in overrides:
        _apply(values, override)
        origins[override.partition("=")[0]] = "command line"
    if ("rpm" in values) != issubclass(kind, RpmRecipe):
        name, other = ("train", "rpm") if "rpm" in values else ("rpm", "train")
        about = "is about" if "rpm" in values else "is not about"
        raise RecipeError(
            f"{path}: {about} a role-playing model (section rpm), so it is for `coevolve {other}` "
            f"and not for `coevolve {name}`."
        )
    return check_section(values, str(path), kind), origins


def load_grid(source: str | Path, overrides: Sequence[str] = ()) -> tuple[Grid, Path]:
    """The grid at `source`, a folder with `grid.yaml`, a YAML file or the name of a recipe's folder
    that comes with the package, and the folder that its paths are relative to; else RecipeError.
    """
    try:
        path = grid_path(source)
        path = path / GRID if is_folder(source) else path
        values = _read(path, (), {})
    except DataError as error:
        raise RecipeError(
            f"{error} A grid is a folder with {GRID} in it, or a YAML file."
        ) from None
    for override in overrides:
        _apply(values, override)
    return check_section(values, str(path), Grid), path.parent


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a section."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _read(path: Path, above: tuple[Path, ...], origins: dict[str, str]) -> dict[str, Any]:
    """The values of a YAML file, over those of the one it `extends`; `above` extend this one."""
    values = parse_yaml(read_text(plain_file(path, at_most=4 * LARGEST)), str(path))
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of sections; found {type(values).__name__}."
        )
    chain = (*above, path)
    if any(os.path.samefile(path, other) for other in above) or len(chain) > DEEPEST:
        raise RecipeError(
            f"{' extends '.join(map(str, chain))}: {EXTENDS} leads in a circle. Take one of them "
            "out."
        )
    parent = values.pop(EXTENDS, None)
    own = {key: str(path) for key, _ in flat(values)}
    if parent is None:
        origins.update(own)
        return values
    if not isinstance(parent, str):
        raise RecipeError(
            f"{path}: {EXTENDS}: found {_shown(parent)}; accepted is the path of another YAML file."
        )
    below = _read(path.parent / os.path.expanduser(parent), chain, origins)
    origins.update(own)
    return _merged(below, values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section; anything but a section is replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merged(below[key], value) if both else value
    return merged


def check_recipe(values: dict[str, Any], where: str) -> Recipe:
    """The recipe of these values, as `check_section`; a role-playing model's has a section rpm."""
    return check_section(values, where, RpmRecipe if "rpm" in values else Recipe)


def check_section(values: Any, where: str, kind: type[Kind]) -> Kind:
    """The section of these values; RecipeError says where and which field, found and accepted."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(fault), kind) for fault in error.errors()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from None


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe, defaults included, as plain JSON values."""
    values = recipe.model_dump(mode="json")
    return {name: x for name, x in values.items() if name in (recipe.sections or values)}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"override {override!r}: accepted is dotted.key=value, for example "
            "data.path=dialogues.json"
        )
    try:
        value = parse_yaml(text, f"override {_shown(override)}")
    except RecipeError as error:
        raise RecipeError(f"{error} Text that is not a YAML value must be quoted.") from None
    *parents, last = key.split(".")
    if len(parents) > DEEPEST:
        raise RecipeError(
            f"override {_shown(override)}: {len(parents):,} sections in one another; the recipe "
            "has four."
        )
    place = values
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise RecipeError(f"override {override!r}: {parent!r} is a value, not a section.")
    place[last] = value


def read_section(path: str | Path, kind: type[Kind]) -> Kind:
    """A YAML (or JSON) file that is one section; RecipeError for what is none."""
    try:
        text = read_text(plain_file(Path(path), at_most=4 * LARGEST))
    except DataError as error:
        raise RecipeError(str(error)) from None
    return check_section(parse_yaml(text, str(path)), str(path), kind)


def _explain(fault: dict[str, Any], kind: type[Section]) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        known = _accepted(fault["loc"], kind)
        accepted = f"; accepted are {', '.join(known)}" if known else ""
        return f"{field}: unknown key{accepted}.{meant(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"{field}: missing; the recipe needs it."
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{field}: {message}."
    return f"{field}: found {_shown(fault['input'])}; {message[0].lower()}{message[1:]}."


def _shown(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _accepted(location: tuple[Any, ...], kind: type[Section]) -> Sequence[str]:
    """The keys that stand beside an unknown one, if the section can be found from its place."""
    section: Any = kind
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((item for item in candidates if hasattr(item, "model_fields")), None)
    return list(getattr(section, "model_fields", ()))
