"""A server of the chat protocol that misspeaks it, and response files that are gone on with.

An accepted response is the text of `choices[0].message.content` that was served for its sample, of
a completion that had ended (or was cut off, where that is allowed and marked). A file that is gone
on with keeps what it held.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fuzz.areas.traces import goes_on
from tests.fuzz.core import Case, RefusedError
from tests.fuzz.mutate import mutate_bytes, mutate_file, mutate_folder, mutate_json, to_json
from tests.fuzz.strict import strict_json

REASONS = (
    "stop", "stop", "stop", "length", "content_filter", "tool_calls", "function_call", "eos",
    "STOP", "", None, 1,
    ["stop"],
)  # fmt: skip
CONTENTS = (
    "Ahoy.", "<think>hm</think>Ahoy.", "<think>hm", "</think>", " ", None, "\ud83d", "\x00",
    "a\u2028b", "[/b]", 7,
    True, [{"type": "text", "text": "Ahoy."}], {"text": "Ahoy."}, "x" * 200_000, "<think></think>",
    "line\nline", "\ufeff",
)  # fmt: skip
ODD_STATUSES = (
    100, 101, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 408, 409, 413, 422, 429, 500,
    502, 503, 599, 999, 0
)  # fmt: skip
STATUSES = (200,) * 60 + ODD_STATUSES
HEADERS = (
    "Content-Encoding: gzip", "Content-Encoding: br", "Transfer-Encoding: chunked",
    "Content-Type: text/html",
    "Content-Type: application/json; charset=utf-16", (
        "Content-Type: text/event-stream"
    ), "Content-Length: 5",
    "Content-Length: -1", "Content-Length: 99999999999", "Content-Length: x", (
        "Location: /v1/chat/completions"
    ),
    "Location: //", "Retry-After: 0", "Retry-After: -5", "Retry-After: 1e999", "Retry-After: nan",
    "Retry-After: ٣",
    "Retry-After: 86400", (
        "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT"
    ), "Retry-After: 32 Foo 9999", "retry-after-ms: x",
    "retry-after-ms: -1", "retry-after-ms: 1e400", "Set-Cookie: " + "a" * 9000, "X: \x00",
    "no colon",
    "Connection: close", "x-should-retry: true", "x-should-retry: false", (
        "Retry-After: 99999999999999999999"
    ),
)  # fmt: skip


class Endpoints:
    name = "endpoints"
    share = 8

    def run(self, case: Case) -> None:
        data = case.inputs / "data.json"
        ids = [f"s{number}" for number in range(case.rng.choice((1, 2, 3)))]
        data.write_text(json.dumps({"IDTest": [_row(name) for name in ids]}), "utf-8")
        server = _Server(case)
        try:
            use = case.rng.choices((_respond, _translate, _teach), (7, 1, 1))[0]
            (_respond if case.untouched else use)(case, server, data)
        finally:
            server.stop()


def _row(name: str) -> dict[str, Any]:
    return {
        "sample_ID": name,
        "subset_tag": "IDTest",
        "user_persona": f"I am called {name}.",
        "agent_character": "A sailor.",
        "dialogue_context": [{"user_query": "Who are you?"}],
        "agent_golden_response": "A sailor.",
    }


def _respond(case: Case, server: "_Server", data: Path) -> None:
    rng, out = case.rng, case.inputs / "responses.jsonl"
    keep = rng.random() < 0.3
    options = [
        "--data",
        data,
        "--out",
        out,
        "--model",
        "m",
        "--endpoint",
        server.url,
        "--timeout",
        "0.5",
    ]
    options += [
        "--retries",
        str(rng.choice((0, 0, 0, 0, 1))),
        "--concurrency",
        str(rng.choice((1, 1, 1, 3))),
        "--max-new-tokens",
        "50",
    ]
    drop = ["--on-failure", "drop"] if rng.random() < 0.5 else []
    flags = [*drop, *(["--keep-cut-off"] if keep else [])]
    before = b""
    if rng.random() < 0.3:
        before = _begun(case, server, options, out)
    server.damaging = not case.untouched
    case.may_change.append("responses.jsonl")
    asked = len(server.served)
    try:
        case.command("respond", *options, *flags)
    except RefusedError:
        if before:
            after = out.read_bytes() if out.is_file() else b""
            # Before the first question nothing may be changed; behind it, a torn end may be gone.
            kept = goes_on(before, after) if len(server.served) > asked else after == before
            case.wrong_if(
                not kept, "a refused file is not what it was", (before[-200:], after[-300:])
            )
        raise
    after = out.read_bytes()
    lost = bool(before) and not goes_on(before, after)
    case.wrong_if(lost, "lines of the file were lost", (before[-200:], after[-300:]))
    _check_rows(case, server, after, before, keep)


def _begun(case: Case, server: "_Server", options: list[Any], out: Path) -> bytes:
    """A file that an earlier command wrote, whole or damaged; its content, empty where it is no
    file any more.
    """
    from coevolve.cli import main

    if main([str(part) for part in ("respond", *options)]):
        raise AssertionError("a plain server was not understood")
    server.served.clear()
    content = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(content[: case.rng.randrange(1, len(content) + 1)]))
    if not case.untouched:
        case.note(
            mutate_file(case.rng, out) if case.chance(0.85) else mutate_folder(case.rng, out.parent)
        )
    return out.read_bytes() if out.is_file() and out.stat().st_size < 1 << 20 else b""


def _check_rows(case: Case, server: "_Server", after: bytes, before: bytes, keep: bool) -> None:
    """Every line that was not there before against what was served."""
    for line in after.split(b"\n"):
        if not line.strip() or line in before.split(b"\n"):
            continue
        row = strict_json(line)
        if "sample_ID" in row:
            said = any(
                _stands_for(row, *answer, keep)
                for answer in server.served.get(row["sample_ID"], ())
            )
            case.wrong_if(
                not said,
                "another response than was served, or one that had not ended",
                (row, server.served),
            )


def _stands_for(row: dict[str, Any], status: int, body: bytes, keep: bool) -> bool:
    """Whether a row is what a served body says."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    if status >= 300 or not isinstance(content, str):
        return False
    said = content.rpartition("</think>")[2].strip() if "<think>" in content else content.strip()
    # A server may say nothing about how it ended; what it does say must be known.
    ended = reason in ("stop", None, "") or (
        reason == "length" and keep and row.get("cut_off") is True
    )
    return ended and row["response"] in (
        said,
        content.rpartition("</think>")[2].strip(),
        content.strip(),
    )


