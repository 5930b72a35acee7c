"""The chat that a model to be judged is in."""

import pytest

from coevolve.data.example import Example, Turn
from coevolve.errors import RecipeError
from coevolve.prompts.play import OPENING, UNKNOWN_USER, PlayPrompt, play_messages
from coevolve.recipe.load import read_section


def messages(*turns, persona="I like tea.", character="A sailor.", prompt=None):
    example = Example(
        "s", "t", persona, character, tuple(Turn(*turn) for turn in turns), "the golden one"
    )
    return play_messages(example, lambda text: text.replace("<", "("), prompt)


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


@pytest.fixture
def prompt_of(tmp_path):
    def read(text):
        (tmp_path / "prompt.yaml").write_text(text)
        return read_section(tmp_path / "prompt.yaml", PlayPrompt)

    return read


def test_a_prompt_of_ones_own_may_show_the_dialogue_as_text(prompt_of):
    prompt = prompt_of(
        "system: ''\ncharacter: python\nuser_turn: 'U{k} {text}'\nagent_turn: 'A{k} {text}'\n"
        "next_turn: 'A{k}'\nturn_separator: '|'\n"
        "user: 'You are {agent_character}; {user_persona}; {dialogue}'\n"
    )
    turns = (("user", "Hi"), ("agent", "<Ahoy"), ("user", "Where to?"))
    (shown,) = messages(*turns, character={"name": "Ada"}, prompt=prompt)
    said = "You are {'name': 'Ada'}; I like tea.; U1 Hi|A1 (Ahoy|U2 Where to?|A2"
    assert shown == {"role": "user", "content": said}


def test_a_prompt_of_ones_own_may_keep_the_chat(prompt_of):
    prompt = prompt_of('{"system": "Be {agent_character}", "opening": "Start."}')
    shown = messages(("agent", "Ahoy"), ("user", "Hi"), prompt=prompt)
    assert [message["content"] for message in shown] == ["Be A sailor.", "Start.", "Ahoy", "Hi"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sytem: x", r"sytem: unknown key; accepted are .*Did you mean system"),
        ("system: '{persona}'", r"system: has the field \{persona\}; accepted are agent_character"),
        ("user: '{dialogue.x}'", r"user: has the field \{dialogue.x\}"),
        ("user: '{dialogue'", "user: is no template"),
        ("next_turn: 1", "next_turn: found 1"),
        ("- a", "found"),
        ("a: [", "not YAML"),
    ],
)
def test_a_prompt_that_is_none_is_refused(prompt_of, text, message):
    with pytest.raises(RecipeError, match=f"prompt.yaml.*{message}"):
        prompt_of(text)


def test_a_file_of_responses_says_by_which_prompt():
    assert PlayPrompt().recorded() == (
        "d0991712cf59612c0e16a424d06bcd6769b6a00531e2a8e41e0ef34dd3e4eab7"
        # as files begun before prompts could be given have it
    )
    assert (
        PlayPrompt(system="Be {agent_character}.").recorded()["system"] == "Be {agent_character}."
    )
