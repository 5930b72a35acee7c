"""Errors that a caller can catch by meaning; each also inherits the standard error it specialises.

Every message names the file, row or field, what was found, what is accepted, and what to do next.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

PROBLEMS_SHOWN = 20


def meant(word: str, accepted: Iterable[str]) -> str:
    """A sentence with what a mistyped word may have been; empty where nothing is like it."""
    found = difflib.get_close_matches(word, list(accepted), n=1)
    return f" Did you mean {found[0]}?" if found else ""


class CoevolveError(Exception):
    """Any error that coevolve raises on purpose. The command line prints it without a traceback."""

    def __str__(self) -> str:
        # What was found may be anything, a value of a megabyte too; nobody reads that.
        return re.sub(
            r"\S{1000,}",
            lambda word: f"{word[0][:100]}... ({len(word[0])} characters)",
            super().__str__(),
        )


class PreflightError(CoevolveError, ValueError):
    """Things that stand in the way of a command, an error each, all found before it began."""

    def __init__(self, problems: Sequence[CoevolveError]):
        self.problems = tuple(problems)
        shown = [
            f"  {number}. {x}" for number, x in enumerate(self.problems[:PROBLEMS_SHOWN], start=1)
        ]
        more = len(self.problems) - len(shown)
        if more:
            shown.append(f"  and {more} more")
        super().__init__("\n".join([f"{len(self.problems)} things stand in the way:", *shown]))


class DataError(CoevolveError, ValueError):
    """Input data (examples, traces, responses) that cannot be used as it stands."""


class TooLongError(DataError):
    """An example whose prompt and response do not fit the model."""


class OutOfMemoryError(CoevolveError, RuntimeError):
    """A single row that the device's memory does not hold, so that no smaller batch can help."""


class RecipeError(CoevolveError, ValueError):
    """A recipe with an unknown key, an unusable value, or values that contradict one another."""


class ArtifactError(CoevolveError, ValueError):
    """A checkpoint or exported estimator that is incomplete, damaged, or of another model."""


class OutputError(CoevolveError, ValueError):
    """A place that a command may not, or cannot, write to."""


class ChatError(CoevolveError, RuntimeError):
    """A chat model (local or behind an endpoint) that is out of order, or gave no usable answer."""


class EngineError(CoevolveError, RuntimeError):
    """The engine that generates (vLLM) cannot be started or reached, or is not as needed."""


class TeacherError(ChatError):
    """A teacher (local model or endpoint) that did not give a usable trace."""


class RewardError(CoevolveError, ValueError):
    """A reward that returned the wrong number of values, or a value that is not finite."""


class ContentError(CoevolveError, RuntimeError):
    """A connector whose reasonings say nothing, so that there is nothing to reinforce."""


class DivergenceError(CoevolveError, ArithmeticError):
    """A loss or gradient that is no number, found before the optimizer step that would use it."""


class LibraryError(CoevolveError, RuntimeError):
    """A library that is not as this package knows it: what it reaches there is gone or changed."""
