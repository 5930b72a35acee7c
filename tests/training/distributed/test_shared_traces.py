"""A teacher that all processes of a run ask: each example once,
the same traces as by one process.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from coevolve.worlds.tiny import write_tiny_base

pytest.importorskip("openai")

PROGRAM = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from coevolve.data.corpus import read_corpus
from coevolve.prompts import Renderer, prompt_set
from coevolve.recipe import check_recipe
from coevolve.scoring.models import load_tokenizer
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.record.record import Record
from coevolve.training.tracing import Tracer

folder, run = Path(sys.argv[1]), sys.argv[2]
stop, failure, code = Stop(), None, 0
with stop.listening():
    if os.environ["WORLD_SIZE"] != "1":
        dist.init_process_group("gloo")
    processes = Processes(torch.device("cpu"), stop)
    recipe = check_recipe(json.loads((folder / "recipe.json").read_text()), "test")
    corpus = read_corpus(folder / "data.json")
    train = corpus.require("IDTrain")
    renderer = Renderer(prompt_set("brief"), load_tokenizer(str(folder / "base")))
    record = Record(folder, main=processes.main)
    tracer = Tracer(recipe, corpus, train, renderer, record, os.environ, "2026-01-01", processes)
    try:
        kept, traces = tracer.collect(train, folder / run / "traces.jsonl", log=lambda values: None)
        print(json.dumps([[x.sample_id for x in kept], traces]))
    except Interrupted:
        code = 75
    except Exception as error:
        failure = error
        print(type(error).__name__, error, file=sys.stderr)
        code = 2
    processes.close(failure)
sys.exit(code)
"""
EXAMPLES = 24


class Server(ThreadingHTTPServer):
    """Writes a trace of its own for each question, after `seconds`; who asks is in the key."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.seconds, self.refused = threading.Lock(), 0.1, ""
        self.asked: list[tuple[str, str]] = []
        self.under_way = self.most = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        who, text = self.headers["Authorization"], request["messages"][-1]["content"]
        number = text.partition("I have ")[2].partition(" cats")[0]
        with server.lock:
            server.asked.append((who, number))
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        refused = bool(server.refused) and server.refused in who
        time.sleep(0 if refused else server.seconds)
        trace = f"[Connections]\ncats\n[Core Features of the Golden Response]\nact: {number}"
        message = {"role": "assistant", "content": trace}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
        with server.lock:
            server.under_way -= 1
        self.send_response(401 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(tmp_path, server, values_of, launcher):
    """Starts the program as so many processes, into a folder of the name."""
    rows = [
        {
            "sample_ID": f"x-{number}",
            "subset_tag": "t",
            "user_persona": f"I have {number} cats.",
            "agent_character": "A sailor.",
            "dialogue_context": [{"user_query": "Hi"}],
            "agent_golden_response": "Aye.",
        }
        for number in range(EXAMPLES)
    ]
    (tmp_path / "data.json").write_text(json.dumps({"IDTrain": rows}))
    (tmp_path / "program.py").write_text(PROGRAM)
    values = {name: x for name, x in values_of().items() if name != "data"}
    teacher = {"teacher": "endpoint", "model": "m", "base_url": server.url, "api_key_env": "KEY"}
    values |= {"prompts": "brief", "traces": teacher}
    values["data"] = {"path": str(tmp_path / "data.json"), "validation": 8}
    values["model"] = {**values["model"], "base": str(tmp_path / "base")}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    write_tiny_base(tmp_path / "base", seed=0, hidden=16, layers=1, heads=2)
    started = []

    def go(count, run):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environ = {**os.environ, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        program = launcher.forked([tmp_path / "program.py", tmp_path, run])
        command = [sys.executable, *program]
        here = [
            subprocess.Popen(command, env={**environ, "RANK": rank, "KEY": f"rank-{rank}"}, **pipes)
            for rank in map(str, range(count))
        ]
        started.extend(here)
        return here

    yield go
    for process in started:
        process.kill()
        process.wait()


def ended(processes, code=0):
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


def wait_for(condition, processes):
    while not condition():
        assert [process.poll() for process in processes] == [None, None], ended(processes)
        time.sleep(0.01)


def written(folder):
    head, *lines = (folder / "traces.jsonl").read_text().splitlines()
    return head, sorted(lines)


@pytest.mark.slow
def test_two_processes_ask_for_what_one_would_have(start, server, tmp_path):
    ((one, _),) = ended(start(1, "one"))
    assert sorted(int(number) for _, number in server.asked) == list(range(EXAMPLES))
    assert len(json.loads(one)[1]) == EXAMPLES and server.most <= 8
    server.asked.clear()
    both = ended(start(2, "two"))
    assert [out for out, _ in both] == [one] * 2
    assert sorted(int(number) for _, number in server.asked) == list(range(EXAMPLES))
    shares = [sum(f"rank-{rank}" in who for who, _ in server.asked) for rank in range(2)]
    assert shares == [EXAMPLES // 2] * 2 and 4 < server.most <= 8
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "traces.kept.json").read_text()) == json.loads(
        (tmp_path / "one" / "traces.kept.json").read_text()
    )


@pytest.mark.slow
def test_asked_to_stop_both_keep_what_came_and_the_rest_is_asked_for_later(start, server, tmp_path):
    """The signal comes to one of them."""
    server.seconds = 1.0
    processes = start(2, "run")
    file = tmp_path / "run" / "traces.jsonl"
    wait_for(lambda: file.exists() and len(file.read_text().splitlines()) > 8, processes)
    processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended(processes, 75)
    assert time.monotonic() - began < 15
    come = len(written(tmp_path / "run")[1])
    assert 8 <= come < EXAMPLES and not (tmp_path / "run" / "traces.kept.json").exists()
    before, server.seconds = len(server.asked), 0.0
    resumed = ended(start(2, "run"))
    assert len(server.asked) - before == EXAMPLES - come
    whole = ended(start(1, "whole"))
    assert [out for out, _ in resumed] == [whole[0][0]] * 2
    assert written(tmp_path / "run") == written(tmp_path / "whole")


@pytest.mark.slow
def test_a_teacher_that_fails_on_one_process_ends_the_asking_of_all(start, server, tmp_path):
    server.seconds, server.refused = 10.0, "rank-1"
    processes = start(2, "run")
    wait_for(lambda: any("rank-1" in who for who, _ in list(server.asked)), processes)
    began = time.monotonic()
    said = ended(processes, 2)
    # Process 0 had thirty seconds of work.
    assert time.monotonic() - began < 20
    assert "TeacherError The teacher: The endpoint" in said[1][1]
    assert "ProcessError process 1 of 2 failed: TeacherError" in said[0][1]
    server.seconds = 0.0
    ended(start(1, "run"))
    asked = [number for who, number in server.asked if "rank-0" in who]
    assert len(set(asked)) == EXAMPLES
