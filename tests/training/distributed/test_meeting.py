"""Work that one process does alone, for longer than the backend lets a collective call be open."""

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


def run(launcher, tmp_path, work):
    """Exit statuses of two processes, and what they said."""
    (tmp_path / "program.py").write_text(PROGRAM)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launcher.free_port()}
    started = [
        launcher.start(
            "one",
            [tmp_path / "program.py", work],
            tmp_path / f"{rank}.log",
            **place,
            RANK=str(rank),
        )
        for rank in range(2)
    ]
    codes = [launcher.wait(process, 120) for process in started]
    return codes, [process.log.read_text() for process in started]


@pytest.mark.parametrize("work", ["on_main", "together", "distribute", "gather", "agree", "asked"])
def test_the_others_wait_as_long_as_it_takes(work, launcher, tmp_path):
    codes, said = run(launcher, tmp_path, work)
    assert codes == [0, 0], said
    value = 6 if work == "distribute" else 7
    assert said == [f"value {value}\n"] * 2


def test_a_collective_call_alone_would_not(launcher, tmp_path):
    codes, said = run(launcher, tmp_path, "collective")
    assert codes[0] != 0 and "imed out" in said[0], said


def test_a_failure_is_told_when_it_comes(launcher, tmp_path):
    codes, said = run(launcher, tmp_path, "fails")
    assert 0 not in codes
    assert "ZeroDivisionError" in said[0]
    assert "ProcessError: process 0 of 2 failed: ZeroDivisionError" in said[1]
