"""Running named checks, so that all problems are reported at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from coevolve.errors import CoevolveError, PreflightError

Draft = TypeVar("Draft")


@dataclass(frozen=True)
class Check(Generic[Draft]):
    """One thing that is looked at: `look` gives or raises problems, and leaves in the draft what it
    built. Without the draft's attributes in `needs`, there is nothing to look at.
    """

    name: str
    look: Callable[[Draft], Iterable[CoevolveError] | None]
    needs: tuple[str, ...] = ()


def preflight(draft: Draft, checks: Sequence[Check[Draft]]) -> Draft:
    """Make every check, and return the draft; raise the problem, or PreflightError of several."""
    problems = [
        problem
        for check in checks
        if all(getattr(draft, name) is not None for name in check.needs)
        for problem in _found(check, draft)
    ]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise PreflightError(problems)
    return draft


def _found(check: Check[Draft], draft: Draft) -> Iterator[CoevolveError]:
    try:
        yield from check.look(draft) or ()
    except CoevolveError as problem:
        yield problem
