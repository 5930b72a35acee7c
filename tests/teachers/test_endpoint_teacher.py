"""The endpoint teacher against a real HTTP server on the loopback that speaks, and misspeaks, the
protocol.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from coevolve.errors import RecipeError, TeacherError
from coevolve.prompts import Renderer, prompt_set
from coevolve.teachers import EndpointTeacher, collect_traces

pytest.importorskip("openai")

GOOD = (
    "Sure!\n[Connections]\nearlier talk\n[Core Features of the Golden Response]\nact: agree; "
    "words: none"
)
TRACE = GOOD.removeprefix("Sure!\n")
KEY = "secret-key-1234"


def completion(text, finish_reason="stop") -> tuple[int, str]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, json.dumps(body)


class Server(ThreadingHTTPServer):
    """Answers the n-th request with `script(n, request)`, a (status, body); records what it was
    asked.
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server: Server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers.get("Authorization"))
            number = len(server.requests)
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        status, body = (
            server.script(number, request) if self.path == "/v1/chat/completions" else (404, "{}")
        )
        with server.lock:
            server.under_way -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "5")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(script) -> Server:
        server = Server(script)
        servers.append(server)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asked_about(request: dict) -> str:
    return request["messages"][-1]["content"]


@pytest.mark.parametrize(("concurrency", "count"), [(8, 2), (8, 3), (2, 4), (1, 2)])
def test_processes_share_examples_and_requests_under_way(renderer, concurrency, count):
    asked, under_way = [], []
    for rank in range(count):
        options = {"concurrency": concurrency}
        teacher = EndpointTeacher("http://127.0.0.1:1/v1", "m", renderer, **options)
        share = teacher.share(range(10), rank, count)
        asked += share
        under_way += [teacher.chat.concurrency] * bool(share)
    assert sorted(asked) == list(range(10)) and sum(under_way) == concurrency
    assert max(under_way) - min(under_way) <= 1


def test_good_replies_become_traces(serve, renderer, dialogues, tmp_path):
    server = serve(lambda number, request: completion(GOOD))
    teacher = EndpointTeacher(server.url, "m", renderer, temperature=0.2, max_tokens=99)
    traces = collect_traces(dialogues, teacher, tmp_path / "traces.jsonl")
    assert traces == {example.sample_id: TRACE for example in dialogues}
    assert len(server.requests) == len(dialogues)
    for request in server.requests:
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.2, 99)
    shown = "\n".join(map(asked_about, server.requests))
    assert all(example.golden_response in shown for example in dialogues)


def test_thinking_is_no_part_of_a_trace(serve, renderer, dialogues, tmp_path):
    server = serve(
        lambda number, request: completion(f"<think>[Connections] or so?</think>\n\n{GOOD}")
    )
    teacher = EndpointTeacher(server.url, "m", renderer)
    assert collect_traces(dialogues[:1], teacher, tmp_path / "t.jsonl") == {"bread": TRACE}


def test_a_server_error_is_sent_again(serve, renderer, dialogues, tmp_path):
    server = serve(lambda number, request: (500, "{}") if number <= 2 else completion(GOOD))
    traces = collect_traces(
        dialogues[:1], EndpointTeacher(server.url, "m", renderer), tmp_path / "t.jsonl"
    )
    assert traces == {"bread": TRACE}
    assert len(server.requests) == 3


def test_a_server_that_stays_down_stops_the_run_whatever_on_failure_says(
    serve, renderer, dialogues, tmp_path
):
    server = serve(lambda number, request: (503, '{"error": {"message": "overloaded"}}'))
    teacher = EndpointTeacher(server.url, "m", renderer, retries=1, concurrency=1)
    with pytest.raises(TeacherError, match=r"failed at sample_ID 'bread'.*503.*overloaded"):
        collect_traces(dialogues, teacher, tmp_path / "t.jsonl", on_failure="drop")
    # One try and one retry; at most one more example had begun.
    assert len(server.requests) <= 2 * 2


def test_an_address_where_nothing_listens(renderer, dialogues, tmp_path, serve):
    server = serve(lambda number, request: completion(GOOD))
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(TeacherError, match=r"failed at sample_ID 'bread'.*Connection"):
        collect_traces(
            dialogues[:1], EndpointTeacher(url, "m", renderer, retries=0), tmp_path / "t.jsonl"
        )


@pytest.mark.parametrize(
    "body", ["<html>It works!</html>", "[]", '{"choices": []}', '{"choices": [{}]}']
)
def test_a_server_that_goes_on_with_garbage_stops_the_run(serve, renderer, dialogues, body):
    server = serve(lambda number, request: (200, body))
    with pytest.raises(TeacherError, match=r"'bread'.*answer cannot be read"):
        list(EndpointTeacher(server.url, "m", renderer, retries=1).answers(dialogues[:1]))
    assert len(server.requests) == 2


def test_garbage_now_and_then_is_asked_again(serve, renderer, dialogues, tmp_path):
    server = serve(lambda number, request: (200, "<html>") if number == 1 else completion(GOOD))
    assert collect_traces(
        dialogues[:1], EndpointTeacher(server.url, "m", renderer), tmp_path / "t.jsonl"
    ) == {"bread": TRACE}


def test_an_empty_reply_is_a_problem_of_its_example(serve, renderer, dialogues):
    server = serve(lambda number, request: completion(None))
    (answer,) = EndpointTeacher(server.url, "m", renderer, attempts=2).answers(dialogues[:1])
    assert answer.trace is None
    assert "'bread'" in answer.problem and "after 2 attempts" in answer.problem
    assert len(server.requests) == 2


