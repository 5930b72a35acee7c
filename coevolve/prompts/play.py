"""What a role-playing model that is to be judged is shown: the chat it is in.

    system     the character that it plays, and the user as the persona describes them
    user       the user's first turn
    assistant  the character's answer to it
    ...
    user       the turn to be answered

Chat templates want turns in exchange that begin with the user's. So neighbouring turns of one
speaker become one message, and a dialogue that the character began gets an opening message before
it.
"""

from collections.abc import Callable

from coevolve.data.example import Example
from coevolve.prompts.render import character_text

SYSTEM = """\
You play a character in a conversation with a user. Stay in character: speak as the character would, know what the \
character knows, and answer in the language of the conversation.

## Your character
{agent_character}

## The user
{user_persona}

Give the character's next response and nothing else."""

UNKNOWN_USER = "(nothing is known about the user)"
OPENING = "(The conversation begins.)"
PARTS = (SYSTEM, UNKNOWN_USER, OPENING)


def play_messages(example: Example, harmless: Callable[[str], str]) -> list[dict[str, str]]:
    """The chat messages that ask for a response to `example`, without its golden one; all that
    comes from the example is made `harmless`.
    """
    system = SYSTEM.format(
        agent_character=harmless(character_text(example.agent_character)),
        user_persona=harmless(example.user_persona) or UNKNOWN_USER,
    )
    messages = [{"role": "system", "content": system}]
    if example.dialogue[0].speaker == "agent":
        messages.append({"role": "user", "content": OPENING})
    for turn in example.dialogue:
        role, text = "user" if turn.speaker == "user" else "assistant", harmless(turn.text)
        if messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": role, "content": text})
    return messages
