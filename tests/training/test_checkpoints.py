"""A checkpoint is whole or it is not there; what the disk does to it afterwards is found out."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from coevolve.errors import ArtifactError
from coevolve.training.checkpoints import CHECKPOINTS, CheckpointWriter, newest_checkpoint, read_checkpoint


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(2, generator=generator).bfloat16()}


@pytest.fixture
def written(tmp_path):
    """A folder with three checkpoints, numbered 1 to 3; the first holds the best pair."""
    writer = CheckpointWriter(tmp_path, keep=2)
    for number in (1, 2, 3):
        writer.write(f"stage-{number}", {"n": number, "x": 0.1}, {"pair": tensors(number)}, best=number == 1)
    return tmp_path


def names(folder):
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def test_what_was_written_is_read_to_the_bit(written):
    found = newest_checkpoint(written, pytest.fail)
    assert found.state == {"n": 3, "x": 0.1}
    expected = tensors(3)
    assert all(torch.equal(found.tensors["pair"][name], expected[name]) for name in expected)
    assert found.tensors["pair"]["b"].dtype == torch.bfloat16


def test_the_newest_and_the_best_are_kept(written):
    assert names(written) == ["00001-stage-1", "00002-stage-2", "00003-stage-3"]
    writer = CheckpointWriter(written, keep=2)
    writer.write("stage-4", {}, {"pair": tensors(4)}, best=False)
    assert names(written) == ["00001-stage-1", "00003-stage-3", "00004-stage-4"]
    writer.write("stage-5", {}, {"pair": tensors(5)}, best=True)
    assert names(written) == ["00004-stage-4", "00005-stage-5"]


def test_what_has_not_changed_is_written_once(tmp_path):
    writer, same, other = CheckpointWriter(tmp_path, keep=9), tensors(0), tensors(1)
    first = writer.write("one", {}, {"pair": same, "best": same}, best=False)
    second = writer.write("two", {}, {"pair": other, "best": same}, best=False)
    assert (
        len(
            {
                os.stat(folder / f"{name}.safetensors").st_ino
                for folder, name in ((first, "pair"), (first, "best"), (second, "best"))
            }
        )
        == 1
    )
    assert torch.equal(read_checkpoint(second).tensors["pair"]["a"], other["a"])


@pytest.mark.parametrize("harm", ["truncated", "bit flipped", "missing", "manifest truncated", "manifest missing"])
@pytest.mark.parametrize("file", ["pair.safetensors", "state.json"])
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
    assert found.folder.name == "00002-stage-2" and found.state["n"] == 2
    assert str(path) in said[0] and "done after 00002-stage-2" in said[1]


def test_no_sound_checkpoint_at_all_is_an_error(written):
    for folder in (written / CHECKPOINTS).iterdir():
        (folder / "state.json").write_text("{}")
    with pytest.raises(ArtifactError, match="all 3 checkpoints are damaged"):
        newest_checkpoint(written, lambda text: None)


def test_a_half_written_one_does_not_count_and_is_cleared_away(written):
    leftover = written / CHECKPOINTS / ".00004-stage-4.tmp"
    leftover.mkdir()
    (leftover / "pair.safetensors").write_bytes(b"half")
    assert newest_checkpoint(written, pytest.fail).folder.name == "00003-stage-3"
    CheckpointWriter(written, keep=2).write("stage-4", {}, {"pair": tensors(4)}, best=False)
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
    assert newest_checkpoint(written, pytest.fail).state["n"] == 3
