"""Names inside other libraries, and whether they still are what they were."""

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from coevolve.errors import LibraryError

logger = logging.getLogger(__name__)

TESTED: Mapping[str, tuple[str, str]] = {
    "accelerate": ("1.15.0", "1.15.0"),
    "deepspeed": ("0.19.0", "0.19.8"),
    "peft": ("0.21.0", "0.21.2"),
    "torch": ("2.13.0", "2.14.1"),
    "transformers": ("5.23.0", "5.24.0"),
    "trl": ("1.16.0", "1.16.0"),
    "vllm": ("0.30.0", "0.30.0"),
}
"""The lowest and the highest version of each library that every hook was found and called in."""


@dataclass(frozen=True)
class Hook:
    """A name in a library that is not its public API; as an attribute of a class, another name for
    it in the class's instances.

    Attributes:
        owner: `module` or `module:Class`; of an instance's attribute, its class.
        purpose: what it does for this package, as the end of "..., by which".
        parameters: the first ones of what is called or overridden, in order; whatever follows must
            have a default. None for what is not called.
    """

    owner: str
    name: str
    purpose: str
    parameters: tuple[str, ...] | None = None

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.find(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        self.find(instance)  # what is not there is not read either
        setattr(instance, self.name, value)

    def __str__(self) -> str:
        module, _, inside = self.owner.partition(":")
        return f"{inside or module}.{self.name}"

    def require(self, on: Any = None) -> None:
        """Raise LibraryError unless it is as it was, in its owner or in an instance of it."""
        found = self.find(on)
        if self.parameters is not None:
            taken = [p for p in inspect.signature(found).parameters.values() if p.name != "self"]
            names, count = tuple(p.name for p in taken), len(self.parameters)
            needed = [p for p in taken[count:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if names[:count] != self.parameters or any(p.default is p.empty for p in needed):
                expected = ", ".join(self.parameters)
                raise self.lost(f"takes ({', '.join(names)}), where ({expected}) is expected")

    def lost(self, how: str) -> LibraryError:
        """The error that says in which way it is not what it was."""
        library = self.owner.partition(":")[0].partition(".")[0]
        (low, high), known = TESTED[library], ", ".join(f"{x} {_range(x)}" for x in TESTED)
        return LibraryError(
            f"{library} {_installed(library)}: {self}, by which {self.purpose}, {how}. Known to "
            f"work: {known}. Install such a version: pip install '{library}>={low},<={high}'"
        )

    def find(self, on: Any = None) -> Any:
        """What it names, in its owner or in an instance of it; LibraryError where it is gone."""
        try:
            if on is None:
                module, _, inside = self.owner.partition(":")
                on = import_module(module)
                on = getattr(on, inside) if inside else on
            return getattr(on, self.name)
        except (ImportError, AttributeError):
            raise self.lost("is missing") from None


def hooks(owner: str, purpose: str, *names: str) -> tuple[Hook, ...]:
    """Hooks of one owner for one purpose; `name(a, b)` is called with these parameters."""
    found = []
    for text in names:
        name, called, rest = text.partition("(")
        parameters = tuple(re.findall(r"\w+", rest)) if called else None
        found.append(Hook(owner, name, purpose, parameters))
    return tuple(found)


def hooks_of(kind: type) -> list[Hook]:
    """Those that a class and what it is made from are declared with."""
    return [hook for base in kind.__mro__ for hook in vars(base).values() if isinstance(hook, Hook)]


def overridden(hook: Hook, by: str) -> Callable[..., Any]:
    """A method in a library's place that calls `by`, and is noted in the instance's `called`."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.called.add(hook.name)
        return getattr(self, by)(*args, **kwargs)

    return method


def require(found: Iterable[Hook], on: Any = None) -> None:
    """Raise LibraryError for the first hook that is gone or changed."""
    for hook in found:
        hook.require(on)


@cache
def warn_of_untested(*libraries: str) -> None:
    """Say once which of these libraries have a version that nobody tried with this package."""
    for name in libraries:
        found = _installed(name)
        if not within(name, found):
            logger.warning(
                "%s %s was not tested with this version of coevolve, which knows %s.",
                *(name, found, _range(name)),
            )


def within(library: str, found: str) -> bool:
    """Whether a version is one of those that were tested."""
    from packaging.version import Version

    low, high = map(Version, TESTED[library])
    return low <= Version(Version(found).public) <= high


def _range(library: str) -> str:
    low, high = TESTED[library]
    return low if low == high else f"{low} to {high}"


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "0"
