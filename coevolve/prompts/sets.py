"""The prompt sets: every word that the models are shown besides the example itself.

A set is data, so that an exported estimator can carry its own (`PromptSet.to_dict`) and a later
version of this file cannot change what an old estimator means.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args

from coevolve.data.words import distinct_words
from coevolve.errors import RecipeError
from coevolve.prompts.templates import (
    fields_of,
    literals_of,
    problem_of_label,
    problem_of_template,
    problem_of_text,
)

Convention = Literal["coevolve", "reference"]
"""How values become text.

`coevolve`: a character that is an object is one line per field; the core features of a reasoning
    are a stripped block,
`no_features` where there is none.
`reference`: as the paper's public code does it. A character is Python's `str()` of the object; the
    core features are
whatever follows the last heading, the whole text where it is missing, with the backtick fences
taken out.
"""

_INPUTS = ("user_persona", "agent_character", "dialogue")
_X = ("context", *_INPUTS)
_Y_NEXT = (*_X, "last_exchange")
FIELDS_OF_TEMPLATE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "context": _INPUTS,
        "user_turn": ("k", "text"),
        "agent_turn": ("k", "text"),
        "next_turn": ("k",),
        "connector_user": _X,
        "estimator_user": (*_Y_NEXT, "features"),
        "direct_user": _Y_NEXT,
        "judge_user": ("features", "response"),
        "teacher_user": (*_X, "response"),
    }
)
LISTS = ("sections", "labels")
MOST_ITEMS = 50
"""Of sections, and of labels."""


@dataclass(frozen=True)
class PromptSet:
    """Templates, filled with `str.format`. What they may hold beside text stands in
    `coevolve.prompts.templates`.

    A template with a field {context} may have the fields of `context` itself instead.

    Attributes:
        name: how a recipe asks for the set.
        sections: headings that a reasoning must hold, in order; the last one opens the core
            features.
        context: fields {user_persona}, {agent_character}, {dialogue}: the example x as text.
        user_turn, agent_turn: fields {k} (number of the exchange, from 1) and {text}.
        next_turn: field {k}: what follows the last user turn, where the response will stand.
        turn_separator: between two turns.
        labels: patterns of what only the template itself may write at the start of a line.
        connector_user: field {context}. The connector answers with a reasoning r.
        estimator_user: fields {context}, {features}, {last_exchange} (the last user turn and
            `next_turn`). The estimator answers with the response y.
        direct_user: fields {context}, {last_exchange}. The baseline without reasoning answers with
            y.
        judge_user: fields {features}, {response}. The judge answers with how much of the features
            is matched.
        judge_match: the judge's answer that stands for a full match.
        teacher_user: fields {context}, {response}. A teacher, shown the golden response, answers
            with r*.
        no_features: stands for the features of a reasoning that has none.
        response_start: what every answer of the estimator begins with; given to it behind the
            prompt, never scored.
        convention: how values become text.
        connector_system, ...: system messages; empty for none.
    """

    name: str
    sections: tuple[str, ...]
    context: str
    user_turn: str
    agent_turn: str
    next_turn: str
    turn_separator: str
    labels: tuple[str, ...]
    connector_user: str
    estimator_user: str
    direct_user: str
    judge_user: str = ""
    judge_match: str = ""
    teacher_user: str = ""
    no_features: str = ""
    response_start: str = ""
    convention: Convention = "coevolve"
    connector_system: str = ""
    estimator_system: str = ""
    judge_system: str = ""
    teacher_system: str = ""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise RecipeError(f"prompts: {problem}.")
        if self.convention not in get_args(Convention):
            raise RecipeError(
                f"prompts: convention is {self.convention!r}; accepted are "
                f"{', '.join(get_args(Convention))}."
            )

    def _problems(self) -> Iterator[str]:
        for field in fields(self):
            value = getattr(self, field.name)
            texts = value if field.name in LISTS and isinstance(value, tuple) else (value,)
            if field.name in LISTS and (not isinstance(value, tuple) or len(value) > MOST_ITEMS):
                yield (
                    f"{field.name} is {value!r:.80}; accepted is a list of at most {MOST_ITEMS} "
                    "texts"
                )
            for text in texts:
                problem = problem_of_text(text)
                if problem is None and field.name in FIELDS_OF_TEMPLATE:
                    problem = problem_of_template(text, FIELDS_OF_TEMPLATE[field.name])
                if problem is None and field.name == "labels":
                    problem = problem_of_label(text)
                if problem:
                    yield f"{field.name} {problem}"
        if not self.sections or not all(heading.strip() for heading in self.sections):
            yield (
                "sections is empty or has an empty heading; accepted are headings, the last one of "
                "the core features"
            )
        if "features" not in fields_of(self.estimator_user):
            yield (
                "estimator_user has no {features}, so no reasoning could reach the estimator; add "
                "that field"
            )

    @cached_property
    def instruction(self) -> frozenset[str]:
        """The words, in lower case, that a connector is shown beside the example, and may not just
        repeat.
        """
        templates = (self.connector_user, self.context, self.user_turn, self.agent_turn)
        literals = [text for template in templates for text in literals_of(template)]
        told = (self.connector_system, self.no_features, *self.sections, *literals)
        return frozenset(distinct_words("\n".join(told)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a manifest."""
        return {x: list(y) if isinstance(y, tuple) else y for x, y in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptSet":
        """The set that `to_dict` wrote."""
        if not isinstance(values, Mapping):
            raise RecipeError(f"prompts: found {values!r:.80}; accepted is an object.")
        known = {field.name for field in fields(cls)}
        required = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise RecipeError(f"prompts: the field {missing[0]!r} is missing.")
        unknown = set(values) - known
        if unknown:
            raise RecipeError(
                f"prompts: unknown field {sorted(unknown)[0]!r}; accepted are "
                f"{', '.join(sorted(known))}."
            )
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**given)


