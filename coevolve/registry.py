"""Registries: what a recipe or an option can name. A built-in one is registered where it is
written, and a user's own is found by import path.

    @TEACHERS.register("rules")
    def rules(prompts, train, **_): ...

    TEACHERS["rules"]
    TEACHERS["custom:my_package.teachers:parrot"]   a module: installed, or in the working directory
    TEACHERS["custom:teachers/parrot.py:parrot"]    a file, from the working directory
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from coevolve.errors import CoevolveError, RecipeError, meant

Item = TypeVar("Item")

CUSTOM = "custom:"
IMPORT_PATH = r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*"
"""What stands behind `custom:`, as a regular expression."""
HOW_TO_NAME_ONES_OWN = "custom:package.module:name or custom:file.py:name for one of your own"


class Registry(Generic[Item]):
    """Things of one kind by name, in the order in which they were registered.

    Args:
        noun: what one is called in errors.
        accepted: in words, what a user's own has to be.
        given: the keywords that a user's own is called with, all of which it must take; None where
            `adopt` looks at it instead.
        classes: whether a class will do, which is then called to make one.
        error: raised for what cannot be used as one.
        adopt: makes one of a user's own and of what to call it in errors; by default it is one.
    """

    def __init__(
        self,
        noun: str,
        *,
        accepted: str,
        given: Sequence[str] | None,
        classes: bool = False,
        error: type[CoevolveError] = RecipeError,
        adopt: Callable[[Any, str], Item] = lambda found, where: found,
    ):
        self.noun, self.accepted, self.given = noun, accepted, given
        self.classes, self.error, self.adopt = classes, error, adopt
        self._items: dict[str, Item] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that gives what it decorates a name."""

        def add(item: Item) -> Item:
            if name in self._items:
                raise ValueError(f"there are two of the {self.noun} {name!r}")
            self._items[name] = item
            return item

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __getitem__(self, name: str) -> Item:
        return self.get(name)

    def get(self, name: str, where: str | None = None) -> Item:
        """The one of this name, or a user's own at `custom:` and an import path; `where` is the
        field or option that names it. RecipeError if there is none, `error` of the registry if it
        cannot be called as one is.
        """
        where = where or self.noun
        if name.startswith(CUSTOM):
            return self.custom(name.removeprefix(CUSTOM), f"{where} {name!r}")
        if name not in self._items:
            accepted = ", ".join((*map(repr, self._items), HOW_TO_NAME_ONES_OWN))
            raise RecipeError(
                f"{where} is {name!r}; accepted are {accepted}.{meant(name, self._items)}"
            )
        return self._items[name]

    def custom(self, path: str, where: str) -> Item:
        """The user's own at an import path; `where` is what to call it in an error."""
        if re.fullmatch(IMPORT_PATH, path) is None:
            raise RecipeError(
                f"{where} is no import path; accepted are package.module:name and file.py:name."
            )
        source, _, name = path.rpartition(":")
        module = _file(source, where) if source.endswith(".py") else _module(source, where)
        if not hasattr(module, name):
            raise RecipeError(f"{where}: the module {source} ({module.__file__}) has no {name!r}.")
        found: Item = getattr(module, name)
        if self.given is not None:
            self._require_callable(found, self.given, where)
        return self.adopt(found, where)

    def _require_callable(self, found: Any, given: Sequence[str], where: str) -> None:
        if not callable(found) or (inspect.isclass(found) and not self.classes):
            kind = "a class" if inspect.isclass(found) else type(found).__name__
            raise self.error(f"{where} is {kind}; accepted is {self.accepted}.")
        if any(map(inspect.iscoroutinefunction, (found, type(found).__call__))):
            raise self.error(f"{where} is asynchronous; accepted is {self.accepted}.")
        try:
            inspect.signature(found).bind(**dict.fromkeys(given))
        except ValueError:  # compiled code need not say what it takes
            return
        except TypeError as error:
            raise self.error(
                f"{where} cannot be called with {', '.join(given)} ({error}); accepted is "
                f"{self.accepted}."
            ) from None


@contextmanager
def users_code(
    where: str, error: type[CoevolveError], *, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """What a user's code raises, as one `error` that names `where` and the line; one that is so
    already, or `passing`, stays.
    """
    try:
        yield
    except (error, *passing):
        raise
    except (Exception, SystemExit) as fault:
        raise error(f"{where} {_failure(fault)}") from fault


def _module(name: str, where: str) -> ModuleType:
    _look_in(os.getcwd())
    with users_code(f"{where}: importing {name}", RecipeError):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
            missing = error.name
    remedy = "Install it, or put its folder on PYTHONPATH, or start in it"
    raise RecipeError(f"{where}: there is no module {missing!r}. {remedy}.")


def _file(name: str, where: str) -> ModuleType:
    """The module that a file is; the same one however often it is asked for."""
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise RecipeError(f"{where}: no file {path}. The path counts from the working directory.")
    known_as = f"custom_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    if known_as in sys.modules:
        return sys.modules[known_as]
    _look_in(str(path.parent))
    spec = importlib.util.spec_from_file_location(known_as, path)
    assert spec is not None and spec.loader is not None  # its name ends with .py
    module = sys.modules[known_as] = importlib.util.module_from_spec(spec)
    try:
        with users_code(f"{where}: importing {name}", RecipeError):
            spec.loader.exec_module(module)
    except RecipeError:
        del sys.modules[known_as]
        raise
    return module


def _look_in(folder: str) -> None:
    # At the end, so that nothing in the folder is taken for a library of the same name.
    if folder not in sys.path:
        sys.path.append(folder)


def _failure(error: BaseException) -> str:
    """What an exception says, and where it was raised."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    return f"failed with {type(error).__name__}: {error} ({place})."
