"""Figures and samples come through crashes and resumes once each, on disk and in trackers; no
tracker ends a run.
"""

import importlib.util
import io
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from wandb.proto import wandb_internal_pb2

from coevolve.errors import DataError, RecipeError
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.record.facts import environment_facts, git_facts, memory
from coevolve.training.record.record import Record
from coevolve.training.record.trackers import TRACKERS
from coevolve.training.run import train
from tests.training.record.wandb_server import wandb_server

KEY = "0123456789abcdef" * 3
COLUMNS = ("context", "reasoning", "reward/likelihood")


def new_record(folder, **options):
    return Record(folder, console=Console(file=io.StringIO(), width=200), **options)


def said(record):
    return record.console.file.getvalue()


def lines(path):
    """The lines of a file without what depends on the clock."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def work(record, steps):
    """Log up to step number `steps`; every fifth step is a table. What is logged depends on the
    step only.
    """
    for step in range(record.state()["step"] + 1, steps + 1):
        where = {"coevolve/round": step // 4, "coevolve/phase": "connector_rl"}
        if step % 5 == 0:
            rows = [[f"context {step} ünï", "r", step / 7], ["another", "", math.inf]]
            record.samples("samples/connector_rl", COLUMNS, rows, where=where)
        else:
            record.log(
                {
                    **where,
                    "connector/reward": math.sin(step),
                    "connector/kl": math.nan if step == 7 else 0.0,
                }
            )


# On disk.


@pytest.mark.parametrize("torn", ["", '{"step": 14, "conn', '{"step": 14, "x": "\N{SNOWMAN}'])
def test_a_resumed_run_leaves_the_same_files_as_one_that_was_never_stopped(tmp_path, torn):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    work(new_record(whole), 20)

    record = new_record(broken)
    work(record, 8)
    state = json.loads(json.dumps(record.state()))
    for last in (13, 11):  # two crashes after the same checkpoint
        work(record, last)
        for path in (record.path, record.samples_path):
            with open(path, "ab") as file:
                file.write(torn.encode()[:-1])
        record = new_record(broken)
        record.resume(state)
    work(record, 20)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines(broken / name) == lines(whole / name)
    steps = sorted(
        {row["step"] for name in ("metrics.jsonl", "samples.jsonl") for row in lines(whole / name)}
    )
    assert steps == list(range(1, 21))


def test_the_state_of_a_new_record_begins_anew(tmp_path):
    work(new_record(tmp_path), 7)
    record = new_record(tmp_path)
    record.resume(record.state())
    work(record, 3)
    assert [row["step"] for row in lines(record.path)] == [1, 2, 3]
    assert lines(record.samples_path) == []


def test_a_damaged_line_is_named(tmp_path):
    record = new_record(tmp_path)
    work(record, 4)
    state = record.state()
    text = record.path.read_text().splitlines()
    record.path.write_text("\n".join([text[0], text[1][:9], *text[2:]]) + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: .*Delete that line"):
        new_record(tmp_path).resume(state)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize(
    "line", ["null", "[]", "7", '"x"', "{}", '{"step": 1.5}', '{"step": true}', '{"step": -1}']
)
def test_a_line_that_is_none_of_the_files_is_named(tmp_path, name, line):
    record = new_record(tmp_path)
    work(record, 9)
    with open(tmp_path / name, "a") as file:
        count = len((tmp_path / name).read_text().splitlines())
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=rf"{name}:{count + 1}: .*Delete that line"):
        new_record(tmp_path).resume(record.state())


@pytest.mark.parametrize("note", ["", "null", "{}", '{"step": "x"}', '{"step": -3}', "\0"])
def test_a_damaged_note_of_what_trackers_know_is_said_and_made_anew(tmp_path, note):
    record = new_record(tmp_path)
    work(record, 6)
    (tmp_path / ".sent.json").write_text(note)
    resumed = new_record(tmp_path)
    resumed.resume(record.state())
    assert ".sent.json" in said(resumed) and "once more" in said(resumed)
    assert json.loads((tmp_path / ".sent.json").read_text()) == {"step": 6, "trackers": {}}


def test_what_is_not_finite_is_still_json_and_still_known(tmp_path):
    record = new_record(tmp_path)
    record.log(
        {
            "a": math.nan,
            "b": -math.inf,
            "c": np.float32(0.5),
            "d": np.int64(3),
            "e": "word",
            "f": None,
        }
    )
    (row,) = lines(record.path)
    assert row.pop("not_finite") == {"a": "nan", "b": "-inf"}
    assert row == {"step": 1, "a": None, "b": None, "c": 0.5, "d": 3, "e": "word", "f": None}


def test_the_clock_goes_on_without_the_time_between(tmp_path):
    record = new_record(tmp_path)
    state = {**record.state(), "seconds": 3725.5}
    time.sleep(0.05)
    record = new_record(tmp_path)
    record.resume(state)
    assert 3725.5 <= record.seconds < 3730
    record.say("on")
    assert "[ 62:0" in said(record)


def test_samples_hold_a_line_per_row(tmp_path):
    record = new_record(tmp_path)
    record.samples(
        "samples/x", ["y", "reward"], [["a", 1.0], ["b", None]], where={"coevolve/round": 2}
    )
    assert lines(record.samples_path) == [
        {"step": 1, "coevolve/round": 2, "table": "samples/x", "sample": {"y": "a", "reward": 1.0}},
        {
            "step": 1,
            "coevolve/round": 2,
            "table": "samples/x",
            "sample": {"y": "b", "reward": None},
        },
    ]
    with pytest.raises(ValueError):
        record.samples("samples/x", ["y", "reward"], [["a"]], where={})


def test_only_the_main_process_writes_and_speaks(tmp_path):
    record = Record(tmp_path, main=False)
    record.resume({"step": 3, "seconds": 1.0, "trackers": {}})
    record.start_trackers(["wandb"], project="p", name="n", config={})
    work(record, 6)
    with record.task("t", 1, key="t") as advance:
        advance(1)
    record.close()
    assert list(tmp_path.iterdir()) == []


def test_a_task_logs_its_time_speed_and_memory(tmp_path):
    record = new_record(tmp_path)
    with record.task("a phase", 4, key="connector_rl", where={"coevolve/round": 1}) as advance:
        advance(1)
        advance(3, tokens=500)
        time.sleep(0.05)
    (row,) = lines(record.path)
    assert row["coevolve/round"] == 1
    assert 0.05 <= row["time/connector_rl"] < 5
    assert row["tokens_per_second/connector_rl"] == pytest.approx(
        500 / row["time/connector_rl"], rel=0.05
    )
    assert 0 < row["memory/rss_gib"] <= row["memory/rss_peak_gib"] < 100
    assert "a phase: done in" in said(record) and "tokens/s" in said(record)
    with record.task("said only", 1) as advance:
        advance(1)
    assert len(lines(record.path)) == 1


def test_memory_grows_with_what_is_held():
    before = memory()["memory/rss_gib"]
    held = np.ones(2**26)  # half a GiB
    assert memory()["memory/rss_gib"] - before == pytest.approx(0.5, abs=0.1)
    assert memory()["memory/rss_peak_gib"] >= before + 0.4
    del held


def test_git_facts_are_of_the_checkout_that_tracks_the_package(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *arguments],
            check=True,
        )

    package, installed = tmp_path / "package", tmp_path / "env" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    assert git_facts(package) is None
    git("init", "-q")
    git("add", "package")
    git("commit", "-q", "-m", "one")
    (tmp_path / "elsewhere.txt").write_text("not of the package")
    facts = git_facts(package)
    assert re.fullmatch("[0-9a-f]{40}", facts["commit"]) and facts["dirty"] is False
    (package / "new.py").write_text("")
    assert git_facts(package) == {**facts, "dirty": True}
    assert git_facts(installed) is None


def test_environment_facts_are_json():
    facts = json.loads(json.dumps(environment_facts(), allow_nan=False))
    assert facts["packages"]["trl"].startswith("1.") and facts["packages"]["wandb"]
    assert facts["python"].startswith("3.")


# Trackers.


def test_an_unknown_tracker_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(
        RecipeError, match=r"report_to: found 'wandbb'; accepted are .*tensorboard.*wandb"
    ):
        new_record(tmp_path, main=False).start_trackers(
            ["wandbb"], project="p", name="n", config={}
        )


@pytest.mark.parametrize(
    "name", [name for name in TRACKERS if importlib.util.find_spec(name) is None]
)
def test_a_tracker_that_is_not_installed_is_an_error_that_says_what_to_install(tmp_path, name):
    with pytest.raises(RecipeError, match=f"pip install {name}"):
        new_record(tmp_path).start_trackers([name], project="p", name="n", config={})


def test_tensorboard_sees_each_step_once_over_resumes(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, state = new_record(tmp_path), None
    for last in (9, 14, 17):  # the second sitting begins before the end of the first
        if state:
            record = new_record(tmp_path)
            record.resume(state)
        record.start_trackers(
            ["tensorboard"], project="p", name="n", config={"recipe": {"a": [1]}, "b": None}
        )
        work(record, last - 3)
        state = record.state()
        work(record, last)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "n"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("connector/reward")]
    assert [step for step, _ in points] == [step for step in range(1, 18) if step % 5]
    assert [value for _, value in points] == pytest.approx(
        [math.sin(step) for step, _ in points], abs=1e-6
    )


def test_a_tracker_that_was_added_has_one_run_also_if_no_checkpoint_knows_of_it(tmp_path):
    pytest.importorskip("tensorboard")
    work(new_record(tmp_path), 3)
    states, ids = [{"step": 3, "seconds": 1.0, "trackers": {}}] * 2, []
    for state in (*states, new_record(tmp_path).state()):
        record = new_record(tmp_path)
        record.resume(state)
        record.start_trackers(["tensorboard"], project="p", name="n", config={})
        ids.append(record.state()["trackers"]["tensorboard"])
        work(record, record.state()["step"] + 2)
        record.close()
    assert ids[0] == ids[1] != ids[2]  # the last one begins anew


SITTING = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from coevolve.training.record import trackers as module
from test_record import new_record, said, work
import psutil

module.INIT_SECONDS = module.FINISH_SECONDS = {patience!r}
folder, (checkpoint, last, how) = Path({folder!r}), {plan!r}
record = new_record(folder)
state = folder / "state.json"
if state.exists():
    record.resume(json.loads(state.read_text()))
config = {{"recipe": {{"a": 1}}, "none": None}}
record.start_trackers(["wandb"], project="p", name="n", config=config)
work(record, checkpoint)
state.write_text(json.dumps(record.state()))
if how == "service dies":
    for child in psutil.Process().children(recursive=True):
        child.kill()
        child.wait()
work(record, last)
if how == "killed":
    print(said(record), flush=True)
    os.kill(os.getpid(), 9)
if how == "server down":
    import urllib.request
    urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/down").close()
record.close()
print(said(record))
"""


