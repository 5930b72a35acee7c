"""A run that was stopped or killed, however often and wherever, ends with the bits of one that was
not.
"""

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coevolve.cli import main
from coevolve.errors import ArtifactError, OutputError
from coevolve.training.checkpoints import CHECKPOINTS
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.documents import CheckpointManifest, CheckpointState, RunFile, RunResults
from coevolve.training.run import train
from coevolve.training.status import Status, read_status, status_code

SMALL = {
    "data": {"world": {"train": 24, "test": 3}, "validation": 6},
    "rounds": {"count": 2},
    # Two updates share one batch of completions, so that there is a rollout to be saved.
    "connector_rl": {"steps": 4, "updates_per_generation": 2},
    "baselines": {"without_corl": True, "without_reasoning": True},
    "evaluation": {"marginal_samples": 0},
    "checkpoints": {"every_steps": 1},
    "logging": {"every": 2},
}
KILLS = int(os.environ.get("COEVOLVE_KILLS", "6"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Forked processes cannot use the threads of the one that they came from, and bits depend on
    their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(folder):
    """All that must not depend on how often the run was interrupted."""
    results = json.loads((folder / "results.json").read_text())
    del results["seconds"]
    results["files"] = json.loads((folder / "estimator" / "manifest.json").read_text())["files"]
    weights = {}
    for role in ("connector", "estimator"):
        for path in (folder / "estimator" / role).glob("*.safetensors"):
            weights.update({f"{role}/{name}": tensor for name, tensor in load_file(path).items()})
    assert weights
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = [{name: value for name, value in line.items() if not timed(name)} for line in lines]
    return results, weights, figures


def timed(name):
    return name.startswith(("seconds", "time/", "tokens_per_second/", "memory/")) or name.endswith(
        ("step_time", "_runtime", "_per_second")
    )


def assert_same(folder, other):
    (results, weights, figures), (results_2, weights_2, figures_2) = outcome(folder), outcome(other)
    assert results == results_2
    one, two = ((place / "samples.jsonl").read_text() for place in (folder, other))
    assert one == two
    assert set(weights) == set(weights_2)
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    for line, line_2 in zip(figures, figures_2, strict=True):
        assert line == line_2


@pytest.fixture(
    scope="module", params=["full", pytest.param("lora", marks=pytest.mark.slow(seconds=5))]
)
def whole(request, recipe_of, tmp_path_factory):
    """(recipe, folder) of a run without interruption."""
    recipe = recipe_of(request.param, **SMALL)
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    train(recipe, folder)
    return recipe, folder


def test_stopped_again_and_again(whole, tmp_path, stop_after):
    recipe, folder = whole
    rng, sittings, places = random.Random(0), 0, set()
    while True:
        try:
            train(recipe, tmp_path / "run", stop=stop_after(rng.randrange(1, 180)))
            break
        except Interrupted:
            sittings += 1
            status = read_status(tmp_path / "run")
            assert status["state"] == "interrupted" and status_code(status) == 75
            places.add(status["stage"])
    assert sittings >= 5 and len(places) >= 4, (sittings, places)
    assert_same(folder, tmp_path / "run")
    assert status_code(read_status(tmp_path / "run")) == 0


@pytest.mark.slow
def test_ppo_and_rloo_are_stopped_and_go_on(recipe_of, tmp_path, stop_after):
    """The value head, its optimizer and the KL coefficient among all else; also from one round to
    the next.
    """
    ppo = {
        "algorithm": "ppo",
        "steps": 6,
        "num_generations": 1,
        "num_iterations": 2,
        "updates_per_generation": 2,
        "ppo": {"kl_target": 0.001, "whiten_rewards": True},
    }
    changes = {
        "connector_rl": ppo,
        "estimator_rl": {"algorithm": "rloo", "beta": 0.1, "steps": 2},
        "rounds": {"count": 2, "phases": ["connector_rl", "estimator_rl"]},
        "baselines": {"without_corl": False, "without_reasoning": False},
    }
    recipe, rng, places = recipe_of("full", **{**SMALL, **changes}), random.Random(1), set()
    train(recipe, tmp_path / "whole")
    name = "connector/objective/kl_coef"
    coefficients = [line[name] for line in outcome(tmp_path / "whole")[2] if name in line]
    assert len(set(coefficients)) == len(coefficients) > 2 and coefficients[0] == 0.05
    while True:
        try:
            train(recipe, tmp_path / "run", stop=stop_after(rng.randrange(150, 500)))
            break
        except Interrupted:
            places.add(
                max(
                    path.name for path in (tmp_path / "run" / CHECKPOINTS).glob("[0-9]*")
                ).partition("-")[2]
            )
    assert any("connector_rl-step" in place for place in places), places
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_is_not_run_again(whole):
    recipe, folder = whole
    before = outcome(folder)
    left = [folder / ".status.json.77.tmp", folder / "world" / ".truth.json.77.tmp"]  # by a kill
    for path in left:
        path.touch()
    began = time.monotonic()
    train(recipe, folder)
    assert not any(path.exists() for path in left)
    assert outcome(folder)[0] == before[0] and outcome(folder)[2] == before[2]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("lost", ["connector", "manifest.json"])
def test_a_damaged_export_of_a_finished_run_is_named_and_nothing_is_written(whole, tmp_path, lost):
    recipe, folder = whole
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    damaged = run / "estimator" / lost
    (shutil.rmtree if damaged.is_dir() else os.unlink)(damaged)
    results = (run / "results.json").stat().st_mtime_ns
    with pytest.raises(ArtifactError, match=rf"{lost}.* Or delete {run / 'estimator'}"):
        train(recipe, run)
    assert (run / "results.json").stat().st_mtime_ns == results and not damaged.exists()
    shutil.rmtree(run / "estimator")  # a whole one is made anew
    train(recipe, run)
    assert_same(folder, run)


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(
    whole, tmp_path, capsys, harm, stop_after
):
    recipe, folder = whole
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", stop=stop_after(150))
    newest = max((tmp_path / "run" / CHECKPOINTS).glob("[0-9]*"))
    damaged = newest / "connector.safetensors"
    content = bytearray(damaged.read_bytes())
    damaged.unlink()  # it may be a link to the same file in an older checkpoint
    if harm == "flipped":
        content[-1] ^= 1
        damaged.write_bytes(content)
    capsys.readouterr()
    train(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert str(damaged) in said and "it will be done again" in said
    assert_same(folder, tmp_path / "run")


def test_a_changed_recipe_is_shown_and_refused(whole, recipe_of):
    recipe, folder = whole
    tuning = recipe.model.tuning
    changed = recipe_of(tuning, **{**SMALL, "estimator_sft": {"learning_rate": 1e-4}})
    with pytest.raises(ArtifactError, match=r"estimator_sft.learning_rate: 0.002 -> 0.0001"):
        train(changed, folder)
    with pytest.raises(ArtifactError, match="holds a run already"):
        train(recipe, folder, resume="never")
    harmless = recipe_of(tuning, **{**SMALL, "logging": {"every": 7}, "checkpoints": {"keep": 1}})
    train(harmless, folder)


def test_rounds_can_be_added(recipe_of, tmp_path):
    one = recipe_of("full", **{**SMALL, "rounds": {"count": 1}})
    two = recipe_of("full", **{**SMALL, "rounds": {"count": 2}})
    train(two, tmp_path / "at once")
    train(one, tmp_path / "later")
    train(two, tmp_path / "later")
    (results, weights, _), (results_2, weights_2, _) = (
        outcome(tmp_path / "at once"),
        outcome(tmp_path / "later"),
    )
    assert results == results_2 and all(
        torch.equal(weights[name], weights_2[name]) for name in weights
    )


def test_a_run_goes_on_from_a_named_checkpoint(whole, tmp_path):
    recipe, folder = whole
    earlier = sorted((folder / CHECKPOINTS).glob("[0-9]*"))[-2]
    results = train(recipe, tmp_path / "branch", resume=earlier)
    expected = json.loads((folder / "results.json").read_text())
    assert {**results, "seconds": 0} == {**expected, "seconds": 0}
    one, two = (place / "estimator" / "connector" for place in (folder, tmp_path / "branch"))
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (two / path.name).read_bytes()


@pytest.fixture(params=["with locks", "without locks"])
def filesystem(request, monkeypatch):
    """As Lustre mounted with noflock is, for this process and those that it forks."""
    if request.param == "without locks":

        def flock(descriptor, operation):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr("fcntl.flock", flock)
        monkeypatch.setattr("coevolve.training.run_folder.LEASE_SECONDS", 2.0)
    return request.param


def test_a_directory_in_use_is_refused_and_the_holder_named(
    whole, filesystem, tmp_path, monkeypatch
):
    """And after the holder was killed, the run goes on; the state is told right all along."""
    recipe, _ = whole
    child = os.fork()
    if child == 0:
        # Alive for longer than anyone waits for its lease; a whole run takes less.
        monkeypatch.setattr("coevolve.training.gate.start", lambda *_: time.sleep(60))
        _quietly(lambda: train(recipe, tmp_path / "run"))
    try:
        wait_for(lambda: (tmp_path / "run" / "status.json").exists())
        assert read_status(tmp_path / "run")["state"] == "running"
        with pytest.raises(ArtifactError, match=rf"in use by another run: .*\b{child}\b"):
            train(recipe, tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if filesystem == "with locks":
        assert read_status(tmp_path / "run")["state"] == "killed"
    assert train(recipe, tmp_path / "run")["perplexity"]


def test_checkpoints_without_their_run_are_not_begun_anew(whole, tmp_path):
    recipe, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ArtifactError, match=r"has checkpoints, but run\.json"):
        train(recipe, tmp_path / "run")


def test_a_directory_that_cannot_be_written_is_named(whole, tmp_path):
    recipe, _ = whole
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"--output-dir .*file/run: .*/file is a file, not a folder"
    ):
        train(recipe, tmp_path / "file" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments(whole, tmp_path, seed):
    """SIGKILL, as often as COEVOLVE_KILLS says, each time after a random share of the time that a
    whole run takes.
    """
    recipe, folder = whole
    began = time.monotonic()
    _wait(_start(recipe, tmp_path / "measured"))
    lasts = time.monotonic() - began
    rng, kills = random.Random(seed), 0
    while kills < KILLS:
        child = _start(recipe, tmp_path / "run")
        time.sleep(rng.uniform(0.0, lasts / 4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:  # it came to its end before; begin another one
            assert_same(folder, tmp_path / "run")
            shutil.rmtree(tmp_path / "run")
    assert _wait(_start(recipe, tmp_path / "run")) == 0
    assert_same(folder, tmp_path / "run")


PLACES = {
    "in a checkpoint, before its manifest": ("coevolve.training.checkpoints", "write_json", 5),
    "in a checkpoint, before its rename": ("coevolve.training.checkpoints", "sync_folder", 9),
    "in a reward": ("coevolve.training.rewards.phase", "checked", 1),
    "at a change of phase": ("coevolve.training.gate", "judge", 1),
    "in a refresh": ("coevolve.training.phases", "core_features", 3),
    "in generation": ("coevolve.scoring.generate._Batch", "_forward", 30),
    "in the export": ("coevolve.training.export", "write_manifest", 1),
    "when the export takes its place": ("coevolve.outputs", "replace_folder", 1),
    "before a file takes its place": ("os", "replace", 20),
    "while metrics are cut back": ("coevolve.training.record.record", "write_text", 1),
}


@pytest.mark.slow
def test_killed_where_it_hurts(whole, tmp_path):
    recipe, folder = whole
    for place in PLACES.values():
        child = _start(recipe, tmp_path / "run", die_at=place)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (place, status)
    assert _wait(_start(recipe, tmp_path / "run")) == 0
    assert_same(folder, tmp_path / "run")
    assert not [*(tmp_path / "run").rglob(".*.tmp")]


def _start(recipe, folder, die_at=None):
    """A process of its own with a run in it; forked, which spares it half a minute of imports."""
    child = os.fork()
    if child:
        return child

    def work():
        if die_at is not None:
            _die_at(*die_at)
        train(recipe, folder)

    _quietly(work)


def _quietly(work):
    """Do the work with its output in nobody's way, and end the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _die_at(where, name, nth):
    """Kill this process when something is called for the nth time."""
    import importlib

    try:
        owner = importlib.import_module(where)
    except ModuleNotFoundError:
        module, _, cls = where.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    original, calls = getattr(owner, name), 0

    def deadly(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


def _wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_state_holds_everything_by_name(whole):
    """What a person finds in a checkpoint."""
    _, folder = whole
    newest = max((folder / CHECKPOINTS).glob("[0-9]*"))
    files = {path.name for path in Path(newest).iterdir()}
    assert {
        "manifest.json",
        "state.json",
        "connector.safetensors",
        "estimator.safetensors",
    } <= files
    assert {
        "best-connector.safetensors",
        "best-estimator.safetensors",
        "cold-connector.safetensors",
    } <= files
    assert {
        f"optimizer-{phase}.safetensors"
        for phase in ("connector_rl", "estimator_sft", "estimator_rl")
    } <= files


def test_a_phase_under_way_that_is_no_longer_wanted_leaves_no_trace(
    whole, recipe_of, tmp_path, stop_at_checkpoint
):
    """A baseline is taken out of the recipe in the middle of its training; the next one begins as
    ever.
    """
    recipe, folder = whole
    stop = stop_at_checkpoint(tmp_path / "run", "without_corl-1-step-1")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", stop=stop)
    small = {**SMALL, "baselines": {"without_corl": False, "without_reasoning": True}}
    train(recipe_of(recipe.model.tuning, **small), tmp_path / "run")
    found, expected = (outcome(place)[0]["perplexity"] for place in (tmp_path / "run", folder))
    assert found == {name: values for name, values in expected.items() if name != "without_corl"}


def test_the_schemas_have_every_field_that_a_run_writes(whole):
    _, folder = whole
    files = [
        (folder / "run.json", RunFile),
        (folder / "results.json", RunResults),
        (folder / "status.json", Status),
    ]
    for checkpoint in (folder / CHECKPOINTS).iterdir():
        files += [
            (checkpoint / "state.json", CheckpointState),
            (checkpoint / "manifest.json", CheckpointManifest),
        ]
    assert len(files) > 5
    for path, model in files:
        written = json.loads(path.read_text())
        assert json.loads(json.dumps(model.model_validate(written).values())) == written, path


@pytest.mark.parametrize("of", ["other data", "another model"])
def test_a_checkpoint_that_does_not_fit_gives_way_to_the_one_before(whole, tmp_path, capsys, of):
    """Whole in itself, hashes and all, so that only the run can tell."""
    recipe, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    newest = max((tmp_path / "run" / CHECKPOINTS).iterdir())
    if of == "other data":
        state = json.loads((newest / "state.json").read_text())
        state["reasoning"].append("one too many")
        state["gate"]["best_reasoning"].append("one too many")
        (newest / "state.json").write_text(json.dumps(state))
    else:
        for path in newest.glob("*connector.safetensors"):
            weights = load_file(path)
            weights.popitem()
            path.unlink()
            save_file(weights, path)
    manifest = json.loads((newest / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (newest / name).read_bytes()
        manifest["files"][name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=f"{newest.name}.* Use another checkpoint"):
        train(recipe, tmp_path / "run", resume=newest)
    train(recipe, tmp_path / "run")
    assert capsys.readouterr().err.count("damaged checkpoint, not used: ") == 1
    assert_same(folder, tmp_path / "run")


# What `coevolve status` says of a folder.

RUN = {
    "recipe": {},
    "base": {"source": "b", "path": "b", "fingerprint": "f"},
    "data_fingerprint": "d",
}
DAMAGED = [
    b"",
    b"{",
    b"\xff",
    b"[]",
    b"null",
    b"1e999",
    b'{"state": "lost", "stage": ""}',
    b'{"state": ["running"]}',
]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_status_is_said_and_the_lock_tells_the_state(tmp_path, capsys, content, held):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "status.json").write_bytes(content)
    with open(tmp_path / ".lock", "w") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["status", str(tmp_path)]) == (3 if held else 75)
    shown = capsys.readouterr().out
    assert (
        f"state: {'running' if held else 'killed'}" in shown
        and f"note: {tmp_path / 'status.json'}" in shown
    )


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_who_may_not_write_is_not_told_that_a_running_run_was_killed(mode):
    """Nor who may not even look at the lock: that run is to be let alone."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from coevolve.training.status import read_status\n"
        "read_status(Path(sys.argv[1]))  # loads what only its owner may\n"
        "os.geteuid() == 0 and os.setuid(65534)\n"
        "print(read_status(Path(sys.argv[1]))['state'])"
    )
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, ".lock"), "w") as lock:
        Path(folder, "status.json").write_text('{"state": "running", "stage": "x"}')
        Path(folder, "status.json").chmod(0o444)
        os.chmod(folder, 0o755)
        os.fchmod(lock.fileno(), mode)
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout == "running\n", done.stderr


@pytest.mark.parametrize("name", ["run.json", "status.json", ".lock", "checkpoints"])
@pytest.mark.parametrize("kind", ["folder", "loop", "missing", "file"])
def test_a_status_is_one_sentence_whatever_lies_in_the_folder(tmp_path, capsys, name, kind):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "status.json").write_text('{"state": "running", "stage": ""}')
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "folder":
        (tmp_path / name).mkdir()
    elif kind == "loop":
        (tmp_path / name).symlink_to(name)
    elif kind == "file":
        (tmp_path / name).write_text("x")
    assert main(["status", str(tmp_path)]) == 75
    assert "state: killed" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["recipe", "data_fingerprint", "base"])
@pytest.mark.parametrize("wrong", [None, [], "", 1, {"x": 1}])
def test_a_damaged_run_file_is_one_sentence(tmp_path, capsys, field, wrong):
    if (field, wrong) in (("data_fingerprint", ""), ("recipe", {"x": 1})):
        return  # of the right kind
    values = (
        {**RUN, field: wrong}
        if wrong is not None
        else {key: RUN[key] for key in RUN if key != field}
    )
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert main(["truth", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        f"{tmp_path / 'run.json'}: {'origins' if wrong is None and field == 'base' else field}"
        in said
    )
    assert len(said.splitlines()) <= 5
