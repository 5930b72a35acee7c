"""What a machine takes away in the midst of a run: its directory, room on the disk, memory. One
sentence each, and the run goes on from what was saved.
"""

import argparse
import json
import resource
import shutil

import pytest
import torch

from coevolve.cli.ending import refusal
from coevolve.errors import ArtifactError, CoevolveError, OutOfMemoryError
from coevolve.training.run import train
from coevolve.training.run_folder import RunFolder

SMALL = {
    "data": {"world": {"train": 24, "test": 3}, "validation": 6},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture
def at_stage(monkeypatch):
    """A function that has something done when a run begins a stage, once."""
    acts, say = {}, RunFolder.say_status

    def noted(folder, state, *, stage, **more):
        said = say(folder, state, stage=stage, **more)
        if state == "running":
            acts.pop(stage, lambda: None)()
        return said

    monkeypatch.setattr(RunFolder, "say_status", noted)
    return acts.__setitem__


@pytest.fixture(scope="module")
def whole(recipe_of, tmp_path_factory):
    """(recipe, results) of a run that nothing happened to."""
    recipe = recipe_of(**SMALL)
    return recipe, train(recipe, tmp_path_factory.mktemp("whole") / "run")


def same(results, others):
    return {**results, "seconds": 0} == {**others, "seconds": 0}


@pytest.mark.parametrize(
    "stage", ["round-1-refresh", *(slow(x) for x in ("cold-start-connector", "export"))]
)
def test_a_directory_that_is_deleted_is_said_and_not_made_anew(whole, at_stage, tmp_path, stage):
    recipe, folder = whole[0], tmp_path / "run"
    at_stage(stage, lambda: shutil.rmtree(folder))
    with pytest.raises(ArtifactError, match=f"{folder}: was deleted or moved while the run wrote"):
        train(recipe, folder)
    assert not (folder / "status.json").exists() and not (folder / "checkpoints").exists()


def test_a_directory_that_another_run_has_taken_is_let_alone(whole, at_stage, tmp_path):
    """And the moved one, put back, is gone on with."""
    (recipe, results), folder = whole, tmp_path / "run"

    def replace():
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
        (folder / "metrics.jsonl").touch()

    at_stage("round-1-refresh", replace)
    with pytest.raises(ArtifactError, match="was deleted or moved while the run wrote"):
        train(recipe, folder)
    assert {path.name for path in folder.iterdir()} == {".lock", "metrics.jsonl"}
    shutil.rmtree(folder)
    (tmp_path / "moved").rename(folder)
    assert same(train(recipe, folder), results)


def test_a_disk_that_fills_is_named_whatever_was_written(whole, at_stage, tmp_path, capsys):
    """No file may grow beyond a few bytes, from the beginning of a stage on."""
    (recipe, results), folder = whole, tmp_path / "run"
    before, options = resource.getrlimit(resource.RLIMIT_FSIZE), argparse.Namespace(command="train")
    options.output_dir = folder

    def full(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    said = []
    for stage in ("", "cold-start-connector", "round-1-connector_rl", "full-IDTest", "export"):
        at_stage(stage, lambda: full(600))
        if not stage:
            full(600)
        try:
            train(recipe, folder)
        except (CoevolveError, OSError) as error:
            message = str(error) if isinstance(error, CoevolveError) else refusal(error, options)
        finally:
            full(before[0])
        said.append(message)
        assert str(folder) in message and "\n" not in message, message
        assert "File too large" in message or "os error 27" in message, message
    assert said[0].startswith(f"{folder / 'base'}: File too large. Check the place")
    assert said[0].endswith("What was saved is whole: the same command goes on from there.")
    assert same(train(recipe, folder), results)


@pytest.mark.parametrize(
    "stage",
    ["round-1-refresh", *(slow(x) for x in ("cold-start-connector", "round-1-connector_rl"))],
)
def test_memory_that_ends_is_said_with_what_to_lower(
    whole, recipe_of, at_stage, tmp_path, monkeypatch, stage
):
    """The allocator's own refusal in a forward pass: training, sampling, writing."""
    recipe, results = whole
    forward, greedy = torch.nn.Embedding.forward, []

    def hungry(self, ids):
        if greedy:
            torch.empty(1 << 50)
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", hungry)
    at_stage(stage, lambda: greedy.append(True))
    lower = r"out of memory: .*can't allocate memory.* Lower per_device_train_batch_size of the"
    with pytest.raises(OutOfMemoryError, match=f"^{stage}: {lower}"):
        train(recipe, tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and "out of memory" in status["error"]
    greedy.clear()
    smaller = {"per_device_train_batch_size": 4}
    lowered = recipe_of(
        **SMALL,
        cold_start={"connector": {**recipe.cold_start.connector.model_dump(), **smaller}},
        connector_rl=smaller,
        estimator_rl=smaller,
    )
    again = train(lowered, tmp_path / "run")
    for split, value in results["perplexity"]["full"].items():
        assert again["perplexity"]["full"][split] == pytest.approx(value, rel=1e-3)
