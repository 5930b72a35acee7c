"""A whole run that is killed at ten points of its record: every tracker ends with each point once,
in order.
"""

import json
import os
import signal
import sqlite3
import sys

import pytest
import torch

from coevolve.recipe import check_recipe
from coevolve.training.record.record import Record
from coevolve.training.run import train
from tests.fuzz.valid import RECIPE
from tests.soak.servers import Wandb
from tests.training.record.test_record import offline_files, offline_points

KILLS = 10


def sitting(recipe, folder, kill_at=None, **environ):
    """A process of its own, killed when it has logged step number `kill_at`, or, for `artifact`,
    when the export was given to the tracker.
    """
    child = os.fork()
    if child == 0:
        try:
            os.environ.update(environ)
            for loaded in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
                del sys.modules[loaded]  # it reads TRACKIO_DIR when it is loaded
            nowhere = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            for name in ("log", "samples", "artifact"):
                _deadly(name, kill_at)
            train(recipe, folder, environ=os.environ)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if kill_at is None else -signal.SIGKILL), folder.with_suffix(".log")


def _deadly(name, kill_at):
    original = getattr(Record, name)

    def deadly(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if kill_at in (name, self._step):
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(Record, name, deadly)


def steps_of(folder):
    """(steps of figures, steps of tables)."""
    return [
        sorted({json.loads(line)["step"] for line in (folder / name).read_text().splitlines()})
        for name in ("metrics.jsonl", "samples.jsonl")
    ]


@pytest.fixture
def killed(tmp_path):
    """A function that has a run killed at ten points, lets it end, and returns its folder."""

    def kill(tracker, **environ):
        pytest.importorskip(tracker)  # loaded once, not in every sitting
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a forked process cannot use those of the one that it came from
        sitting(check_recipe(RECIPE, "tiny"), tmp_path / "whole")
        last = max(map(max, steps_of(tmp_path / "whole")))
        reporting = check_recipe({**RECIPE, "logging": {"report_to": [tracker]}}, "tiny")
        for number in range(1, KILLS):
            sitting(reporting, tmp_path / "run", kill_at=last * number // KILLS, **environ)
        sitting(reporting, tmp_path / "run", kill_at="artifact", **environ)
        sitting(reporting, tmp_path / "run", **environ)
        torch.set_num_threads(threads)
        assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
        return tmp_path / "run"

    return kill


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_has_every_point_once_and_the_artifact_over_ten_kills(killed, tmp_path, mode):
    server = Wandb()
    try:
        environ = {"WANDB_CACHE_DIR": str(tmp_path / "cache"), "WANDB_CONFIG_DIR": str(tmp_path)}
        environ |= server.environ if mode == "online" else {"WANDB_MODE": "offline"}
        folder = killed("wandb", **environ)
        has = server.ask("up")
    finally:
        server.close()
    if mode == "online":
        # What was killed before its first checkpoint was begun anew, as another run.
        ids = json.loads((folder / ".sent.json").read_text())["trackers"]
        points = [json.loads(line) for line in has["runs"][ids["wandb"]]]
        assert len(has["runs"]) <= 2
        assert "tiny-estimator" in json.dumps(has["artifacts"])
    else:
        last = offline_files(folder)[-1]
        points = offline_points(last)
        assert b"tiny-estimator" in last.read_bytes()
    figures, tables = steps_of(folder)
    assert [point["_step"] for point in points] == sorted([*figures, *tables])


@pytest.mark.slow
def test_trackio_has_every_point_once_over_ten_kills(killed, tmp_path):
    folder = killed("trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT step, run_name FROM metrics ORDER BY id").fetchall()
    assert len({name for _, name in rows}) == 1
    assert [step for step, _ in rows] == steps_of(folder)[0]
