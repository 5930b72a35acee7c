"""A checkpoint is whole or it is not there; what the disk does to it afterwards is found out."""

import copy
import errno
import hashlib
import json
import os
import random
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from coevolve.cli import main
from coevolve.errors import ArtifactError
from coevolve.training.checkpoints import (
    CHECKPOINTS,
    CheckpointWriter,
    newest_checkpoint,
    read_checkpoint,
)

ROLES = ("connector", "estimator")


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(5, 3, generator=generator),
        "b": torch.randn(2, generator=generator).bfloat16(),
    }


def pair(seed):
    return dict(zip(ROLES, (tensors(seed), tensors(seed + 100)), strict=True))


def state(number):
    """A run's state in the middle of a phase, when two of three held-out examples and one test
    split were scored.
    """
    evaluated = {"scores": {"sum": [-2.5, -0.1], "tokens": [3, 1]}, "reasoning": ["warm", None]}
    parent = {
        "base": {"source": "b", "fingerprint": "f", "quantization": None},
        "continued_from": None,
    }
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
            "verdicts": [
                {"round": 1, "phase": "connector_rl", "before": 2.0, "after": None, "kept": None}
            ],
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
    assert found.state.values() == state(3) | {
        "outcome": state(3)["outcome"] | {"exact": [("perfect", "IDTest", 0.1)]}
    }
    expected = tensors(3)
    assert all(torch.equal(found.tensors["connector"][name], expected[name]) for name in expected)
    assert found.tensors["connector"]["b"].dtype == torch.bfloat16


def test_tokens_of_a_phase_under_way_come_back_as_they_were(tmp_path):
    """Whole numbers whole; beside what earlier versions gathered there."""
    tokens = {"tokens": 410, "total_tokens": 0}
    figures = {"metrics": {"reward": [0.25]}, "loss": 1.5, **tokens}
    under_way = state(1) | {"segment": {"step": 1, "figures": figures, "rollouts": 0}}
    written = CheckpointWriter(tmp_path, keep=1).write("x", under_way, groups(1), best=False)
    assert repr(read_checkpoint(written).state.segment.tokens()) == repr(tokens)


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


def test_where_there_are_no_hard_links_every_checkpoint_is_whole(tmp_path, monkeypatch):
    def refused(source, target, **options):
        raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "link", refused)
    writer, same = CheckpointWriter(tmp_path, keep=9), tensors(0)
    held = dict.fromkeys(groups(1), same)
    folders = [writer.write(name, state(1), held, best=False) for name in ("one", "two")]
    files = [folder / f"{group}.safetensors" for folder in folders for group in held]
    assert len({os.stat(file).st_ino for file in files}) == len(files) == 8
    for folder in folders:
        found = read_checkpoint(folder).tensors
        assert all(torch.equal(found[group]["a"], same["a"]) for group in held)


@pytest.mark.parametrize(
    "harm", ["truncated", "bit flipped", "missing", "manifest truncated", "manifest missing"]
)
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
    assert found.folder.name == "00002-stage-2" and found.state.segment.step == 2
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
    assert newest_checkpoint(written, pytest.fail).state.segment.step == 3


# What a hand, and no disk, has changed: sizes and hashes are right.


