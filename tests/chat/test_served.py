"""An endpoint that is a real server of somebody else's: `transformers serve` with the
tiny model.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from coevolve.chat import Endpoint, LocalChat
from coevolve.data.responses import read_responses
from coevolve.prompts import prompt_set
from coevolve.respond import collect_responses

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package)

START_SECONDS = 120


@pytest.fixture
def served(model_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model_folder]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS
    while not _is_up(f"http://127.0.0.1:{port}/health"):
        assert server.poll() is None and time.monotonic() < deadline, (
            "transformers serve has not started"
        )
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(30)


def _is_up(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


@pytest.mark.slow
def test_the_server_gives_the_responses_that_the_model_gives_here(
    served, model_folder, examples, tmp_path
):
    endpoint = Endpoint(served, model_folder, temperature=0.0, max_tokens=6, concurrency=2)
    collect_responses(examples, endpoint, tmp_path / "served.jsonl", keep_cut_off=True)
    local = LocalChat.load(
        model_folder, prompt_set("roleplay"), max_new_tokens=6, dtype="float32", device="cpu"
    )
    collect_responses(examples, local, tmp_path / "local.jsonl", keep_cut_off=True)
    served_here = read_responses(tmp_path / "served.jsonl", examples)
    assert served_here == read_responses(tmp_path / "local.jsonl", examples)