@pytest.fixture
def sit(launcher):
    """One process of a run that takes a checkpoint at step `checkpoint`, goes on to step `last`,
    and ends somehow; it begins with everything imported.

    For `patience` seconds it waits for wandb's server.
    """

    def sit(folder, checkpoint, last, how="", *, patience=60, **environ):
        tests, plan = str(Path(__file__).parent), (checkpoint, last, how)
        code = SITTING.format(tests=tests, folder=str(folder), plan=plan, patience=patience)
        (folder / "sitting.py").write_text(code)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        names = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC")
        home = {name: str(folder / "home") for name in names}
        done = subprocess.run(
            [sys.executable, *launcher.forked([str(folder / "sitting.py")])],
            env={**kept, **home, "WANDB_DISABLE_GIT": "true", **environ},
            capture_output=True,
            text=True,
            timeout=900,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == (-signal.SIGKILL if how == "killed" else 0), done.stderr
        assert KEY not in done.stdout + done.stderr
        return done.stdout

    return sit


def wandb_sync(*arguments, **environ):
    """The command that a person would run. What it writes besides goes to the folder of the last
    argument.
    """
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, arguments)],
        env={**os.environ, **environ}, cwd=arguments[-1],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout + done.stderr


def offline_files(folder):
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def offline_points(path):
    """The points of a .wandb file, which is a LevelDB log of protobuf records behind 7 bytes of its
    own.
    """
    data, at, record, points = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record.FromString(record)
            record = b""
            if parsed.WhichOneof("record_type") == "history":
                point = {}
                for item in parsed.history.item:
                    *outer, name = item.nested_key or [item.key]
                    (point.setdefault(outer[0], {}) if outer else point)[name] = json.loads(
                        item.value_json
                    )
                points.append(point)
    return points


