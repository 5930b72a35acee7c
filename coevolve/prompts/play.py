"""What a role-playing model that is to be judged is shown: the chat it is in.

    system     the character that it plays, and the user as the persona describes them
    user       the user's first turn
    assistant  the character's answer to it
    ...
    user       the turn to be answered

Chat templates want turns in exchange that begin with the user's. So neighbouring turns of one
speaker become one message, and a dialogue that the character began gets an opening message before
it. A prompt of one's own may show the dialogue as text instead.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import field_validator

from coevolve.data.example import Example
from coevolve.data.ledger import digest
from coevolve.prompts.render import Renderer, character_text, turns_of
from coevolve.prompts.template import message
from coevolve.prompts.templates import problem_of_template, problem_of_text
from coevolve.recipe.load import read_section
from coevolve.recipe.section import Section

SYSTEM = """\
You play a character in a conversation with a user. Stay in character: speak as the character \
would, know what the character knows, and answer in the language of the conversation.

## Your character
{agent_character}

## The user
{user_persona}

Give the character's next response and nothing else."""

UNKNOWN_USER = "(nothing is known about the user)"
OPENING = "(The conversation begins.)"

_INPUTS = ("agent_character", "user_persona", "dialogue")
_FIELDS = {"system": _INPUTS, "user": _INPUTS, "user_turn": ("k", "text")}
_FIELDS |= {"agent_turn": ("k", "text"), "next_turn": ("k",)}


class PlayPrompt(Section):
    """What a role-playing model is shown. `{k}` counts the exchanges from 1."""

    system: str = SYSTEM
    """With {agent_character}, {user_persona} and {dialogue}; empty for no system message."""
    user: str = ""
    """Likewise, as the only message of the user, which then has the {dialogue} as text. Empty where
    the dialogue is the chat.
    """
    user_turn: str = "User Query {k}: {text}"
    """A turn of the dialogue as text."""
    agent_turn: str = "Agent Response {k}: {text}"
    """Likewise."""
    next_turn: str = "Agent Response {k}:"
    """What the dialogue as text ends with."""
    turn_separator: str = "\n"
    """Between two turns of it."""
    character: Literal["lines", "python"] = "lines"
    """A character that is an object: a line for each field, or as Python writes it."""
    unknown_user: str = UNKNOWN_USER
    """For a persona that is empty."""
    opening: str = OPENING
    """The user's first message in a chat that the character begins."""

    @field_validator("*")
    @classmethod
    def _is_a_template(cls, text: Any, info: Any) -> Any:
        problem = problem_of_text(text)
        if problem is None and info.field_name in _FIELDS:
            problem = problem_of_template(text, _FIELDS[info.field_name])
        if problem:
            raise ValueError(problem)
        return text

    def recorded(self) -> str | dict[str, Any]:
        """What a file of responses says of it: a hash of the built-in one, or all of one's own."""
        if self == PlayPrompt():
            return digest((SYSTEM, UNKNOWN_USER, OPENING))
        return self.model_dump()


WORLD = PlayPrompt(
    system="",
    user="{user_persona} | {agent_character} | {dialogue}",
    user_turn="{text}",
    agent_turn="{text}",
    next_turn="",
    turn_separator=" / ",
)
"""Of the synthetic world, in its few words."""
THINK = """\
Think before you respond: who the character is, who the user is, and what the user wants now. Put \
the thought between <think> and </think>, and the response behind it."""


def play_prompt(name: str, *, thinking: bool = False) -> PlayPrompt:
    """The prompt of a recipe: a built-in one by its name, or a file's; perhaps with a thought."""
    named = {"roleplay": PlayPrompt(), "world": WORLD}
    prompt = named.get(name) or read_section(name, PlayPrompt)
    if not thinking:
        return prompt
    return prompt.model_copy(update={"system": f"{prompt.system}\n\n{THINK}".lstrip()})


class PlayRenderer(Renderer):
    """Has the role-playing model's prompt where others have the connector's."""

    def __init__(self, play: PlayPrompt, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.play = play

    def connector(self, example: Example) -> str:
        return self.chat(play_messages(example, self.harmless, self.play))


def play_messages(
    example: Example, harmless: Callable[[str], str], prompt: PlayPrompt | None = None
) -> list[dict[str, str]]:
    """The chat messages that ask for a response to `example`, without its golden one; all that
    comes from the example is made `harmless`.
    """
    prompt = prompt or PlayPrompt()
    to_text = str if prompt.character == "python" else character_text
    turns = turns_of(example, harmless, prompt.user_turn, prompt.agent_turn, prompt.next_turn)
    inputs = {
        "agent_character": harmless(to_text(example.agent_character)),
        "user_persona": harmless(example.user_persona) or prompt.unknown_user,
        "dialogue": prompt.turn_separator.join(turns),
    }
    messages = [message("system", prompt.system.format(**inputs))] if prompt.system else []
    if prompt.user:
        return [*messages, message("user", prompt.user.format(**inputs))]
    if example.dialogue[0].speaker == "agent":
        messages.append(message("user", prompt.opening))
    for turn in example.dialogue:
        role, text = "user" if turn.speaker == "user" else "assistant", harmless(turn.text)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append(message(role, text))
    return messages
