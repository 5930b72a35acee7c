"""Signals and deadlines."""

import os
import signal
import subprocess
import sys
import time

import pytest

from coevolve.errors import RecipeError
from coevolve.training.distributed.stopping import SIGNALS, Stop, StopRequested, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13800), ("90m", 5400), ("45s", 45), ("1d2h", 93600), ("30", 30), ("1.5h", 5400)],
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "3h 50m", "h", "-5", "3x"])
def test_what_is_no_duration(text):
    with pytest.raises(RecipeError, match="accepted is for example 3h50m"):
        seconds_of(text)


def test_a_deadline_passes():
    stop = Stop(deadline=0.05)
    stop.poll()
    time.sleep(0.06)
    assert stop.requested and stop.reason == "the deadline"
    with pytest.raises(StopRequested):
        stop.poll()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_the_handlers_are_given_back(number):
    before, stop = signal.getsignal(number), Stop()
    with stop.listening():
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_that_cannot_look_is_left_where_it_is():
    stop = Stop()
    with stop.listening():
        with pytest.raises(StopRequested), stop.raising():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        with pytest.raises(StopRequested), stop.raising():
            pytest.fail("it had been asked before")
    stop = Stop()
    with stop.listening(), stop.raising(), stop.raising(False):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


ORPHAN = r"""
import os, sys, time
from coevolve.training.distributed import stopping

stop = stopping.Stop()
child = os.fork()
if child:  # the launcher
    os.write(1, f"{child}\n".encode())
    time.sleep(60)
with stop.listening():
    stopping.end_with_launcher(stop)
    os.write(1, b"up\n")
    until = time.monotonic() + 20
    while not stop.requested and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(4)  # saving
    os.write(1, f"saved {stop.reason}\n".encode())
"""


@pytest.mark.parametrize("asked", [False, True])
def test_a_child_without_its_launcher_ends_unless_it_is_leaving(asked):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launcher = subprocess.Popen([sys.executable, "-c", ORPHAN], **pipes)
    first, second = sorted(launcher.stdout.readline() for _ in range(2))
    child = int(first)
    assert second == "up\n"
    launcher.send_signal(signal.SIGUSR1)  # of which launchers know nothing
    if asked:
        os.kill(child, signal.SIGTERM)
    out, said = launcher.communicate(timeout=40)  # until the child has closed its ends
    if asked:
        assert (out, said) == ("saved SIGTERM\n", "")
    else:
        assert out == "" and said.count("\n") == 1
        assert f"launcher (pid {launcher.pid}) is gone. Process {child} leaves" in said


def test_a_second_signal_leaves_at_once():
    code = """
import os, signal, time
from coevolve.training.distributed.stopping import Stop
with Stop().listening():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # the same warning, by another way
    print("still here", flush=True)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert done.returncode == 128 + signal.SIGTERM
    assert "still here" in done.stdout and "SIGTERM again" in done.stderr