def rehash(folder):
    """Let the manifest know the files as they are now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    path.write_text(json.dumps(manifest))


def newest(folder):
    return folder / CHECKPOINTS / "00003-stage-3"


def used_instead(folder, name):
    """Whether the checkpoint before is used, and the file at fault is named, once."""
    said = []
    found = newest_checkpoint(folder, said.append)
    assert [text.startswith("damaged checkpoint") for text in said] in ([], [True, False])
    return found.folder.name == "00002-stage-2" and f"00003-stage-3/{name}: " in said[0]


def places(value, path=()):
    """Every field of a JSON value, but the first of a list stands for all, and free fields for
    themselves.
    """
    items = (
        value.items()
        if isinstance(value, dict)
        else [(0, value[0])]
        if isinstance(value, list) and value
        else []
    )
    for key, inner in items:
        yield (*path, key)
        if key not in ("held_out_perplexity", "where", "figures"):
            yield from places(inner, (*path, key))


def changed(value, path, wrong):
    """The value with another one at a place, or without it."""
    value = copy.deepcopy(value)
    *parents, last = path
    parent = value
    for key in parents:
        parent = parent[key]
    if wrong is None:
        del parent[last]
    else:
        parent[last] = wrong
    return value


@pytest.mark.parametrize(
    "place", list(places(state(3))), ids=lambda place: ".".join(map(str, place))
)
def test_a_state_with_a_field_missing_or_of_another_kind_is_not_used(written, place):
    numbers = ("seconds", "before", "after")
    is_number = place[-1] in numbers or place[-2:] in (("sum", 0), ("floors", "IDTest"), (0, 2))
    chosen_by_runs = ("connector_rl", "IDTest", "full", "wandb", "parents", "quantization")
    removed = [None] * (isinstance(place[-1], str) and place[-1] not in chosen_by_runs)
    for wrong in ([[]], {"a": [1]}, "x" if is_number else 0.5, *removed):
        (newest(written) / "state.json").write_text(json.dumps(changed(state(3), place, wrong)))
        rehash(newest(written))
        free = place[-1] == "held_out_perplexity" and isinstance(wrong, dict)
        assert used_instead(written, "state.json") is not free, (place, wrong)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("chosen",), [3]),
        (("gate", "best_chosen"), [0, 99]),
        (("gate", "best_reasoning"), ["kind"]),
        (("gate", "reasoning"), ["warm"]),
        (("gate", "held_out", "scores", "sum"), [-1.0]),
        (("probe", "scores", "tokens"), [3, 0]),
        (("outcome", "subsets"), {}),
        (("record", "step"), -1),
        (("reasoning",), ["\ud800", "", "calm"]),
    ],
)
def test_a_state_whose_fields_do_not_agree_is_not_used(written, place, wrong):
    (newest(written) / "state.json").write_text(json.dumps(changed(state(3), place, wrong)))
    rehash(newest(written))
    assert used_instead(written, "state.json")


@pytest.mark.parametrize("field", ["format", "version", "name", "best", "files"])
@pytest.mark.parametrize("wrong", [None, 99, [], {}, "x", True])
def test_a_manifest_of_another_form_is_not_used(written, field, wrong):
    path = newest(written) / "manifest.json"
    manifest = json.loads(path.read_text())
    if type(wrong) is type(manifest[field]) and field in ("name", "best"):
        return
    path.write_text(json.dumps(changed(manifest, (field,), wrong)))
    assert used_instead(written, "manifest.json")


@pytest.mark.parametrize(
    "name", ["../outside", "{absolute}", "a/../state.json", ".", "", "\0", "n" * 300, "\u0661"]
)
def test_a_manifest_names_files_of_its_own_folder_only(written, name):
    (newest(written).parent / "outside").write_bytes(b"x")
    name = name.format(absolute=newest(written).parent / "outside")
    path = newest(written) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    path.write_text(json.dumps(manifest))
    assert used_instead(written, "manifest.json")


@pytest.mark.parametrize("group", ["connector", "best-estimator"])
@pytest.mark.parametrize(
    "harm", ["none", "one missing", "another shape", "NaN", "no safetensors", "a folder"]
)
def test_tensors_that_a_run_cannot_go_on_with_are_not_used(written, group, harm):
    path = newest(written) / f"{group}.safetensors"
    weights = tensors(0)
    if harm == "one missing":
        del weights["a"]
    elif harm == "another shape":
        weights["a"] = torch.zeros(2)
    elif harm == "NaN":
        weights["a"][1] = torch.nan
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm == "no safetensors":
        path.write_bytes(b"x")
    else:
        save_file({} if harm == "none" else weights, path)
    if harm != "a folder":
        rehash(newest(written))
    said = []
    assert newest_checkpoint(written, said.append).folder.name == "00002-stage-2"
    assert "00003-stage-3" in said[0] and ".safetensors: " in said[0]


ODD = (
    "00004",
    "\u0661-x",
    "\u00b2-x",
    "-5-x",
    "4-x",
    "9" * 200,
    "00004-",
    "00004-x\n",
    "00004-file",
    "00004-loop",
)


def test_what_has_no_checkpoints_name_or_is_no_folder_is_none(written):
    for name in ODD:
        if name.endswith("file"):
            (written / CHECKPOINTS / name).write_text("x")
        elif name.endswith("loop"):
            (written / CHECKPOINTS / name).symlink_to(name)
        else:
            (written / CHECKPOINTS / name).mkdir()
    assert newest_checkpoint(written, pytest.fail).folder == newest(written)
    CheckpointWriter(written, keep=9).write("x", state(4), groups(4), best=False)
    assert newest_checkpoint(written, pytest.fail).folder.name == "00004-x"


def test_a_place_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / CHECKPOINTS).write_text("")
    with pytest.raises(ArtifactError, match=r"checkpoints: cannot be read"):
        newest_checkpoint(tmp_path, pytest.fail)


def test_whatever_happens_to_a_checkpoint_it_is_used_whole_or_not_at_all(written):
    """Bytes and JSON values at random, with the right hashes."""
    rng, used = random.Random(0), 0
    whole = {path: path.read_bytes() for path in newest(written).iterdir()}
    junk = [None, True, -1, 10**30, 1e308, "", "x" * 999, "../x", [], {}, [[]], {"": None}]
    for _ in range(150):
        for path, content in whole.items():
            path.unlink()
            path.write_bytes(content)
        path = rng.choice([path for path in whole if path.suffix == ".json"])
        content = bytearray(whole[path])
        if rng.random() < 0.3:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            value = json.loads(content)
            content = json.dumps(
                changed(value, rng.choice(list(places(value))), rng.choice(junk))
            ).encode()
        path.write_bytes(content)
        if path.name != "manifest.json":
            rehash(newest(written))
        said = []
        found = newest_checkpoint(written, said.append)
        assert (found.folder == newest(written)) is not bool(said)
        used += not said
    assert 0 < used < 50  # some fields may hold anything


def test_an_export_of_a_damaged_one_says_so(written, tmp_path, capsys):
    (newest(written) / "manifest.json").write_text("[]")
    assert main(["export", str(newest(written)), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
