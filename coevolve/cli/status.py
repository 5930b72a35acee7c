"""Say where a run is, with an exit status that a script can test.

0: finished; 75: interrupted or killed, to be started again; 1: failed, for a reason that is shown;
    3: still running;
2: no run.
"""

import argparse

from coevolve.cli.paths import adders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _, reads, _ = adders(parser)
    reads("run_dir", "the --output-dir of a run", metavar="DIR")


def run(options: argparse.Namespace) -> int:
    from pathlib import Path

    from coevolve.training.status import read_status, status_code

    status = read_status(Path(options.run_dir))
    for name, value in status.items():
        if value not in ("", None, []):
            print(f"{name}: {', '.join(value[-3:]) if isinstance(value, list) else value}")
    return status_code(status)
