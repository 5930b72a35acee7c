"""A whole run that is killed at ten points of its record: every tracker ends with each point once,
in order.
"""

import json
import os
import signal
import sqlite3
import sys
import threading

import pytest
import torch

from coevolve.training.record.record import Record
from coevolve.training.run import train
from tests.training.record.test_record import KEY, offline_files, offline_points
from tests.training.record.wandb_server import wandb_server

KILLS = 10
SMALL = {
    "data": {"world": {"train": 16, "test": 2}, "validation": 4},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
    "logging": {"every": 1},
}


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
def killed(recipe_of, tmp_path, monkeypatch):
    """A function that has a run killed at ten points, lets it end, and returns its folder."""
    monkeypatch.setattr("coevolve.training.record.trackers.INIT_SECONDS", 20)

    def kill(tracker, **environ):
        pytest.importorskip(tracker)  # loaded once, not in every sitting
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a forked process cannot use those of the one that it came from
        recipe = recipe_of(**SMALL)
        sitting(recipe, tmp_path / "whole")
        last = max(map(max, steps_of(tmp_path / "whole")))
        reporting = recipe_of(**{**SMALL, "logging": {"every": 1, "report_to": [tracker]}})
        for number in range(1, KILLS):
            sitting(reporting, tmp_path / "run", kill_at=last * number // KILLS, **environ)
        sitting(reporting, tmp_path / "run", kill_at="artifact", **environ)
        sitting(reporting, tmp_path / "run", **environ)
        torch.set_num_threads(threads)
        assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
        return tmp_path / "run"

    return kill


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_has_every_point_once_and_the_artifact_over_ten_kills(killed, tmp_path, mode):
    with wandb_server(KEY) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"WANDB_CACHE_DIR": str(tmp_path / "cache"), "WANDB_CONFIG_DIR": str(tmp_path)}
        environ |= server.environ if mode == "online" else {"WANDB_MODE": "offline"}
        folder = killed("wandb", **environ)
        server.shutdown()
    if mode == "online":
        # What was killed before its first checkpoint was begun anew, as another run.
        ids = json.loads((folder / ".sent.json").read_text())["trackers"]
        points = [json.loads(line) for line in server.runs[ids["wandb"]]]
        assert len(server.runs) <= 2
        names = [given["artifactTypeName"] for given in server.artifacts]
        assert "model" in names, names
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