def test_a_malformed_reply_is_asked_again(serve, renderer, dialogues, tmp_path):
    server = serve(
        lambda number, request: completion("[Connections]\nonly this" if number == 1 else GOOD)
    )
    teacher = EndpointTeacher(server.url, "m", renderer, temperature=0.0)
    assert collect_traces(dialogues[:1], teacher, tmp_path / "t.jsonl") == {"bread": TRACE}
    assert [request["temperature"] for request in server.requests] == [0.0, 0.7]


def test_a_reply_that_was_cut_off_does_not_count(serve, renderer, dialogues, tmp_path):
    server = serve(lambda number, request: completion(GOOD, "length"))
    teacher = EndpointTeacher(server.url, "m", renderer, attempts=2, max_tokens=77)
    with pytest.raises(TeacherError, match="cut off after 77 tokens"):
        collect_traces(dialogues[:1], teacher, tmp_path / "t.jsonl")


def test_one_refused_request_is_a_problem_of_its_example(serve, renderer, dialogues, tmp_path):
    def script(number, request):
        too_long = "Lisbon" in asked_about(request)
        return (400, '{"error": {"message": "context length"}}') if too_long else completion(GOOD)

    server, notes = serve(script), []
    traces = collect_traces(
        dialogues,
        EndpointTeacher(server.url, "m", renderer),
        tmp_path / "t.jsonl",
        on_failure="drop",
        progress=lambda *told: notes.append(told),
    )
    assert list(traces) == ["bread", "tuba"]
    assert notes[-1] == (3, 3, "1 dropped")
    with pytest.raises(TeacherError, match=r"'lisbon'.*context length"):
        collect_traces(dialogues, EndpointTeacher(server.url, "m", renderer), tmp_path / "t.jsonl")


def test_what_was_under_way_when_the_server_failed_is_kept(serve, renderer, dialogues, tmp_path):
    """The failing request is answered first; the others, already sent, still count."""
    all_sent = threading.Barrier(3, timeout=30)

    def script(number, request):
        all_sent.wait()
        if "sourdough" in asked_about(request):
            return 401, '{"error": {"message": "no"}}'
        time.sleep(0.3)
        return completion(GOOD)

    server = serve(script)
    with pytest.raises(TeacherError, match="'bread'"):
        collect_traces(
            dialogues,
            EndpointTeacher(server.url, "m", renderer, concurrency=3),
            tmp_path / "t.jsonl",
        )
    kept = [
        json.loads(line)["sample_ID"]
        for line in (tmp_path / "t.jsonl").read_text().splitlines()[1:]
    ]
    assert sorted(kept) == ["lisbon", "tuba"]


def test_requests_run_side_by_side_up_to_the_limit(serve, renderer, make):
    def script(number, request):
        time.sleep(0.1)
        return completion(GOOD)

    server = serve(script)
    examples = [make("Yes.", "Well?", sample_id=str(number)) for number in range(12)]
    answers = list(EndpointTeacher(server.url, "m", renderer, concurrency=4).answers(examples))
    assert {answer.sample_id for answer in answers} == {str(number) for number in range(12)}
    assert 2 <= server.most_under_way <= 4


def test_the_key_is_sent_and_never_shown(serve, renderer, dialogues, tmp_path, caplog):
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    server = serve(lambda number, request: (401, body))
    teacher = EndpointTeacher(
        server.url, "m", renderer, api_key_env="TEACHER_KEY", environ={"TEACHER_KEY": KEY}
    )
    caplog.set_level("DEBUG")
    with pytest.raises(TeacherError, match=r"Incorrect API key provided: \*\*\*") as caught:
        collect_traces(dialogues[:1], teacher, tmp_path / "t.jsonl")
    assert server.keys == [f"Bearer {KEY}"]
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    for text in (str(caught.value), caplog.text, repr(teacher), json.dumps(teacher.settings)):
        assert KEY not in text
    assert KEY not in (tmp_path / "t.jsonl").read_text()


def test_a_key_of_the_environment_that_was_not_named_is_not_sent(
    serve, renderer, dialogues, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda number, request: completion(GOOD))
    list(EndpointTeacher(server.url, "m", renderer).answers(dialogues[:1]))
    assert KEY not in str(server.keys)


@pytest.mark.parametrize("value", [None, "", "two words", "line\n", "schlüssel"])
def test_an_unusable_key_is_refused_without_being_shown(renderer, value):
    environ = {} if value is None else {"TEACHER_KEY": value}
    with pytest.raises(RecipeError, match="'TEACHER_KEY'") as caught:
        EndpointTeacher(
            "http://localhost:1/v1", "m", renderer, api_key_env="TEACHER_KEY", environ=environ
        )
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://[::1/v1", "http://host:0x1"]
)
def test_an_unusable_address_is_refused(renderer, url):
    with pytest.raises(RecipeError, match="base_url: found"):
        EndpointTeacher(url, "m", renderer)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"])
def test_an_address_with_a_secret_is_refused_without_being_shown(renderer, url):
    with pytest.raises(RecipeError, match="base_url") as caught:
        EndpointTeacher(url, "m", renderer)
    assert KEY not in str(caught.value)


def test_other_unusable_options_are_refused(renderer, tokenizer):
    with pytest.raises(RecipeError, match="concurrency: found 0"):
        EndpointTeacher("http://localhost:1/v1", "m", renderer, concurrency=0)
    with pytest.raises(RecipeError, match="'world' has no teacher_user"):
        EndpointTeacher("http://localhost:1/v1", "m", Renderer(prompt_set("world"), tokenizer))


def test_a_missing_package_says_how_to_install_it(renderer, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(TeacherError, match=r'pip install "coevolve\[teacher\]"'):
        EndpointTeacher("http://localhost:1/v1", "m", renderer)
