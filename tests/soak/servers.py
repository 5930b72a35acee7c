"""The teacher and W&B, each a real server in a process of its own that can be taken away."""

import json
import os
import signal
import time
import urllib.request
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.soak.world import trace_of
from tests.training.record.wandb_server import wandb_server

KEY = "0123456789abcdef" * 3
GOOD_ANSWERS = 1
"""Out of order, the teacher still answers so many questions first."""


SLOW_SECONDS = 5.0


def forked(work: Callable[[], Any]) -> int:
    """A process that does this and nothing else; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def ended(child: int) -> None:
    """End a server's process."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


class Teacher:
    """An OpenAI-compatible endpoint that can be `fine`, `slow`, `busy` (429), `broken` (503), `cut`
    (half a body) or `gone`.
    """

    def __init__(self, folder: Path):
        self._mode, self._asked = folder / "teacher.mode", folder / "teacher.asked"
        server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        self.port = server.server_port
        server.server_close()
        self._child: int | None = None
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def become(self, mode: str) -> None:
        """From the next question on."""
        self._mode.write_text(mode)
        self._asked.write_text("")
        if mode == "gone":
            self.close()
        elif self._child is None:
            self._child = forked(self._serve)

    def refused(self) -> int:
        """Questions since it became as it is that it did not just answer."""
        return self._asked.read_text().count("refused")

    def close(self) -> None:
        if self._child is not None:
            ended(self._child)
            self._child = None

    def _serve(self) -> None:
        mode, asked = self._mode, self._asked

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = request["messages"][-1]["content"]
                status, cut, mark = 200, None, zlib.crc32(text.encode())
                now, before = mode.read_text(), asked.read_text()
                # Busy and cut pass: the same question gets its answer when it is sent again.
                again = f"{mark}\n" in before
                fine = before.count("\n") < GOOD_ANSWERS or now == "fine"
                if not fine and not (again and now in ("busy", "cut")):
                    with open(asked, "a") as file:
                        file.write(f"refused {mark}\n")
                    if now == "slow":
                        time.sleep(SLOW_SECONDS)
                    status = {"busy": 429, "broken": 503}.get(now, 200)
                    cut = 20 if now == "cut" else None
                else:
                    with open(asked, "a") as file:
                        file.write(f"answered {mark}\n")
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": trace_of(text)},
                    "finish_reason": "stop",
                }
                body = json.dumps({"id": "1", "model": "m", "choices": [choice]}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "20")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])
                self.close_connection = True

        ThreadingHTTPServer.daemon_threads = True
        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            server.handle_error = lambda *_: None  # type: ignore[method-assign]
            server.serve_forever()


class Wandb:
    """The stand-in that the tests of the record have."""

    def __init__(self) -> None:
        server = wandb_server(KEY)
        self.environ: dict[str, str] = server.environ
        self._child = forked(server.serve_forever)
        server.socket.close()

    def ask(self, path: str) -> Any:
        """`down` takes it away, `up` brings it back, `runs` gives all that it has."""
        with urllib.request.urlopen(f"{self.environ['WANDB_BASE_URL']}/{path}") as answer:
            return json.loads(answer.read())

    def close(self) -> None:
        ended(self._child)
