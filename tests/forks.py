"""Programs that begin with everything imported: a process that has torch, trl and the rest in
memory forks for each that asks, so that a launch of two processes takes no twelve seconds of
imports.

    python tests/forks.py serve SOCKET            keeps everything imported and forks
    python tests/forks.py SOCKET -m coevolve ...  is `python -m coevolve ...`, forked there

What a launcher starts and signals is the second, which stands for its fork: it has the launcher's
environment, files and working directory, gets its signals, ends as it ends, and takes it along.
"""

import array
import atexit
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path

PASSED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGABRT,
)


IMPORTED = (
    "accelerate.commands.launch",
    "deepspeed.launcher.runner",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # a launch's seconds: torch's compiler
    "torch.distributed.run",
    "torch.utils.cpp_extension",
    "coevolve.cli",
    "coevolve.training.rl.algorithms",
    "coevolve.training.run",
)


def main(place: str, arguments: list[str]) -> None:
    """Ask for a fork, wait for its end, end likewise."""
    with socket.socket(socket.AF_UNIX) as to_server:
        to_server.connect(place)
        asked = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        to_server.sendmsg([len(asked).to_bytes(4)], files)
        to_server.sendall(asked)
        pid = int.from_bytes(to_server.recv(4))
        for number in PASSED:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        status = int.from_bytes(to_server.recv(4))
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


def serve(place: str) -> None:
    """Import, then fork for whom asks, until the one that started this is gone."""
    import functools
    import selectors
    from importlib import import_module, metadata

    for name in IMPORTED:
        import_module(name)
    metadata.metadata = functools.cache(metadata.metadata)  # parsed for each trainer, a dozen times
    wandb = import_module("wandb.sdk.data_types._private")
    atexit.unregister(wandb.MEDIA_TMP.cleanup)  # a folder that all forks use
    wandb.MEDIA_TMP._finalizer.detach()
    # Each trainer runs the collector twice; in forks it looks at nothing that was imported.
    gc.collect()
    gc.freeze()
    # A fork has none of its parent's threads, but jemalloc's, which it starts anew.
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) - threads.count("jemalloc_bg_thd") == 1, threads
    with selectors.DefaultSelector() as waiting, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place + ".new")
        listening.listen()
        os.rename(place + ".new", place)
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(0, selectors.EVENT_READ)  # standard input ends with whom started this
        forks: dict[int, tuple[int, socket.socket]] = {}  # by their pidfd
        while True:
            for key, _ in waiting.select():
                if key.fd == 0:
                    return
                if key.fileobj is listening:
                    asking, _ = listening.accept()
                    pid = fork(asking)
                    ended = os.pidfd_open(pid)
                    forks[ended] = (pid, asking)
                    waiting.register(ended, selectors.EVENT_READ)
                    waiting.register(asking, selectors.EVENT_READ, pid)
                elif key.fd in forks:
                    pid, asking = forks.pop(key.fd)
                    _, status = os.waitpid(pid, 0)
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    if asking.fileno() in waiting.get_map():
                        waiting.unregister(asking)
                        asking.sendall(status.to_bytes(4))
                    asking.close()
                else:  # killed: nobody is there to be told
                    os.kill(key.data, signal.SIGKILL)
                    waiting.unregister(key.fileobj)


def fork(asking: socket.socket) -> int:
    """The pid of a process that runs what is asked for."""
    header, control, _, _ = asking.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", control[0][2])
    size, asked = int.from_bytes(header), b""
    while len(asked) < size:
        asked += asking.recv(size - len(asked))
    if pid := os.fork():
        for file in files:
            os.close(file)
        asking.sendall(pid.to_bytes(4))
        return pid
    arguments, folder, environ = json.loads(asked)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    become(arguments)


def become(arguments: list[str]) -> None:
    """Run a module or a file as Python would, and end as Python would."""
    import runpy
    import traceback

    status = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        main(sys.argv[1], sys.argv[2:])
