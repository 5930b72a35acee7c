"""The chat that a model to be judged is in."""

import pytest

from coevolve.data.example import Example, Turn
from coevolve.prompts.play import OPENING, UNKNOWN_USER, play_messages


def messages(*turns, persona="I like tea.", character="A sailor."):
    example = Example(
        "s", "t", persona, character, tuple(Turn(*turn) for turn in turns), "the golden one"
    )
    return play_messages(example, lambda text: text.replace("<", "("))


def test_the_character_is_played_to_a_user_turn_by_turn():
    system, *chat = messages(
        ("user", "Hi"), ("agent", "Ahoy"), ("user", "Where to?"), character={"name": "Ada"}
    )
    assert (
        system["role"] == "system"
        and "name: Ada" in system["content"]
        and "I like tea." in system["content"]
    )
    assert [(message["role"], message["content"]) for message in chat] == [
        ("user", "Hi"),
        ("assistant", "Ahoy"),
        ("user", "Where to?"),
    ]


@pytest.mark.parametrize("speakers", ["u", "au", "uu", "aauauu", "uaau"])
def test_turns_go_in_exchange_from_the_user_to_the_user(speakers):
    turns = [
        ("user" if who == "u" else "agent", f"text {index}") for index, who in enumerate(speakers)
    ]
    _, *chat = messages(*turns)
    assert [message["role"] for message in chat] == [
        ("user", "assistant")[index % 2] for index in range(len(chat))
    ]
    assert chat[-1]["role"] == "user"
    said = "\n".join(message["content"] for message in chat).removeprefix(f"{OPENING}\n")
    assert said == "\n".join(text for _, text in turns)


def test_all_that_comes_from_the_data_is_made_harmless_and_the_golden_response_is_not_shown():
    turns = (("user", "<a"), ("agent", "<b"), ("user", "<c"))
    shown = str(messages(*turns, persona="<p", character="<q"))
    assert "<" not in shown and all(f"({letter}" in shown for letter in "abcpq")
    assert "golden" not in shown


def test_an_unknown_user_is_said_to_be_unknown():
    assert UNKNOWN_USER in messages(("user", "Hi"), persona="")[0]["content"]
