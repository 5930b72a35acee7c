"""What every teacher is: something that answers examples with traces r*, and tells by what settings
it did so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coevolve.chat.base import without_thinking
from coevolve.data.example import Example
from coevolve.errors import TeacherError
from coevolve.prompts.reasoning import missing_sections
from coevolve.prompts.sets import PromptSet

_SHOWN = 400  # characters of a faulty reply that an error quotes


@dataclass(frozen=True)
class Answer:
    """A teacher's answer for one example: a well-formed trace, or None and what the problem was."""

    sample_id: str
    trace: str | None
    problem: str = ""


class Teacher(Protocol):
    """Writes a reasoning r* for examples whose golden response it is shown.

    Attributes:
        prompts: the set whose sections its traces have.
        settings: JSON values that say which teacher this is. Two teachers with equal settings may
            share a file.
    """

    @property
    def prompts(self) -> PromptSet: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, as they become ready, in any order.

        Raises:
            TeacherError: the teacher itself is out of order, so that no further example would be
                answered.
        """
        ...


def require_response(example: Example) -> str:
    """The golden response, which every teacher must be shown.

    Raises:
        TeacherError: the example has none.
    """
    if example.golden_response is None:
        raise TeacherError(
            f"sample_ID {example.sample_id!r}: agent_golden_response is missing; a teacher derives its trace from it. "
            "Add it, or leave the example out of the cold start."
        )
    return example.golden_response


def read_reply(reply: str, sections: Sequence[str]) -> tuple[str | None, str]:
    """(trace, "") from what a chat model wrote, or (None, what is wrong with it).

    Thinking and whatever stands before the first heading are no part of a trace.
    """
    text = without_thinking(reply)
    missing = missing_sections(text, sections)
    if missing:
        shown = repr(text.strip()[:_SHOWN]) + ("..." if len(text.strip()) > _SHOWN else "")
        return (
            None,
            f"section {missing[0]!r} is missing, doubled, out of order or empty; the reply was {shown}",
        )
    return text[text.index(sections[0]) :].strip(), ""


def unusable(example: Example, problem: str, attempts: int = 1) -> Answer:
    """The answer without a trace, its problem worded for a TeacherError."""
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return Answer(
        example.sample_id,
        None,
        f"sample_ID {example.sample_id!r}: no usable trace after {tries}: {problem}",
    )
