"""DeepSpeed on two CPU processes: what is reached in ZeRO-2 and ZeRO-3 is used in a run of two
steps that is left after the first, and each that is gone is named.

Launched as a script, this file is what each process does.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from library_runs import Runs, gone, load_helpers

from coevolve.libraries import deepspeed as seam

pytestmark = pytest.mark.slow(seconds=30)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR") or tmp_path_factory.mktemp("extensions")
    launcher = load_helpers().Launcher(tmp_path_factory.mktemp("launcher"), str(extensions))
    yield launcher
    launcher.end()


@pytest.mark.parametrize("stage", [2, 3])
def test_each_is_used_and_missed(stage, launcher, tmp_path):
    launcher.run(f"zero{stage}", [__file__, tmp_path], tmp_path / "log")
    found = json.loads((tmp_path / "found.json").read_text())
    objects = {*map(str, (*seam.ENGINE, *(seam.ZERO3 if stage == 3 else seam.ZERO2)))}
    others = {*map(str, (*seam.OFFLOAD, *seam.PARAMETER) if stage == 3 else ())}
    assert set(found["named"]) == objects | others
    assert set(found["used"]) == objects
    assert found["same"]  # a moment or a share that were not found would show


def work(folder):
    """What each process does."""
    import torch
    from accelerate import PartialState

    from coevolve.errors import LibraryError
    from coevolve.libraries import deepspeed as seam
    from coevolve.training.distributed.processes import Processes
    from coevolve.training.distributed.stopping import Stop
    from coevolve.training.engines import LeftHalfway

    processes = Processes(PartialState(cpu=True).device, Stop())
    runs = Runs(folder, processes)
    used, named, check = set(), set(), seam.Zero.check

    def take_away_each(zero):
        check(zero)
        of_stage = seam.ZERO3 if zero.stage == 3 else seam.ZERO2
        places = [(seam.ENGINE, zero.engine), (of_stage, zero.engine.optimizer)]
        if zero.stage == 3:
            places += [(seam.OFFLOAD, None), (seam.PARAMETER, next(zero.model.parameters()))]
        for hooks, on in places:
            for hook in hooks:
                with gone(hook, on):
                    try:
                        check(zero)
                    except LibraryError as error:
                        named.update({str(hook)} if f": {hook}, by which" in str(error) else ())
        for hooks, on in places[:2]:
            note_use(on, {hook.name: str(hook) for hook in hooks}, used)

    seam.Zero.check = take_away_each
    whole = runs.sft(runs.plan())
    try:
        runs.sft(runs.plan(leave_after=1))
    except LeftHalfway as error:
        left = runs.sft(runs.plan(error.segment))
    same = all(torch.equal(whole.weights[name], left.weights[name]) for name in whole.weights)
    if processes.main:
        found = {"used": sorted(used), "named": sorted(named), "same": same and left.step == 2}
        (folder / "found.json").write_text(json.dumps(found))
    processes.close()


def note_use(on, names, used):
    """From here on, note who is asked for by these names, by whomever."""

    def getattribute(self, name):
        if name in names:
            used.add(names[name])
        return object.__getattribute__(self, name)

    type(on).__getattribute__ = getattribute


if __name__ == "__main__":
    work(Path(sys.argv[1]))
