"""How commands end that do not get to their end: Ctrl-C, a reader that is gone, a machine that
refuses.
"""

import argparse
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from coevolve import cli
from coevolve.chat.pace import in_threads
from coevolve.cli import ending
from coevolve.errors import DataError
from tests.refusals import largest_file

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
        "out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory. Lower "
        "--token-budget, or use",
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
run = lambda _: print(*range(9), sep="\\n")
cli._parsed = lambda *_: argparse.Namespace(command="status", run=run)
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
    # Not all versions of argparse say whether their help was read.
    accepted = {cli.READER_GONE} if "-c" in arguments else {0, cli.READER_GONE}
    assert process.returncode in accepted


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
    assert process.communicate(timeout=60) == (
        "",
        "coevolve respond: interrupted. The answers that came are kept: the same command goes on "
        "from there.\n",
    )
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
    assert process.communicate(timeout=60) == (
        "",
        "coevolve score: interrupted. What was computed is kept: the same command goes on from "
        "there.\n",
    )
    assert process.returncode == 130 and not out.exists()


# What a signal leaves, and what the machine refuses in the midst of work, in this process.


class Answering(BaseHTTPRequestHandler):
    """Answers the first five at once, and the others when the server is `awake`."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(1)
        if len(self.server.asked) > 5:
            self.server.awake.wait(60)
        message = {"role": "assistant", "content": "Aye."}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
        with suppress(OSError):  # nobody may wait for it any more
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def responding(tmp_path, monkeypatch):
    """(server, arguments of `respond` that ask it twelve questions, the file)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [{"sample_ID": f"x-{i}", "subset_tag": "t", **EXAMPLE} for i in range(12)]
    (tmp_path / "data.json").write_text(json.dumps({"IDTest": rows}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads, server.awake, server.asked = True, threading.Event(), []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    out = tmp_path / "out" / "answers.jsonl"
    words = ["respond", "--data", tmp_path / "data.json", "--out", out, "--model", "m"]
    words += ["--endpoint", f"http://127.0.0.1:{server.server_port}/v1", "--concurrency", "3"]
    yield server, [str(word) for word in words], out
    server.awake.set()
    server.shutdown()
    server.server_close()


def when(condition, act):
    """Do something from a thread of its own as soon as a condition holds."""

    def wait():
        while not condition():
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_answers_that_came_are_kept_and_not_asked_for_again(responding, capsys, number):
    server, words, out = responding

    def waits():
        return len(lines_of(out)) == 6 and len(server.asked) == 8

    when(waits, lambda: os.kill(os.getpid(), number))
    began = time.monotonic()
    assert cli.main(words) == 75 and time.monotonic() - began < 30
    said = f"coevolve respond: interrupted by {signal.Signals(number).name}. The answers that came"
    assert said in capsys.readouterr().err and len(lines_of(out)) == 6
    server.awake.set()
    server.asked.clear()
    assert cli.main(words) == 0 and len(server.asked) == 7 and len(lines_of(out)) == 13


def test_what_came_while_the_work_was_left_is_handed_over():
    came = []

    def poll():
        if len(came) == 2:
            time.sleep(0.3)  # the threads are done by then
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for value in in_threads(lambda item: item, range(6), 2, poll):
            came.append(value)
    assert sorted(came) == list(range(6))


@pytest.mark.parametrize("act", ["deleted", "moved"])
def test_answers_are_not_written_into_a_file_that_is_gone(responding, capsys, act):
    server, words, out = responding

    def go():
        shutil.rmtree(out.parent) if act == "deleted" else out.rename(out.with_name("other"))
        server.awake.set()

    when(lambda: len(lines_of(out)) == 6, go)
    assert cli.main(words) == 2
    assert f"{out}: was deleted or moved while it was written" in capsys.readouterr().err
    assert not out.exists()


def test_a_ledger_that_the_disk_does_not_hold_is_named_and_gone_on_with(responding, capsys):
    server, words, out = responding
    server.awake.set()
    with largest_file(700):
        assert cli.main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"coevolve respond: {out}: File too large. Check the place" in said
    assert said.endswith("The answers that came are kept: the same command goes on from there.")
    kept = len(lines_of(out)) - 2  # without the head, and the line that was cut off
    assert cli.main(words) == 0 and kept >= 1
    assert f"12 of 12 samples have a response ({kept} had one before)" in capsys.readouterr().err
    assert len(lines_of(out)) == 13
    for line in lines_of(out):
        json.loads(line)


def kept_in(folder):
    """Rows of a work cache."""
    try:
        with sqlite3.connect(folder / "work.sqlite") as database:
            return database.execute("SELECT count(*) FROM work").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.mark.parametrize("command", ["score", "remid"])
def test_what_was_computed_is_kept_and_taken(run_folder, tmp_path, capsys, command):
    world = run_folder / "world"
    words = [command, "--estimator", run_folder / "estimator", "--data", world / "dialogues.json"]
    words += ["--device", "cpu", "--token-budget", "1"]  # each row is a pass of its own
    if command == "remid":
        words += ["--responses", f"a={world / 'perfect.jsonl'}", "--negatives", "6"]

    def go(name, cache):
        out = tmp_path / (f"{name}.jsonl" if command == "score" else name)
        return cli.main([str(word) for word in (*words, "--out", out, "--cache", cache)]), out

    assert go("whole", tmp_path / "other")[0] == 0
    cache = tmp_path / "cache"
    when(lambda: kept_in(cache) > 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, out = go("out", cache)
    assert code == 75 and not out.exists()
    said = f"coevolve {command}: interrupted by SIGTERM. What was computed"
    assert said in capsys.readouterr().err
    assert 3 < kept_in(cache) < kept_in(tmp_path / "other")
    assert go("out", cache)[0] == 0
    taken = re.search(r"cache: (\d+) of \d+ reasonings", capsys.readouterr().err)
    assert int(taken[1]) >= 3
    pairs = [(out, tmp_path / out.name.replace("out", "whole"))]
    if command == "remid":
        pairs = [(x / "contributions.jsonl", y / "contributions.jsonl") for x, y in pairs]
    for one, other in pairs:
        assert one.read_text() == other.read_text()
