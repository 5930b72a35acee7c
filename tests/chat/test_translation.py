"""The user's language by a translator behind an endpoint: what it is asked,
and what it may answer.
"""

import json

import pytest

from coevolve.chat import Endpoint
from coevolve.errors import ChatError, DataError
from coevolve.shifts.language import translate

pytest.importorskip("openai")


def says(text, finish_reason="stop") -> dict:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
    }
    return {"body": json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})}


def asked(request) -> dict:
    return json.loads(request["messages"][-1]["content"])


def shouting(value):
    """A translation into capitals."""
    if isinstance(value, dict):
        return {name: shouting(item) for name, item in value.items()}
    return [shouting(item) for item in value] if isinstance(value, list) else value.upper()


def good(number, request):
    return says(f"Here you are:\n```json\n{json.dumps(shouting(asked(request)))}\n```")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "translations.jsonl"


def run(server, examples, path, attempts=3, language="Capitals"):
    translator = Endpoint(server.url, "m", temperature=0.0, attempts=attempts, concurrency=1)
    return translate(examples, translator, path, language=language, tag="loud")


def test_everything_but_the_character_is_translated(serve, examples, path):
    server = serve(good)
    rows = run(server, examples, path)
    for before, after in zip(examples, rows, strict=True):
        assert after.user_persona == before.user_persona.upper()
        assert [(t.speaker, t.text) for t in after.dialogue] == [
            (t.speaker, t.text.upper()) for t in before.dialogue
        ]
        assert after.golden_response == before.golden_response.upper()
        assert (after.agent_character, after.sample_id) == (
            before.agent_character,
            f"loud:{before.sample_id}",
        )
        assert (
            after.shift["golden"],
            after.shift["language"],
            after.shift["translator"]["address"],
        ) == (
            "translated",
            "Capitals",
            server.url,
        )
    assert all("Capitals" in request["messages"][0]["content"] for request in server.requests)


def test_a_second_start_asks_only_for_what_is_missing(serve, examples, path):
    server = serve(
        lambda number, request: good(number, request) if number <= 2 else {"status": 404}
    )
    with pytest.raises(ChatError, match=f"The endpoint {server.url} failed"):
        run(server, examples, path)
    again = serve(good)
    assert len(run(again, examples, path)) == 4
    assert len(again.requests) == 2
    with pytest.raises(DataError, match="other language"):
        run(again, examples, path, language="Lower case")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda texts: "I would rather not.", "no JSON object"),
        (
            lambda texts: json.dumps({**texts, "note": "x"}),
            "the reply is not an object with user_persona, turns, resp",
        ),
        (
            lambda texts: json.dumps({**texts, "turns": texts["turns"] * 2}),
            r"the reply.turns is not a list of 1",
        ),
        (
            lambda texts: json.dumps({**texts, "turns": [{"agent": "x"}]}),
            r"turns\[0\] is not an object with user",
        ),
        (lambda texts: json.dumps({**texts, "response": " "}), "the reply.response: text is empty"),
        (
            lambda texts: json.dumps({**texts, "response": 3}),
            "the reply.response: text is a number",
        ),
    ],
)
def test_another_shape_is_asked_again_and_then_an_error(serve, examples, path, change, message):
    server = serve(lambda number, request: says(change(asked(request))))
    with pytest.raises(
        ChatError, match=f"'bread': no usable translation after 2 attempts: .*{message}"
    ):
        run(server, examples[:1], path, attempts=2)
    assert len(server.requests) == 2


def test_a_translation_that_was_cut_off_is_asked_again(serve, examples, path):
    server = serve(
        lambda number, request: (
            says('{"user_persona"', "length") if number == 1 else good(number, request)
        )
    )
    assert len(run(server, examples[:1], path)) == 1


def test_a_line_that_somebody_changed_is_named(serve, examples, path):
    server = serve(good)
    run(server, examples[:1], path)
    path.write_text(path.read_text().replace("golden".upper(), "").replace(" OF BREAD", ""))
    with pytest.raises(DataError, match=r"the translation of 'bread'.response: text is empty"):
        run(server, examples[:1], path)
