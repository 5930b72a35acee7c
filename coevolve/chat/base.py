"""What every chat model is: it is asked questions and hands out replies as they come."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from coevolve.errors import RecipeError

Value = TypeVar("Value")

Poll = Callable[[], None]
"""Called in the middle of long work; what it raises ends the work."""

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

RETRY_TEMPERATURE = 0.7  # at least, when asking again: at 0 the reply would be the same
END_OF_THINKING = "</think>"

_NO_ANSWERS = {
    "content_filter": "a filter took the answer, or a part of it",
    "tool_calls": "the model called a tool instead of answering",
    "function_call": "the model called a function instead of answering",
    "abort": "the engine gave the question up",
    "error": "the engine failed at the question",
}
"""What the ends of an answer that is not whole mean."""


@dataclass(frozen=True)
class Question:
    """A chat that ends with the user's message; `id` is the sample_ID that an error names, and
    decides with the seed the noise of sampling.
    """

    id: str
    messages: Sequence[Message]


@dataclass(frozen=True)
class Completion:
    """What a model wrote; `finished` if it ended by itself and was not cut off, `problem` if it is
    no answer, whatever the text is.
    """

    text: str
    finished: bool
    problem: str = ""

    @classmethod
    def ended(cls, text: str, reason: Any) -> "Completion":
        """By the `finish_reason` that a server or an engine gives; some servers give none."""
        if reason is None or reason in ("", "stop", "length"):
            return cls(text, reason != "length")
        meaning = _NO_ANSWERS.get(reason) if isinstance(reason, str) else None
        meaning = meaning or "nobody says what that means"
        return cls(text, True, f"finish_reason is {reason!r:.60}: {meaning}")


@dataclass(frozen=True)
class Reply(Generic[Value]):
    """What came of a question: the value that the asker read, or None and the problem."""

    id: str
    value: Value | None
    problem: str = ""
    attempts: int = 1


Read = Callable[[Question, Completion], tuple[Value | None, str]]
"""(value, "") of a completion that can be used, or (None, problem), which is asked again."""


class ChatModel(Protocol):
    """A chat model. `settings` are JSON values that decide its answers, without any key; `address`
    is the folder, hub id or URL where it is found; a completion of more than `max_tokens` is cut
    off.
    """

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def address(self) -> str: ...

    @property
    def max_tokens(self) -> int: ...

    def harmless(self, text: str) -> str:
        """`text` from data, such that nothing in it is read as a control token."""
        ...

    def replies(self, questions: Sequence[Question], read: Read[Value]) -> Iterator[Reply[Value]]:
        """One reply per question, in any order; ChatError if the model itself is out of order."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def keep_going() -> None:
    """A poll that never ends the work."""


def examined(
    read: Read[Value], question: Question, completion: Completion
) -> tuple[Value | None, str]:
    """What the asker reads from a completion, if it is an answer at all."""
    return (None, completion.problem) if completion.problem else read(question, completion)


def without_thinking(text: str) -> str:
    """What stands behind the model's thinking aloud."""
    return text.rpartition(END_OF_THINKING)[2]


def key_of(question_id: str) -> int:
    """A number that stands for a question, the same in every process and batch."""
    return zlib.crc32(question_id.encode("utf-8", "surrogatepass"))


def temperature_of(
    attempt: int, temperature: float, retry_temperature: float = RETRY_TEMPERATURE
) -> float:
    """The temperature when asking for the `attempt`-th time (from 1)."""
    return temperature if attempt == 1 else max(temperature, retry_temperature)


def require_positive(**numbers: float) -> None:
    """Raise RecipeError for the first number that is not above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise RecipeError(f"{name}: found {number}; accepted is a number above 0.")


def require_not_negative(**numbers: float) -> None:
    """Raise RecipeError for the first number that is below 0, or none."""
    for name, number in numbers.items():
        if not number >= 0:
            raise RecipeError(f"{name}: found {number}; accepted is a number from 0.")
