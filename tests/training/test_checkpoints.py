"""A checkpoint is whole or it is not there; what the disk does to it afterwards is found out."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from coevolve.errors import ArtifactError
from coevolve.training.checkpoints import CHECKPOINTS, CheckpointWriter, newest_checkpoint, read_checkpoint

ROLES = ("connector", "estimator")


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(2, generator=generator).bfloat16()}


def pair(seed):
    return dict(zip(ROLES, (tensors(seed), tensors(seed + 100)), strict=True))


def state(number):
    """A run's state in the middle of a phase, when two of three held-out examples and one test split were scored."""
    evaluated = {"scores": {"sum": [-2.5, -0.1], "tokens": [3, 1]}, "reasoning": ["warm", None]}
    parent = {"base": {"source": "b", "fingerprint": "f", "quantization": None}, "continued_from": None}
    return {
        "done": ["cold-start-connector"],
        "stage": "round-1-connector_rl",
        "processes": 1,
        "segment": {"step": number, "figures": {}, "rollouts": 0},
        "texts": [],
        "reasoning": ["kind", "", "calm"],
        "chosen": [0, 2],
        "updates": dict.fromkeys(ROLES, 4),
        "progress": {"connector_rl": 4},
        "trained_updates": {},
        "rounds": [4],
        "where": {"coevolve/round": 1, "coevolve/phase": "connector_rl"},
        "gate": {
            "verdicts": [{"round": 1, "phase": "connector_rl", "before": 2.0, "after": None, "kept": None}],
            "held_out": evaluated,
            "best_reasoning": ["kind", "", "calm"],
            "best_chosen": [1],
            "reasoning": ["warm", None],
            "written": 4,
        },
        "outcome": {
            "scores": {"full": {"IDTest": evaluated["scores"]}},
            "subsets": {"IDTest": ["IDTest", "IDTest"]},
            "remid": None,
            "floors": {"IDTest": 1.2},
            "exact": [["perfect", "IDTest", 0.1]],
        },
        "record": {"step": 7, "seconds": 0.1, "trackers": {"wandb": "id"}},
        "parents": dict.fromkeys(ROLES, parent),
        "probe": evaluated,
        "facts": {"updates": dict.fromkeys(ROLES, 4), "held_out_perplexity": {"validation": 2.0}},
    }


def groups(number):
    """All that a checkpoint of such a state holds."""
    return pair(number) | {f"best-{role}": weights for role, weights in pair(number + 10).items()}


@pytest.fixture
def written(tmp_path):
    """A folder with three checkpoints, numbered 1 to 3; the first holds the best pair."""
    writer = CheckpointWriter(tmp_path, keep=2)
    for number in (1, 2, 3):
        writer.write(f"stage-{number}", state(number), groups(number), best=number == 1)
    return tmp_path


def names(folder):
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def test_what_was_written_is_read_to_the_bit(written):
    found = newest_checkpoint(written, pytest.fail)
    assert found.state == state(3) | {"outcome": state(3)["outcome"] | {"exact": [("perfect", "IDTest", 0.1)]}}
    expected = tensors(3)
    assert all(torch.equal(found.tensors["connector"][name], expected[name]) for name in expected)
    assert found.tensors["connector"]["b"].dtype == torch.bfloat16


def test_the_newest_and_the_best_are_kept(written):
    assert names(written) == ["00001-stage-1", "00002-stage-2", "00003-stage-3"]
    writer = CheckpointWriter(written, keep=2)
    writer.write("stage-4", state(4), groups(4), best=False)
    assert names(written) == ["00001-stage-1", "00003-stage-3", "00004-stage-4"]
    writer.write("stage-5", state(5), groups(5), best=True)
    assert names(written) == ["00004-stage-4", "00005-stage-5"]


def test_what_has_not_changed_is_written_once(tmp_path):
    writer, same, other = CheckpointWriter(tmp_path, keep=9), tensors(0), tensors(1)
    best = dict.fromkeys(("estimator", "best-connector", "best-estimator"), same)
    first = writer.write("one", state(1), {"connector": same, **best}, best=False)
    second = writer.write("two", state(2), {"connector": other, **best}, best=False)
    files = [(first, "connector"), *((folder, name) for folder in (first, second) for name in best)]
    assert len({os.stat(folder / f"{name}.safetensors").st_ino for folder, name in files}) == 1
    assert torch.equal(read_checkpoint(second).tensors["connector"]["a"], other["a"])


@pytest.mark.parametrize("harm", ["truncated", "bit flipped", "missing", "manifest truncated", "manifest missing"])
@pytest.mark.parametrize("file", ["connector.safetensors", "state.json"])
def test_damage_is_found_and_the_one_before_is_used(written, harm, file):
    newest = written / CHECKPOINTS / "00003-stage-3"
    path = newest / ("manifest.json" if harm.startswith("manifest") else file)
    content = bytearray(path.read_bytes())
    if harm.endswith("truncated"):
        path.write_bytes(content[: len(content) // 2])
    elif harm == "bit flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    said = []
    found = newest_checkpoint(written, said.append)
    assert found.folder.name == "00002-stage-2" and found.state["segment"]["step"] == 2
    assert str(path) in said[0] and "done after 00002-stage-2" in said[1]


def test_no_sound_checkpoint_at_all_is_an_error(written):
    for folder in (written / CHECKPOINTS).iterdir():
        (folder / "state.json").write_text("{}")
    with pytest.raises(ArtifactError, match="all 3 checkpoints are damaged"):
        newest_checkpoint(written, lambda text: None)


def test_a_half_written_one_does_not_count_and_is_cleared_away(written):
    leftover = written / CHECKPOINTS / ".00004-stage-4.tmp"
    leftover.mkdir()
    (leftover / "connector.safetensors").write_bytes(b"half")
    assert newest_checkpoint(written, pytest.fail).folder.name == "00003-stage-3"
    CheckpointWriter(written, keep=2).write("stage-4", state(4), groups(4), best=False)
    assert not leftover.exists()


def test_a_full_disk_leaves_the_older_ones_alone(written):
    """A process that may write no file over 4 KiB, which fails as on a full disk."""
    code = f"""
import resource, torch
from pathlib import Path
from coevolve.errors import ArtifactError
from coevolve.training.checkpoints import CheckpointWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    writer = CheckpointWriter(Path({str(written)!r}), keep=1)
    writer.write("big", {{}}, {{"pair": {{"a": torch.zeros(9999)}}}}, best=False)
except ArtifactError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "00004-big: the checkpoint could not be written" in done.stdout, done.stderr
    assert names(written) == ["00001-stage-1", "00002-stage-2", "00003-stage-3"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
    assert newest_checkpoint(written, pytest.fail).state["segment"]["step"] == 3
