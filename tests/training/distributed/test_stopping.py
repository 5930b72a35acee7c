"""Signals and deadlines."""

import os
import signal
import subprocess
import sys
import time

import pytest

from coevolve.errors import RecipeError
from coevolve.training.distributed.stopping import Stop, StopRequested, seconds_of


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_and_the_handlers_are_given_back(number):
    before, stop = signal.getsignal(number), Stop()
    with stop.listening():
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == signal.Signals(number).name
    assert signal.getsignal(number) == before


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
