"""How commands end that do not get to their end: Ctrl-C, a reader that is gone, a machine that
refuses.
"""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from coevolve import cli
from coevolve.cli import ending
from coevolve.errors import DataError

EXAMPLE = {
    "user_persona": "",
    "agent_character": "A sailor.",
    "dialogue_context": [{"user_query": "Hi"}],
    "agent_golden_response": "Aye.",
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command whose work is to raise an error; returns status and words."""

    def go(error, command="score", **options):
        def work(_):
            raise error

        monkeypatch.setattr(cli, "claim_outputs", lambda *_: None)
        monkeypatch.setattr(
            cli, "_parsed", lambda *_: argparse.Namespace(command=command, run=work, **options)
        )
        return cli.main([]), capsys.readouterr().err

    return go


def wrapped(error):
    """As an import that is interrupted wraps it."""
    try:
        try:
            raise error
        except BaseException as cause:
            raise ImportError("initialisation failed") from cause
    except ImportError as wrapper:
        return wrapper


COMMANDS = [module.__name__.rpartition(".")[2].replace("_", "-") for module in cli.COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_is_one_line_in_every_command(run, command):
    assert run(KeyboardInterrupt(), command) == (130, f"coevolve {command}: interrupted.\n")
    assert run(wrapped(KeyboardInterrupt()), command) == (
        130,
        f"coevolve {command}: interrupted.\n",
    )


REFUSALS = {
    "a full disk": (
        OSError(errno.ENOSPC, "No space left on device"),
        "No space left on device. Check",
    ),
    "a full disk, by name": (
        OSError(errno.ENOSPC, "No space left", "x.json"),
        "x.json: No space left. Check",
    ),
    "no permission": (
        PermissionError(errno.EACCES, "Permission denied", "/x"),
        "/x: Permission denied. Check",
    ),
    "a file that is gone": (
        FileNotFoundError(errno.ENOENT, "No such file", "/x"),
        "/x: No such file. Check",
    ),
    "a full disk, in Rust": (
        SafetensorError("I/O error: No space left (os error 28)"),
        "No space left on device. C",
    ),
    "no memory": (MemoryError(), "out of memory: MemoryError. Lower --token-budget, or use"),
    "no memory for torch": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        "out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory. Lower --token-budget, or use",
    ),
    "no memory on a GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        "out of memory: CUDA out of memory",
    ),
    "nesting": (
        RecursionError("maximum recursion depth exceeded"),
        "an input is nested too deeply",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_machine_refuses_is_one_line(run, kind):
    error, words = REFUSALS[kind]
    status, said = run(error, token_budget=5)
    assert status == 2 and said.startswith(f"coevolve score: {words}") and said.count("\n") == 1


def test_the_setting_to_lower_is_the_commands_own(run):
    assert (
        "Lower per_device_train_batch_size of the phase or evaluation.token_budget"
        in run(MemoryError(), "train")[1]
    )
    assert "Lower --batch-size, or use" in run(MemoryError(), "respond", batch_size=8)[1]
    assert "Use a device with more" in run(MemoryError(), "status")[1]


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), OSError("x"), FileNotFoundError(2, "no file")]
)
def test_a_bug_keeps_its_traceback(run, error):
    with pytest.raises(type(error)):
        run(error)


def test_of_several_processes_one_speaks(run, monkeypatch):
    monkeypatch.setattr(ending, "HUSH_SECONDS", 0)
    monkeypatch.setenv("RANK", "1")
    for error, status in ((KeyboardInterrupt(), 130), (MemoryError(), 2), (DataError("x"), 2)):
        assert run(error) == (status, "")


# Real processes.


def start(*arguments, **options):
    command = [sys.executable, "-m", "coevolve", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(command, env={**os.environ, "NO_PROXY": "127.0.0.1"}, **options)


PRINTS = """
import argparse, sys
from coevolve import cli

cli.claim_outputs = lambda *_: None
cli._parsed = lambda *_: argparse.Namespace(command="status", run=lambda _: print(*range(9), sep="\\n"))
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["-m", "coevolve", "--help"], ["-c", PRINTS]], ids=["help", "a command"]
)
def test_nobody_has_to_read_to_the_end(arguments, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, "PYTHONUNBUFFERED": buffered}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=writer, stderr=subprocess.PIPE, env=environ
    )
    os.close(writer)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == (cli.READER_GONE if "-c" in arguments else 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_standard_output_on_a_full_disk_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "claim_outputs", lambda *_: None)
    monkeypatch.setattr(
        cli, "_parsed", lambda *_: argparse.Namespace(command="status", run=lambda _: print("x"))
    )
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("coevolve status: No space left on device. Check")


@pytest.fixture
def silent_server():
    """Takes requests and never answers."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.set()
            time.sleep(600)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    yield server, asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"IDTest": [{"sample_ID": "a", "subset_tag": "t", **EXAMPLE}]}))
    return path


def test_ctrl_c_does_not_wait_for_a_server(tmp_path, silent_server, data):
    server, asked = silent_server
    address = f"http://127.0.0.1:{server.server_port}/v1"
    out = tmp_path / "out.jsonl"
    process = start("respond", "--data", data, "--out", out, "--model", "m", "--endpoint", address)
    assert asked.wait(60)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "coevolve respond: interrupted.\n")
    assert process.returncode == 130 and time.monotonic() - began < 20
    assert [len(out.read_text().splitlines()), out.read_text()[-1]] == [1, "\n"]


@pytest.mark.skipif(
    not os.path.exists("/proc/self/maps"), reason="looks at what a process has loaded"
)
def test_ctrl_c_while_the_libraries_are_loaded(tmp_path, data):
    out = tmp_path / "scores.jsonl"
    process = start("score", "--estimator", data.parent / "estimator", "--data", data, "--out", out)
    while (
        process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "coevolve score: interrupted.\n")
    assert process.returncode == 130 and not out.exists()
