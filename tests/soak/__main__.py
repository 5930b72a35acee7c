"""`python -m tests.soak`: see the package."""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
)
os.environ.update(NO_PROXY="127.0.0.1", HF_DATASETS_OFFLINE="1", WANDB_DISABLE_GIT="true")
os.environ.update(ACCELERATE_USE_CPU="true", PYTHONWARNINGS="ignore")

import torch

import coevolve.training.run  # noqa: F401 (loaded once, before the runs are forked)
from tests.soak.compare import largest_difference, lost, record
from tests.soak.faults import (
    ALONE,
    CHANGED,
    LONGEST_DELAY,
    MOST_SECONDS,
    SHARED,
    WITH_VLLM,
    Disturbed,
    drawn,
    small_disk,
)
from tests.soak.servers import Teacher, Wandb
from tests.soak.sitting import Sitting
from tests.soak.world import make_world

SHARE_ALONE = 0.75
"""Of the faults; the rest strikes the run on several processes."""
GROWTH = 1.03
"""Memory of the last quarter of the rounds, as a multiple of the second's, that counts as flat."""
DELAY_WITH_VLLM = 1.5
"""Seconds: a start of the engine takes longer."""
WRITTEN_AT_ONCE = 3
"""Files that a run may have open for the moment in which it writes them."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where runs and logs are left")
    what = "vLLM generates; SIGKILL alone, on one process alone"
    parser.add_argument("--vllm", action="store_true", help=what)
    options = parser.parse_args(argv)
    report = soak(options.rounds, options.faults, options.seed, options.keep, vllm=options.vllm)
    print(json.dumps(report, indent=1))
    return 1 if report["wrong"] else 0


def soak(
    rounds: int, faults: int, seed: int, keep: Path | None = None, *, vllm: bool = False
) -> dict[str, Any]:
    """The three runs; what struck them, what was seen, and in `wrong` what was lost."""
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="coevolve-soak-") as scratch:
        place = Path(scratch)
        with small_disk(place / "disk") as disk:
            teacher, wandb = Teacher(place), Wandb()
            try:
                recipe = str(make_world(place / "world", teacher.url, rounds, vllm=vllm))
                rng = random.Random(seed)
                report = _soak(disk, recipe, teacher, wandb, faults, rng, vllm=vllm)
            finally:
                teacher.close()
                wandb.close()
                if keep is not None:
                    shutil.copytree(disk, keep, dirs_exist_ok=True)
    about = {"rounds": rounds, "seed": seed, "minutes": round((time.monotonic() - began) / 60, 1)}
    return {**about, **report}


def _soak(
    disk: Path,
    recipe: str,
    teacher: Teacher,
    wandb: Wandb,
    faults: int,
    rng: random.Random,
    *,
    vllm: bool,
) -> dict[str, Any]:
    teacher.become("fine")
    footprint, wrong = _whole(disk / "whole", recipe), []
    newest = max((disk / "whole" / "checkpoints").iterdir())
    stages = json.loads((newest / "state.json").read_text())["done"]
    report: dict[str, Any] = {"stages": len(stages), "whole": footprint}
    if not footprint["flat"]:
        wrong.append(f"memory or open files grew: {footprint}")
    total: Counter[str] = Counter()
    count = round(SHARE_ALONE * faults)
    runs = [("alone", ALONE, count), ("shared", SHARED, faults - count)]
    for name, kinds, number in [("alone", WITH_VLLM, faults)] if vllm else runs:
        shared = name == "shared"
        run = Disturbed(disk / name, [recipe], stages, teacher, wandb, rng)
        began = time.monotonic()
        longest = DELAY_WITH_VLLM if vllm else LONGEST_DELAY
        run.suffer(drawn(kinds, number, stages, rng, longest), shared=shared)
        wrong += [f"{name}: {what}" for what in run.wrong]
        wrong += [f"{name}: {what}" for what in lost(disk / "whole", disk / name, exact=not shared)]
        if not shared:
            wrong += _tracked(wandb, disk / name)
        total += run.struck
        report[name] = {
            "struck": dict(run.struck),
            "sittings": run.sittings,
            "minutes": round((time.monotonic() - began) / 60, 1),
            "largest_difference_of_a_weight": largest_difference(disk / "whole", disk / name),
            "largest_memory_mib": round(run.largest[0]),
            "most_open_files": run.largest[1],
            "slowest_stop_s": round(run.slowest_stop, 2),
        }
        if not shared and run.largest[1] > footprint["open_files"][-1] + WRITTEN_AT_ONCE:
            wrong.append(f"{name}: {run.largest[1]} open files")
    changes = total.pop(CHANGED, 0)
    report |= {"faults": total.total(), "by_kind": dict(total), "changes_of_processes": changes}
    if total.total() < 0.8 * faults:
        wrong.append(f"only {total.total()} of {faults} faults struck")
    return {**report, "wrong": wrong}


def _whole(folder: Path, recipe: str) -> dict[str, Any]:
    """The run without faults, and its memory (MiB) and open files in each quarter of its time."""
    sitting = Sitting.start([recipe], folder, folder.with_suffix(".log"), environ={})
    seen: list[tuple[float, int]] = []
    until = time.monotonic() + 6 * MOST_SECONDS
    while (codes := sitting.wait(0.1)) is None and time.monotonic() < until:
        if (sitting.stage() or "").startswith("round-"):
            seen.append(sitting.footprint())
    sitting.kill()
    if codes != [0]:
        raise SystemExit(f"the run without faults ended with {codes}:\n{sitting.log.read_text()}")
    size = max(len(seen) // 4, 1)
    quarters = [seen[start : start + size] for start in range(0, 4 * size, size)]
    memory = [round(median(mib for mib, _ in quarter), 1) for quarter in quarters if quarter]
    files = [int(median(count for _, count in quarter)) for quarter in quarters if quarter]
    flat = memory[-1] <= GROWTH * memory[len(memory) // 4] and files[-1] <= files[0]
    return {"memory_mib": memory, "open_files": files, "flat": flat}


def _tracked(wandb: Wandb, run: Path) -> list[str]:
    """Whether W&B has one run, with each step of the record once, in order."""
    runs = wandb.ask("up")["runs"]
    if len(runs) != 1:
        return [f"tracker: {len(runs)} runs in place of one"]
    (history,) = runs.values()
    steps = [json.loads(line)["_step"] for line in history]
    expected = sorted({line["step"] for line in record(run)})
    return [] if steps == expected else [f"tracker: {len(steps)} points of {len(expected)}"]


if __name__ == "__main__":
    sys.exit(main())
