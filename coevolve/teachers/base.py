"""What every teacher is, which ones a recipe can name, and what a user's own is held to."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from coevolve.chat.base import without_thinking
from coevolve.data.example import Example
from coevolve.errors import TeacherError
from coevolve.prompts.reasoning import missing_sections
from coevolve.prompts.sets import PromptSet
from coevolve.recipe.schema import Traces
from coevolve.registry import CUSTOM, Registry, users_code

_SHOWN = 400  # characters of a faulty reply that an error quotes


@dataclass(frozen=True)
class Answer:
    """A teacher's answer for one example: a well-formed trace, or None and what the problem was."""

    sample_id: str
    trace: str | None
    problem: str = ""


class Teacher(Protocol):
    """Writes a reasoning r*, with the sections of `prompts`, for examples whose golden response it
    is shown. Two teachers with equal `settings` (JSON values) may share a file.
    """

    @property
    def prompts(self) -> PromptSet: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, in any order; TeacherError if the teacher is out of order."""
        ...


@runtime_checkable
class DivisibleTeacher(Teacher, Protocol):
    """A teacher that is made on each process of a run, and answers there about a share. Any other
    works on the main process alone.
    """

    def share(self, examples: Sequence[Example], rank: int, count: int) -> Sequence[Example]:
        """What process `rank` of `count` asks about: each example is in one share."""
        ...


TEACHERS: Registry[Callable[..., Teacher]] = Registry(
    "teacher",
    accepted=(
        "a function or class (prompts, train, **more) that gives a teacher, with `prompts`, "
        "`settings` and `answers` as coevolve.teachers.Teacher has them"
    ),
    given=("settings", "prompts", "renderer", "train", "environ", "seed", "device", "date", "poll"),
    classes=True,
    error=TeacherError,
)
"""What makes a teacher, by name: called with the recipe's `traces` as `settings`, the prompt set
and a renderer of it, the training examples, the environment, the run's seed, device and date, and
what to call now and then, which raises when the run is to be left.
"""


def make_teacher(settings: Traces, **given: Any) -> Teacher:
    """The teacher that a recipe's `traces` name; `given` is what else it is called with."""
    make = TEACHERS.get(settings.teacher, "traces.teacher")
    if not settings.teacher.startswith(CUSTOM):
        return make(settings=settings, **given)
    where = f"traces.teacher {settings.teacher!r}"
    with users_code(where, TeacherError):
        teacher = make(settings=settings, **given)
        lacking = [x for x in ("prompts", "settings", "answers") if not hasattr(teacher, x)]
        if lacking:
            raise TeacherError(
                f"{where} gave {type(teacher).__name__}, which has no {lacking[0]!r}; accepted is "
                f"{TEACHERS.accepted}."
            )
        json.dumps(teacher.settings)  # they are written beside the traces
    return _UsersTeacher(teacher, where)


class _UsersTeacher:
    """A user's own teacher, each answer of which is looked at."""

    def __init__(self, teacher: Teacher, where: str):
        self.teacher, self.where = teacher, where
        self.prompts, self.settings = teacher.prompts, teacher.settings
        if isinstance(teacher, DivisibleTeacher):
            self.share = teacher.share

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        waiting = {example.sample_id: example for example in examples}
        with users_code(self.where, TeacherError):
            for answer in self.teacher.answers(examples):
                example = waiting.pop(getattr(answer, "sample_id", ""), None)
                if example is None:
                    raise TeacherError(
                        f"{self.where} answered with {answer!r}; accepted is one "
                        "coevolve.teachers.Answer for each example that it is given."
                    )
                trace, problem = (
                    (None, answer.problem)
                    if answer.trace is None
                    else read_reply(answer.trace, self.prompts.sections)
                )
                yield (
                    unusable(example, problem) if trace is None else Answer(answer.sample_id, trace)
                )
        for example in waiting.values():
            yield unusable(example, "the teacher gave no answer")


def require_response(example: Example) -> str:
    """The golden response, which every teacher must be shown."""
    if example.golden_response is None:
        raise TeacherError(
            f"sample_ID {example.sample_id!r}: agent_golden_response is missing; a teacher derives "
            "its trace from it. Add it, or leave the example out of the cold start."
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
        fault = f"section {missing[0]!r} is missing, doubled, out of order or empty"
        return None, f"{fault}; the reply was {shown}"
    return text[text.index(sections[0]) :].strip(), ""


def unusable(example: Example, problem: str, attempts: int = 1) -> Answer:
    """The answer without a trace, its problem worded for a TeacherError."""
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return Answer(
        example.sample_id,
        None,
        f"sample_ID {example.sample_id!r}: no usable trace after {tries}: {problem}",
    )