def _translate(case: Case, server: "_Server", data: Path) -> None:
    """`shift language` with a translator, and the ledger beside its output."""
    out = case.inputs / "german.json"
    case.may_change += ["german.json", "german.json.translations.jsonl"]
    options = [
        "--data",
        data,
        "--out",
        out,
        "--language",
        "German",
        "--model",
        "m",
        "--endpoint",
        server.url,
    ]
    server.content = lambda messages: (
        messages[-1]["content"].replace("sailor", "Seemann").replace("Who", "Wer")
    )
    server.damaging = case.chance(0.7)
    if not server.damaging:
        from coevolve.cli import main

        ledger = Path(f"{out}.translations.jsonl")
        options += ["--timeout", "0.5", "--retries", "0"]
        if main([str(part) for part in ("shift", "language", *options)]):
            raise AssertionError("a plain translator was not understood")
        case.note(mutate_file(case.rng, ledger))
        case.command("shift", "language", *options)
    else:
        case.command("shift", "language", *options, "--timeout", "0.5", "--retries", "0")
    texts = {
        text for bodies in server.served.values() for _, body in bodies for text in _texts_in(body)
    }
    for row in strict_json(out.read_bytes())["OOD1Test"]:
        turns = [text for turn in row["dialogue_context"] for text in turn.values()]
        unknown = [
            text
            for text in (row["user_persona"], row["agent_golden_response"], *turns)
            if text not in texts
        ]
        case.wrong_if(
            server.damaging and bool(unknown), "a translation that was not served", unknown
        )