FEATURES_HEADING = "[Core Features of the Golden Response]"

_CONTEXT = """\
## User Persona
{user_persona}

## Agent Character
{agent_character}

## Dialogue
{dialogue}"""

_DIALOGUE: dict[str, Any] = {
    "context": _CONTEXT,
    "user_turn": "User Query {k}: {text}",
    "agent_turn": "Agent Response {k}: {text}",
    "next_turn": "Agent Response {k}:",
    "turn_separator": "\n",
    "labels": (
        r"(User Query|Agent Response) \d+:",
        r"## (User Persona|Agent Character|Dialogue|Core Features)",
        "```",
    ),
    "no_features": "(none)",
    # A model goes on with what it read last. So the prompt ends as the answer begins, and features
    # do not stand between the two.
    "estimator_user": (
        "{context}\n\n## Core Features of the Golden "
        "Response\n```\n{features}\n```\n\n{last_exchange}"
    ),
    "direct_user": "{context}\n\n{last_exchange}",
    "judge_system": (
        "You judge how well a response in a role-playing dialogue carries the features asked for."
    ),
    "judge_user": (
        "## Core Features\n```\n{features}\n```\n\n## Response\n{response}\n\n"
        "How much of the core features does the response match? Answer with a percentage from 0% "
        "to 100% only."
    ),
    "judge_match": "100%",
    "estimator_system": (
        "You play the agent's character in a dialogue with the user. Give the agent's next "
        "response and nothing else."
    ),
}

_FIVE_HEADINGS = f"""\
[User Persona] what in the user's persona, background and language matters for this turn;
[Agent Character] what in the character's identity, knowledge, style and mood matters for this turn;
[Dialogue Context] what was said, what the user wants now, and what would be out of place;
[Connections] how persona, character and dialogue bear on one another;
{FEATURES_HEADING} what a good response says and how: its act, content, wording, tone, length, \
language."""
_TWO_HEADINGS = f"""\
[Connections] what in persona, character and dialogue it takes up;
{FEATURES_HEADING} its act, key words, tone, length and language."""

ROLEPLAY = PromptSet(
    name="roleplay",
    sections=(
        "[User Persona]",
        "[Agent Character]",
        "[Dialogue Context]",
        "[Connections]",
        FEATURES_HEADING,
    ),
    connector_system=(
        "You prepare the response of a character in a role-playing dialogue. You do not write the "
        "response. You work out what it has to be like."
    ),
    connector_user=(
        "{context}\n\n"
        "Think about the agent's next response, under these five headings, each on a line of its "
        "own:\n"
        f"{_FIVE_HEADINGS}"
    ),
    teacher_system=(
        "You explain why a given response in a role-playing dialogue is the right one, as if you "
        "had worked out what it must be like before it was written."
    ),
    teacher_user=(
        "{context}\n\n## The response that was given\n{response}\n\n"
        "Work out what leads to this response, under these five headings, each on a line of its "
        "own. Do not quote the response and do not mention that you have seen it.\n"
        f"{_FIVE_HEADINGS}"
    ),
    **_DIALOGUE,
)

BRIEF = PromptSet(
    name="brief",
    sections=("[Connections]", FEATURES_HEADING),
    connector_system="You plan the next response of a character in a dialogue.",
    connector_user=(
        "{context}\n\n"
        "Plan the agent's next response in a few words, under these two headings:\n"
        f"{_TWO_HEADINGS}"
    ),
    teacher_system="You explain in a few words what a good response in a dialogue has to be like.",
    teacher_user=(
        "{context}\n\n## The response that was given\n{response}\n\n"
        "Say in a few words what leads to this response, under these two headings, without quoting "
        "it:\n"
        f"{_TWO_HEADINGS}"
    ),
    **_DIALOGUE,
)

WORLD = PromptSet(
    name="world",
    sections=("[Connections]", "[Features]"),
    context="{user_persona} | {agent_character} | {dialogue}",
    user_turn="{text}",
    agent_turn="{text}",
    next_turn="",
    turn_separator=" / ",
    labels=(),
    connector_user="{context}",
    estimator_user="{context} [Features] {features}",
    direct_user="{context}",
)

_SETS = {prompts.name: prompts for prompts in (ROLEPLAY, BRIEF, WORLD)}
# As version 0.3 had them, where the features stood last. They keep the names that they had then, so
# that traces collected with them are still known as theirs.
_SETS |= {
    f"{prompts.name}-0.3": replace(
        prompts,
        estimator_user="{context}\n\n## Core Features of the Golden Response\n```\n{features}\n```",
        direct_user="{context}",
    )
    for prompts in (ROLEPLAY, BRIEF)
}


def began_as(name: str) -> str:
    """The name by which a set of version 0.3 goes now."""
    former = f"{name}-0.3"
    return former if former in _SETS else name


def prompt_set(name: str) -> PromptSet:
    """The built-in set of that name."""
    if name not in _SETS:
        raise RecipeError(f"prompts: found {name!r}; accepted are {', '.join(_SETS)}.")
    return _SETS[name]
