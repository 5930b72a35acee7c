"""Work that one process does alone, for longer than the backend lets a collective call be open."""

import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading, time
from datetime import timedelta
import torch, torch.distributed as dist
from coevolve.training.distributed import processes
from coevolve.training.distributed.stopping import Stop

TIMEOUT = 2.0
dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
run = processes.Processes(torch.device("cpu"), Stop())
work, rank = sys.argv[1], run.rank

def long(value):
    time.sleep(1.5 * TIMEOUT)
    return value

if work == "on_main":
    value = run.gather(run.on_main(lambda: long(7)))[0]
elif work == "together":
    value = run.together(lambda: long(7) if rank == 1 else 7)
elif work == "distribute":
    value = sum(run.distribute([1.0] * 4, lambda share: [long(i) if rank else i for i in share]))
elif work == "gather":
    value = sum(run.gather(long(3) if rank else 4))
elif work == "agree":
    value = 7 if run.agree(bool(long(True)) if rank else False)[0] else 0
elif work == "collective":  # what it is about: nothing but the call itself
    value = torch.tensor([long(3) if rank else 4])
    dist.all_reduce(value)
elif work == "asked":  # one process, while it waits for the other
    def share():
        if rank == 0:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        until = time.monotonic() + 60
        while rank == 1 and time.monotonic() < until:
            run.stop.poll()
            time.sleep(0.05)
    with run.stop.listening():
        began = time.monotonic()
        try:
            run.together(share)
        except processes.Interrupted:
            value = 7 if run.stop.reason == "SIGTERM" and time.monotonic() - began < 20 else 0
        run.stop = Stop()
elif work == "fails":
    run.on_main(lambda: long(1) / 0)
for _ in range(50):  # many short ones
    run.agree()
print("value", int(value), flush=True)
run.close()
assert threading.active_count() == 1  # what is left in a call of C++ aborts the process as it ends
"""


def run(tmp_path, work):
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "program.py", work],
            env={**place, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in started]
    return [process.returncode for process in started], said


@pytest.mark.parametrize("work", ["on_main", "together", "distribute", "gather", "agree", "asked"])
def test_the_others_wait_as_long_as_it_takes(work, tmp_path):
    codes, said = run(tmp_path, work)
    assert codes == [0, 0], said
    value = 6 if work == "distribute" else 7
    assert [out for out, _ in said] == [f"value {value}\n"] * 2


def test_a_collective_call_alone_would_not(tmp_path):
    codes, said = run(tmp_path, "collective")
    assert codes[0] != 0 and "imed out" in said[0][1], said


def test_a_failure_is_told_when_it_comes(tmp_path):
    codes, said = run(tmp_path, "fails")
    assert 0 not in codes
    assert "ZeroDivisionError" in said[0][1]
    assert "ProcessError: process 0 of 2 failed: ZeroDivisionError" in said[1][1]
