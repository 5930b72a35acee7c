"""One sitting of a run: a process, or two, that train by the command until they end."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from torch.distributed import TCPStore

from coevolve.documents import read_document
from coevolve.errors import CoevolveError
from coevolve.training.status import STATUS, Status
from tests.soak.servers import ended, forked

HOST = "127.0.0.1"
SILENT_SECONDS = 10.0
"""In place of the product's 40, after which a process that says nothing is taken for dead."""
TRACKER_SECONDS = 3, 15
"""In place of the product's 30 and 600, for which W&B is waited for at the start and at the end."""
FIRST_WAIT = 0.05
"""In place of the product's 0.5 s before a question is sent to a teacher again."""


@dataclass
class Sitting:
    """Processes of one run, by rank, what they print in `log`."""

    folder: Path
    log: Path
    children: list[int]
    store: int | None
    codes: dict[int, int] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        folder: Path,
        log: Path,
        *,
        processes: int = 1,
        environ: Mapping[str, str],
    ) -> "Sitting":
        """`coevolve train ARGUMENTS --output-dir FOLDER` on so many processes."""
        log.write_bytes(b"")
        sys.stdout.flush()  # what is in it is not the children's
        # As torchrun does, the store is held by a process that is none of the run's.
        port = _free_port()
        store = forked(lambda: _hold_store(port)) if processes > 1 else None
        children = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
                ranks |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                launched = {name: str(value) for name, value in ranks.items()}
                launched |= {"MASTER_ADDR": HOST, "TORCHELASTIC_USE_AGENT_STORE": "True"}
                os.environ.update({**environ, **(launched if processes > 1 else {})})
                _train([*arguments, "--output-dir", str(folder)], log)
            children.append(child)
        return cls(folder, log, children, store)

    def stage(self) -> str | None:
        """What it does, by its own words since it began; None before it said so."""
        status = self.folder / STATUS
        with suppress(OSError, CoevolveError):
            said = read_document(status, Status, remedy="", error=CoevolveError)
            if said.pid in self.children and said.state == "running":
                return said.stage
        return None

    def send(self, number: int, *ranks: int) -> None:
        """To some processes, or all."""
        for rank in ranks or range(len(self.children)):
            if self.children[rank] not in self.codes:
                os.kill(self.children[rank], number)

    def wait(self, seconds: float) -> list[int] | None:
        """The exit statuses, by rank, negative for a signal;
        None where it has not ended by then.
        """
        until = time.monotonic() + seconds
        while len(self.codes) < len(self.children):
            for child in self.children:
                if child not in self.codes:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        self.codes[child] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.005)
        return [self.codes[child] for child in self.children]

    def kill(self) -> None:
        """End what is left of it."""
        self.send(signal.SIGKILL)
        self.wait(30)
        if self.store is not None:
            ended(self.store)
            self.store = None

    def footprint(self) -> tuple[float, int]:
        """MiB of memory and open files of the first process."""
        process = psutil.Process(self.children[0])
        return process.memory_info().rss / 2**20, process.num_fds()


def _train(arguments: list[str], log: Path) -> None:
    """Train in this process, which then ends."""
    code = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        from coevolve.chat import endpoint
        from coevolve.cli import main
        from coevolve.training.distributed import processes
        from coevolve.training.record import trackers

        endpoint._FIRST_WAIT = FIRST_WAIT
        processes.SILENT_SECONDS = SILENT_SECONDS
        trackers.INIT_SECONDS, trackers.FINISH_SECONDS = TRACKER_SECONDS
        code = main(["train", *arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _hold_store(port: int) -> None:
    store = TCPStore(HOST, port, is_master=True, wait_for_workers=False)
    while store:
        time.sleep(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
