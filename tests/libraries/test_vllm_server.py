"""A vLLM server that is not one is found out in one sentence; without vLLM."""

import http.server
import socket
import threading

import pytest

from coevolve.errors import EngineError
from coevolve.libraries import vllm

OPTIONS = vllm.Options(base="/models/base", dtype="bfloat16", max_length=640, rank=16, adapters=2)
START = (
    r"Start it by: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve /models/base --enable-lora "
    r"--max-loras 2 "
    r"--max-lora-rank 16 --dtype bfloat16 --max-model-len 640 .*; the same command goes on"
)


def reach(port):
    return vllm.There(f"http://127.0.0.1:{port}", OPTIONS, "x_rl.use_vllm", ["/models/base"])


@pytest.fixture
def listening():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_server_that_is_away():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        EngineError, match=rf"x_rl.use_vllm: the server at .*:{port} cannot be reached .*{START}"
    ):
        reach(port)


def test_a_port_at_which_nothing_answers(listening, monkeypatch):
    monkeypatch.setattr(vllm, "SILENT_SECONDS", 0.2)
    with pytest.raises(EngineError, match=rf"cannot be reached \(TimeoutError: .*{START}"):
        reach(listening)


def test_a_port_that_something_else_uses():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(EngineError, match=rf"answers /v1/models with 404: .*{START}"):
            reach(server.server_port)
    finally:
        server.shutdown()
        server.server_close()


def test_ranks_are_those_that_can_be_reserved():
    assert [vllm.rank_for(ranks) for ranks in ([], [4, 2], [16], [17], [600])] == [
        0,
        8,
        16,
        32,
        600,
    ]
