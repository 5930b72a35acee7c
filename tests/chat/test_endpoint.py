"""Responses from an endpoint: what it is asked, what is on disk when, and every way in which a
server can fail.
"""

import json
import threading
import time
from dataclasses import replace

import pytest

from coevolve.chat import Endpoint
from coevolve.data.responses import read_partial_responses, read_responses
from coevolve.errors import ChatError, DataError, RecipeError
from coevolve.prompts.play import PlayPrompt
from coevolve.respond import collect_responses

pytest.importorskip("openai")

KEY = "secret-key-1234"


def says(text, finish_reason="stop", **answer) -> dict:
    """A server's good answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return {"body": json.dumps(body), **answer}


def asked_about(request: dict) -> str:
    """The sample, by what the user said last."""
    last = request["messages"][-1]["content"]
    return {
        "Do you bake?": "bread",
        "A musician.": "tuba",
        "Have you been to Lisbon?": "lisbon",
    }.get(last, "rain")


def echo(number, request):
    return says(f" Answer to {asked_about(request)}.\n")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "responses.jsonl"


def test_each_example_is_asked_once_and_its_response_is_read_back(serve, examples, out):
    server, told = serve(echo), []
    endpoint = Endpoint(server.url, "m", temperature=0.5, max_tokens=77, seed=3)
    collection = collect_responses(
        examples, endpoint, out, progress=lambda *what: told.append(what)
    )
    assert read_responses(out, examples) == [
        f"Answer to {example.sample_id}." for example in examples
    ]
    assert (collection.examples, collection.asked, collection.found) == (4, 4, 0)
    assert told[-1] == (4, 4, "")
    assert len(server.requests) == 4
    for request in server.requests:
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.5, 77)
    assert len({request["seed"] for request in server.requests}) == 4  # each sample its own noise
    shown = json.dumps(server.requests)
    assert "I play the tuba." in shown and "golden" not in shown


def test_the_prompt_of_ones_own_is_asked_recorded_and_compared(serve, examples, out):
    server, prompt = serve(echo), PlayPrompt(system="", user="{dialogue}", next_turn="")
    endpoint = Endpoint(server.url, "m", temperature=0.5)
    collect_responses(examples[:1], endpoint, out, prompt=prompt)
    (asked,) = (request["messages"] for request in server.requests)
    assert asked == [{"role": "user", "content": "User Query 1: Do you bake?"}]
    assert json.loads(out.read_text().splitlines()[0])["prompt"]["user"] == "{dialogue}"
    with pytest.raises(DataError, match="other prompt: next_turn was '' and is now 'X'"):
        other = prompt.model_copy(update={"next_turn": "X"})
        collect_responses(examples, endpoint, out, prompt=other)


def test_fields_are_added_and_taken_out(serve, examples, out):
    server = serve(echo)
    extra = {
        "top_p": 0.9,
        "max_tokens": None,
        "max_completion_tokens": 5,
        "chat_template_kwargs": {"x": False},
    }
    collect_responses(examples[:1], Endpoint(server.url, "m", temperature=0.0, extra=extra), out)
    (request,) = server.requests
    assert set(request) == {"model", "messages", "temperature", *extra} - {"max_tokens"}
    assert request["chat_template_kwargs"] == {"x": False}
    with pytest.raises(RecipeError, match="extra: found 'stream'"):
        Endpoint(server.url, "m", extra={"stream": True})


def test_a_response_is_on_disk_before_the_next_one_arrives(serve, examples, out):
    seen = []

    def script(number, request):
        deadline = time.monotonic() + 20
        while number > 1 and len(rows_of(out)) < number - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(len(out.read_text().splitlines()))
        return echo(number, request)

    collect_responses(examples, Endpoint(serve(script).url, "m", concurrency=1), out)
    assert seen == [1, 2, 3, 4]  # the header, and one more line each time


def test_a_second_start_asks_only_for_what_is_missing(serve, examples, out):
    broken = serve(
        lambda number, request: echo(number, request) if number <= 2 else {"status": 500}
    )
    with pytest.raises(
        ChatError, match=rf"The endpoint {broken.url} failed at sample_ID '\w+'.*500.*start again"
    ):
        collect_responses(examples, Endpoint(broken.url, "m", concurrency=1, retries=1), out)
    kept = out.read_bytes()
    mended = serve(echo)  # at another address, which decides no response
    collection = collect_responses(examples, Endpoint(mended.url, "m"), out)
    assert (collection.found, collection.asked) == (2, 2)
    assert out.read_bytes().startswith(kept)
    assert sorted(map(asked_about, mended.requests)) == sorted(
        {"bread", "tuba", "lisbon", "rain"} - kept_ids(kept)
    )
    assert len(read_responses(out, examples)) == 4
    assert collect_responses(examples, Endpoint(mended.url, "m"), out).asked == 0


def kept_ids(content: bytes) -> set[str]:
    return {json.loads(line)["sample_ID"] for line in content.decode().splitlines()[1:]}


def test_a_torn_line_is_asked_again(serve, examples, out):
    server = serve(echo)
    collect_responses(examples, Endpoint(server.url, "m", concurrency=1), out)
    out.write_bytes(out.read_bytes()[:-9])
    assert collect_responses(examples, Endpoint(server.url, "m"), out).asked == 1
    assert len(read_responses(out, examples)) == 4


@pytest.mark.parametrize(
    "changed", [{"temperature": 0.3}, {"max_tokens": 9}, {"seed": 1}, {"extra": {"top_p": 0.1}}]
)
def test_a_file_made_with_other_settings_is_refused(serve, examples, out, changed):
    server = serve(echo)
    collect_responses(examples, Endpoint(server.url, "m", temperature=0.0), out)
    with pytest.raises(
        DataError, match=rf"responses.jsonl:1: .*other model: {next(iter(changed))} was"
    ):
        collect_responses(
            examples, Endpoint(server.url, "m", **{"temperature": 0.0, **changed}), out
        )


def test_a_file_of_other_examples_or_hands_is_refused(serve, examples, out):
    endpoint = Endpoint(serve(echo).url, "m", concurrency=1)
    collect_responses(examples, endpoint, out)
    changed = replace(examples[0], user_persona="I play chess.")
    with pytest.raises(DataError, match=r"responses.jsonl:\d: the example 'bread' has changed"):
        collect_responses([changed, *examples[1:]], endpoint, out)
    collect_responses(
        [replace(examples[0], golden_response=None), *examples[1:]], endpoint, out
    )  # was not shown
    out.write_text('{"sample_ID": "bread", "response": "x"}\n')
    with pytest.raises(DataError, match="does not say which model wrote the file"):
        collect_responses(examples, endpoint, out)


def test_responses_to_other_examples_stay(serve, examples, out):
    endpoint = Endpoint(serve(echo).url, "m")
    collect_responses(examples[:2], endpoint, out)
    collect_responses(examples[2:], endpoint, out)
    assert len(read_responses(out, examples)) == 4


FAULTS = {
    "status 500": {"status": 500},
    "status 503 in words": {"status": 503, "body": '{"error": {"message": "overloaded"}}'},
    "not JSON": {"body": '{"choices": ['},
    "HTML": {"body": "<html>Welcome</html>", "headers": {"Content-Type": "text/html"}},
    "no choices": {"body": '{"choices": []}'},
    "a list": {"body": "[1]"},
    "no text": {"body": '{"choices": [{"message": {"content": {"a": 1}}}]}'},
    "a word": {"body": '"ok"'},
    "a number of 5,000 digits": {"body": "9" * 5_000},
    "brackets without end": {"body": "[" * 200_000},
    "not UTF-8": {"body": b'{"choices": "\xff\xfe"}'},
    "an unknown character set": says(
        "Ahoy", headers={"Content-Type": "application/json; charset=none"}, cut=30
    ),
    "compressed, it says": says("Ahoy", headers={"Content-Encoding": "gzip"}),
    "20 MB": {"body": "x" * 20_000_000},
    "choices of words": {"body": '{"choices": ["a", "b"]}'},
    "a message that is a word": {"body": '{"choices": [{"message": "a"}]}'},
    "half an answer": says("Well, I", cut=60),
    "dropped connection": {"cut": 0, "body": "x" * 10},
    "slow": says("late", delay=1.2),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_now_and_then_is_got_over(serve, examples, out, fault):
    server = serve(lambda number, request: fault if number == 1 else echo(number, request))
    collect_responses(examples[:1], Endpoint(server.url, "m", timeout=0.4), out)
    assert read_responses(out, examples[:1]) == ["Answer to bread."]
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_for_ever_is_an_error_that_names_the_endpoint(serve, examples, out, fault):
    server = serve(lambda number, request: fault)
    with pytest.raises(
        ChatError, match=rf"The endpoint {server.url} failed at sample_ID 'bread': .+start again"
    ):
        collect_responses(
            examples, Endpoint(server.url, "m", timeout=0.4, retries=1, concurrency=1), out
        )
    assert rows_of(out) == []


def test_an_address_where_nothing_listens(serve, examples, out):
    server = serve(echo)
    server.shutdown()
    server.server_close()
    with pytest.raises(
        ChatError, match=rf"The endpoint {server.url} failed at sample_ID 'bread': .*Connection"
    ):
        collect_responses(examples[:1], Endpoint(server.url, "m", retries=1), out)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_every_request_would_meet_stops_at_once(serve, examples, out, status):
    server = serve(
        lambda number, request: {
            "status": status,
            "body": '{"error": {"message": "no such model"}}',
        }
    )
    with pytest.raises(ChatError, match=rf"{status}.*no such model"):
        collect_responses(
            examples, Endpoint(server.url, "m", concurrency=1, patience=9), out, on_failure="drop"
        )
    assert len(server.requests) <= 2  # not sent again, though the next may have been under way


def test_too_many_requests_wait_as_long_as_the_server_asks(serve, examples, out):
    def script(number, request):
        return (
            {"status": 429, "headers": {"Retry-After": "1"}}
            if number == 1
            else echo(number, request)
        )

    server = serve(script)
    collect_responses(examples, Endpoint(server.url, "m", concurrency=1), out)
    assert len(server.requests) == 5
    assert server.times[1] - server.times[0] >= 0.95
    assert server.times[2] - server.times[1] < 0.9


def test_a_server_that_asks_for_too_long_a_wait_is_an_error(serve, examples, out):
    server = serve(lambda number, request: {"status": 429, "headers": {"Retry-After": "86400"}})
    with pytest.raises(ChatError, match="429"):
        collect_responses(examples, Endpoint(server.url, "m", concurrency=1), out)
    assert len(server.requests) <= 2


def test_requests_keep_the_rate_limit_those_sent_again_too(serve, examples, out):
    server = serve(
        lambda number, request: {"status": 500} if number == 2 else echo(number, request)
    )
    collect_responses(examples, Endpoint(server.url, "m", rate_limit=600, concurrency=4), out)
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 4
    assert server.times[-1] - server.times[0] >= 0.35


def test_one_bad_sample_is_dropped_and_counted_where_that_is_allowed(serve, examples, out):
    def script(number, request):
        return {"status": 500} if asked_about(request) == "tuba" else echo(number, request)

    server, told = serve(script), []
    endpoint = Endpoint(server.url, "m", retries=1, patience=3)
    collection = collect_responses(
        examples, endpoint, out, on_failure="drop", progress=lambda *what: told.append(what)
    )
    assert (
        len(collection.dropped) == 1
        and "'tuba'" in collection.dropped[0]
        and "500" in collection.dropped[0]
    )
    assert told[-1] == (4, 4, "1 dropped")
    partial = read_partial_responses(out, examples)
    assert partial.missing == ("tuba",) and len(partial.by_id) == 3
    with pytest.raises(ChatError, match="'tuba'"):
        collect_responses(examples, Endpoint(server.url, "m", retries=0), out)


def test_a_server_that_went_down_stops_the_work_even_where_drops_are_allowed(serve, examples, out):
    many = [replace(examples[3], sample_id=str(number)) for number in range(40)]
    server = serve(
        lambda number, request: echo(number, request) if number <= 5 else {"status": 502}
    )
    with pytest.raises(ChatError, match=r"\(3 questions in a row\).*502"):
        collect_responses(
            many,
            Endpoint(server.url, "m", retries=0, concurrency=1, patience=3),
            out,
            on_failure="drop",
        )
    assert len(rows_of(out)) == 5
    assert len(server.requests) <= 5 + 3 + 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says(""), "is empty"),
        (says(None), "is empty"),
        (says("<think>hm</think>\n "), "is empty"),
        (says("<think>hm, let me", "length"), "had not ended its thinking after 50 tokens"),
        (says("Ahoy, I am", "length"), r"cut off after 50 tokens: 'Ahoy, I am'.*--keep-cut-off"),
        (says("\ud83d"), "half of a surrogate pair"),
        (
            {"status": 400, "body": '{"error": {"message": "context length"}}'},
            "refused the request: .*context length",
        ),
    ],
)
def test_an_unusable_response_is_an_error_or_counted(serve, examples, out, answer, message):
    server = serve(
        lambda number, request: answer if asked_about(request) == "rain" else echo(number, request)
    )
    endpoint = Endpoint(server.url, "m", max_tokens=50)
    collection = collect_responses(examples, endpoint, out, on_failure="drop")
    assert len(collection.dropped) == 1
    with pytest.raises(ChatError, match=f"sample_ID 'rain'.*{message}"):
        collect_responses(examples, endpoint, out)
    assert len(rows_of(out)) == 3
    with pytest.raises(ChatError, match="no usable response to any of 1 samples"):
        collect_responses(examples[3:], endpoint, out.with_name("other.jsonl"), on_failure="drop")


@pytest.mark.parametrize(
    "reason", ["content_filter", "tool_calls", "function_call", "abort", "unheard_of", 7, ["stop"]]
)
def test_an_answer_that_ended_otherwise_is_none_and_is_asked_again(serve, examples, out, reason):
    server = serve(
        lambda number, request: (
            says("Ahoy, I am a", reason) if number == 1 else echo(number, request)
        )
    )
    with pytest.raises(
        ChatError, match=r"'bread': no usable response: finish_reason is .*--on-failure drop"
    ) as caught:
        collect_responses(
            examples[:1], Endpoint(server.url, "m", temperature=0.0), out, keep_cut_off=True
        )
    assert str(reason) in str(caught.value) and rows_of(out) == []
    server.requests.clear()
    collect_responses(examples[:1], Endpoint(server.url, "m", temperature=0.0, attempts=2), out)
    assert [request["temperature"] for request in server.requests] == [0.0, 0.7]
    assert [row["response"] for row in rows_of(out)] == ["Answer to bread."]


@pytest.mark.parametrize("reason", [None, "", "stop"])
def test_servers_that_say_nothing_of_the_end_are_believed(serve, examples, out, reason):
    collect_responses(examples[:1], Endpoint(serve(lambda *_: says("Ahoy!", reason)).url, "m"), out)
    assert read_responses(out, examples[:1]) == ["Ahoy!"]


def test_cut_off_responses_are_kept_and_marked_where_that_is_asked_for(serve, examples, out):
    server = serve(
        lambda number, request: says(
            "Ahoy, I", "length" if asked_about(request) == "rain" else "stop"
        )
    )
    collection = collect_responses(examples, Endpoint(server.url, "m"), out, keep_cut_off=True)
    assert collection.cut_off == 1
    assert [row["sample_ID"] for row in rows_of(out) if row.get("cut_off")] == ["rain"]
    assert read_responses(out, examples) == ["Ahoy, I"] * 4


def test_thinking_is_no_part_of_a_response(serve, examples, out):
    server = serve(lambda number, request: says("<think>So...</think>\n\nAhoy!"))
    collect_responses(examples[:1], Endpoint(server.url, "m"), out)
    assert read_responses(out, examples[:1]) == ["Ahoy!"]


def test_the_key_is_sent_and_never_written(serve, examples, out, caplog):
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    server = serve(
        lambda number, request: (
            {"status": 401, "body": body} if number == 2 else echo(number, request)
        )
    )
    caplog.set_level("DEBUG")
    endpoint = Endpoint(
        server.url, "m", api_key_env="MY_KEY", environ={"MY_KEY": KEY}, concurrency=1
    )
    with pytest.raises(ChatError, match=r"Incorrect API key provided: \*\*\*") as caught:
        collect_responses(examples, endpoint, out)
    for text in (str(caught.value), caplog.text, out.read_text(), repr(endpoint)):
        assert KEY not in text
    assert caught.value.__cause__ is None


def test_work_under_way_can_be_left_at_any_moment(serve, examples, out):
    """A server that takes its time is not waited for; what it said before is on disk."""
    patient = threading.Event()

    def script(number, request):
        if number > 1:
            patient.wait(30)
        return says("Aye.")

    class Left(BaseException):
        pass

    def poll():
        if out.exists() and len(out.read_text().splitlines()) > 1:
            raise Left

    model = Endpoint(serve(script).url, "m", concurrency=1, poll=poll)
    began = time.monotonic()
    with pytest.raises(Left):
        collect_responses(examples, model, out)
    assert time.monotonic() - began < 10
    patient.set()
    assert len(out.read_text().splitlines()) == 2
