"""What a judge of responses is asked, as data: criteria, scale and words."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from coevolve.prompts.templates import problem_of_template, problem_of_text
from coevolve.recipe.section import Section

_DIALOGUE = ("agent_character", "user_persona", "dialogue", "golden_response")
_FIELDS = {
    "system": (*_DIALOGUE, "low", "high"),
    "user": (*_DIALOGUE, "responses", "criteria", "answer", "low", "high"),
    "response": ("label", "response"),
    "criterion": ("name", "question"),
}
Score = Annotated[int, Field(ge=-1000, le=1000)]

CRITERIA = {
    "consistency": "Does it fit who the character is, what it knows, and how it speaks?",
    "engagement": "Does it take up what the user says, and make one want to go on talking?",
    "fluency": "Is it natural, and in the language of the conversation?",
    "personalisation": "Does it take account of who the user is?",
}


class Rubric(Section):
    """How responses are judged. The judge's answer has a line `LABEL NAME: SCORE` for each response
    and criterion; `{answer}` stands for such lines, as an example.
    """

    criteria: Annotated[dict[str, str], Field(min_length=1, max_length=26)] = Field(
        default_factory=CRITERIA.copy
    )
    """Name -> question. A response's score is the mean over them."""
    low: Score = 1
    """The worst score."""
    high: Score = 5
    """The best one."""
    system: str = "You are a strict and fair judge of role-playing dialogues."
    """Empty for no system message."""
    user: str = """\
A character talks to a user. Judge how well each response would continue the conversation.

## The character
{agent_character}

## The user
{user_persona}

## The conversation
{dialogue}

{responses}

## Criteria
{criteria}

Give each response a whole number from {low} (worst) to {high} (best) for each criterion. Answer \
with these lines only, with your numbers in place of the dots:
{answer}"""
    """Also with {golden_response}, for a judge that may see it."""
    response: str = "## Response {label}\n{response}"
    """One of the {responses}, which a line divides."""
    criterion: str = "{name}: {question}"
    """One of the {criteria}."""

    @field_validator("system", "user", "response", "criterion")
    @classmethod
    def _is_a_template(cls, text: str, info: Any) -> str:
        problem = problem_of_text(text) or problem_of_template(text, _FIELDS[info.field_name])
        if problem:
            raise ValueError(problem)
        return text

    @model_validator(mode="after")
    def _can_be_answered(self) -> "Rubric":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; accepted is low below high")
        for name, question in self.criteria.items():
            if not name.strip() or any(x in name for x in ":\n") or name != name.strip():
                raise ValueError(f"criteria: {name!r}; accepted is a name in a line, without ':'")
            if problem := problem_of_text(question):
                raise ValueError(f"criteria: {name} {problem}")
        if len({name.lower() for name in self.criteria}) < len(self.criteria):
            raise ValueError("criteria: two names differ by case only; rename one")
        for field in ("responses", "answer"):
            if "{" + field + "}" not in self.user:
                raise ValueError(f"user: has no {{{field}}}; add that field")
        return self