def _teach(case: Case, server: "_Server", data: Path) -> None:
    """A teacher behind an endpoint, whose traces go to a ledger."""
    from coevolve.data.corpus import read_corpus
    from coevolve.prompts import Renderer, prompt_set
    from coevolve.scoring.models import load_tokenizer
    from coevolve.teachers.chat import EndpointTeacher
    from coevolve.teachers.traces import collect_traces

    prompts = prompt_set("brief")
    trace = "\n".join(f"{section}\nwhat matters here" for section in prompts.sections)
    server.content, server.damaging = lambda messages: trace, True
    renderer = Renderer(prompts, load_tokenizer(str(case.valid.run / "base")))
    teacher = EndpointTeacher(
        server.url, "m", renderer, concurrency=1, retries=0, timeout=0.5, attempts=2
    )
    examples = list(read_corpus(data).require("IDTest"))
    how = case.rng.choice(("error", "drop"))
    found = case.call(
        collect_traces, examples, teacher, case.outputs / "traces.jsonl", on_failure=how
    )
    for sample_id, text in found.items():
        rows = [{"response": text}]
        said = any(
            _stands_for(row, *answer, False) for row in rows for answer in server.served[sample_id]
        )
        case.wrong_if(
            not said,
            "another trace than was served, or one that had not ended",
            (text, server.served),
        )


def _texts_in(body: bytes) -> set[str]:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
        value = json.loads(content[content.index("{") : content.rindex("}") + 1])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()
    found, left = set(), [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.add(one)
        elif isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one
    return found


class _Server(ThreadingHTTPServer):
    """Answers well, or damages its answers; remembers (status, body) of what it served,
    by sample.
    """

    daemon_threads = True

    def __init__(self, case: Case):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.case, self.damaging = case, False
        self.content: Callable[[list[dict[str, str]]], str] = lambda messages: (
            "Ahoy, I am a sailor."
        )
        self.served: dict[str, list[tuple[int, bytes]]] = {}
        self.lock = threading.Lock()
        self.thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True
        )
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, *_: Any) -> None:
        """A client that has given up is no news."""

    def answer(self, request: dict[str, Any]) -> bytes:
        """The whole response, from its status line on."""
        shown = json.dumps(request.get("messages"))
        name = next((f"s{number}" for number in range(3) if f"called s{number}." in shown), "?")
        with self.lock:  # all chance comes from one place, so requests take their turns
            status, body, head = 200, self._body(request), []
            if self.damaging:
                status, body, head = self._damaged(body)
            self.served.setdefault(name, []).append((status, body))
            length = (
                []
                if any(line.startswith(("Content-Length", "Transfer")) for line in head)
                else [f"Content-Length: {len(body)}"]
            )
            typed = (
                []
                if any(line.startswith("Content-Type") for line in head)
                else ["Content-Type: application/json"]
            )
            lines = [f"HTTP/1.1 {status} Well", *head, *typed, *length, "Connection: close"]
            whole = "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + body
            if self.damaging and self.case.chance(0.05):
                whole, did = mutate_bytes(self.case.rng, whole)
                self.case.note(f"on the wire: {did}")
            return whole

    def _body(self, request: dict[str, Any]) -> bytes:
        content = self.content(request["messages"])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop",
            "logprobs": None,
        }
        usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
        answer = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return json.dumps(answer).encode()

    def _damaged(self, body: bytes) -> tuple[int, bytes, list[str]]:
        case, rng = self.case, self.case.rng
        value = json.loads(body)
        status, head = rng.choice(STATUSES), []
        how = rng.choice(("reason", "content", "json", "json", "bytes", "headers", "none"))
        choice = value["choices"][0]
        if how == "reason":
            choice["finish_reason"] = rng.choice(REASONS)
            case.note(f"finish_reason {choice['finish_reason']!r}")
        elif how == "content":
            choice["message"]["content"] = rng.choice(CONTENTS)
            case.note(f"content {str(choice['message']['content'])[:40]!r}")
        elif how == "json":
            value, did = mutate_json(rng, value)
            case.note(did)
        elif how == "headers":
            head = rng.sample(HEADERS, rng.choice((1, 1, 2)))
            case.note(f"{head!r}"[:200])
        body = to_json(value, rng).encode("utf-8", "surrogatepass")
        if how == "bytes":
            body, did = mutate_bytes(rng, body)
            case.note(did)
        if status != 200:
            case.note(f"status {status}")
        return status, body, head


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.wfile.write(self.server.answer(request))
        self.close_connection = True

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


AREA = Endpoints()