def assert_whole(points, last):
    """Every step once, in order, with the value that belongs to it."""
    assert [point["_step"] for point in points] == list(range(1, last + 1))
    for point in points:
        step = point["_step"]
        assert point["coevolve/round"] == step // 4 and point["coevolve/phase"] == "connector_rl"
        if step % 5:
            assert point["connector/reward"] == math.sin(step)
            assert step != 7 or math.isnan(float(point["connector/kl"]))
        else:
            assert point["samples/connector_rl"]["nrows"] == 2


@pytest.fixture
def server():
    with wandb_server(KEY) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_one_run_online_holds_each_step_once_over_outages_kills_and_resumes(sit, tmp_path, server):
    words = sit(
        tmp_path, 8, 12, patience=3, **{**server.environ, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    )
    (path,) = offline_files(tmp_path)
    assert re.search(r"offline\. To upload the run: wandb sync (\S+)", words)[1] == str(path.parent)
    assert_whole(offline_points(path), 12)

    words = sit(tmp_path, 10, 16, **server.environ)
    ((run, history),) = server.runs.items()
    assert f"/me/p/runs/{run}" in words
    assert_whole([json.loads(line) for line in history], 16)
    assert "No runs to sync" in wandb_sync("--dry-run", tmp_path / "wandb")

    sit(
        tmp_path, 18, 21, "killed", **server.environ
    )  # the server was ahead of the checkpoint, and is behind now
    sit(tmp_path, 22, 23, **server.environ)
    assert list(server.runs) == [run]
    assert_whole([json.loads(line) for line in history], 23)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.mark.slow(seconds=80)
def test_a_server_that_is_down_gets_the_rest_later_by_the_command_that_is_said(
    sit, tmp_path, server
):
    sit(tmp_path, 8, 12, **server.environ)
    # For a table wandb asks twenty times, up to a minute apart, before its own patience counts.
    hurry = {"WANDB__GRAPHQL_RETRY_MAX": "3"}
    words = sit(tmp_path, 12, 19, "server down", patience=20, **server.environ, **hurry)
    ((run, history),) = server.runs.items()
    assert len(history) < 19
    command = re.search(r"wandb sync (--include-online) (\S+)", words)
    server.down = False
    wandb_sync(command[1], command[2], **server.environ)
    assert_whole([json.loads(line) for line in history], 19)

    words = sit(
        tmp_path, 20, 24, patience=3, **{**server.environ, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    )
    command = re.search(r"wandb sync --id (\S+) (\S+)", words)
    wandb_sync("--id", command[1], command[2], **server.environ)
    assert list(server.runs) == [run, command[1]]
    assert_whole([json.loads(line) for line in server.runs[command[1]]], 24)


def test_the_last_offline_file_holds_each_step_once_over_kills_and_resumes(sit, tmp_path):
    sit(tmp_path, 8, 12, "killed", WANDB_MODE="offline")
    sit(tmp_path, 11, 15, "killed", WANDB_MODE="offline")
    words = sit(tmp_path, 18, 22)  # nobody is asked for the key that is missing
    *killed, path = offline_files(tmp_path)
    assert len(killed) == 2
    assert_whole(offline_points(path), 22)
    assert words.count("no key found") == 1
    assert words.count(f"wandb sync {path.parent}") == 1
    assert "Would sync 1 run(s)" in wandb_sync("--dry-run", tmp_path / "wandb")


def test_when_wandb_itself_dies_the_run_goes_on_offline(sit, tmp_path):
    words = sit(tmp_path, 8, 16, "service dies", WANDB_MODE="offline")
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [
        step for step in range(1, 17) if step % 5
    ]
    assert_whole(offline_points(offline_files(tmp_path)[-1]), 16)
    assert words.count("The run goes on") == 1


@pytest.mark.parametrize("project", [None, "p"])
def test_wandb_heeds_its_variables_where_the_recipe_is_silent(tmp_path, monkeypatch, project):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "read by nobody but the command line")
    environ = {
        "WANDB_PROJECT": "theirs",
        "WANDB_NAME": "mine",
        "WANDB_ENTITY": "team",
        "WANDB_API_KEY": KEY,
    }
    record = new_record(tmp_path)
    record.start_trackers(["wandb"], project=project, name="n", config={}, environ=environ)
    run = wandb.run
    assert (run.project, run.name, run.entity) == (project or "theirs", "mine", "team")
    record.close()
    wandb.teardown()
    (path,) = offline_files(tmp_path)
    assert KEY.encode() not in path.read_bytes() and KEY not in said(record)


def test_without_its_variables_wandb_is_named_by_the_recipe(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    record = new_record(tmp_path)
    record.start_trackers(["wandb"], project=None, name="n", config={})
    assert (wandb.run.project, wandb.run.name) == ("coevolve", "n")
    record.close()
    wandb.teardown()


def test_the_exported_folder_is_an_artifact(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    export = tmp_path / "estimator"
    export.mkdir()
    (export / "manifest.json").write_text("{}")
    record = new_record(tmp_path)
    record.artifact(export, name="none yet", type="estimator", metadata={})
    record.start_trackers(["wandb"], project="p", name="n", config={})
    record.artifact(export, name="my run/estimator", type="estimator", metadata={"perplexity": 1.5})
    record.artifact(tmp_path / "missing", name="x", type="estimator", metadata={})
    record.log({"x": 1})
    record.close()
    wandb.teardown()
    assert "missing could not be kept" in said(record)
    (path,) = offline_files(tmp_path)
    assert b"my-run-estimator" in path.read_bytes()
    assert len(offline_points(path)) == 1


def test_a_run_that_goes_on_offline_keeps_its_artifact(
    recipe_of, tmp_path, monkeypatch, stop_after
):
    """Each sitting's file is whole, so it has what an earlier one has kept."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    recipe, folder = recipe_of(logging={"report_to": ["wandb"]}), tmp_path / "run"
    for looks in range(100, 500, 20):  # ever later, for a sitting that stops early gets nowhere
        with pytest.raises(Interrupted):
            train(recipe, folder, stop=stop_after(looks))
        if (folder / "estimator").exists():
            break
    train(recipe, folder)
    *before, last = offline_files(folder)
    assert before and b"tiny-estimator" in last.read_bytes()
