"""What may change between two starts of a run: whatever the trained pair does not depend on."""

import json
import os
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from coevolve import ProbabilityEstimator
from coevolve.data.corpus import read_corpus
from coevolve.errors import ArtifactError, ChatError, DataError
from coevolve.information.perplexity import perplexity
from coevolve.prompts import prompt_set
from coevolve.scoring.reasoning import Reasoning
from coevolve.training.export import export_checkpoint
from coevolve.training.run import train

SHORT = {
    "rounds": {"count": 0},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
}


@pytest.fixture(scope="module")
def on_files(recipe_of, tmp_path_factory):
    """A finished run on data from a file; the file, and a function that makes a recipe on a file
    like it.
    """
    folder = tmp_path_factory.mktemp("changes")
    base = train(recipe_of(**SHORT), folder / "world") and folder / "world" / "base"
    data = json.loads((folder / "world" / "world" / "dialogues.json").read_text())

    def made(change=lambda data: None, **changes):
        rows = json.loads(json.dumps(data))
        change(rows)
        path = folder / "dialogues.json"
        path.write_text(json.dumps(rows))
        sections = {**SHORT, "prompts": "brief", "traces": {"teacher": "rules"}, **changes}
        sections["data"] = {"path": str(path), "validation": 4, **changes.get("data", {})}
        sections["model"] = {"base": str(base), "max_length": 200, **changes.get("model", {})}
        return recipe_of(**sections)

    return folder, made


def weights(folder):
    return {
        path.name: load_file(path) for path in sorted((folder / "estimator").rglob("*.safetensors"))
    }


def trained_steps(folder):
    """Of the pair: a baseline that is measured again is trained again."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_pair = [line for line in lines if "coevolve/round" in line]
    steps = sum(any(name.endswith("/loss") for name in line) for line in of_pair)
    assert steps
    return steps


def test_a_start_that_failed_before_training_ties_nothing_down(on_files, tmp_path):
    """Neither to its recipe nor to its data, once what another teacher began to write is out of the
    way.
    """
    _, recipe = on_files
    unreachable = {"teacher": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(ChatError, match=r"127\.0\.0\.1:9"):
        train(recipe(traces=unreachable), tmp_path / "run")
    assert (tmp_path / "run" / "run.json").exists()
    with pytest.raises(DataError, match=r"other teacher.* delete this one"):
        train(recipe(seed=7), tmp_path / "run")
    (tmp_path / "run" / "traces.jsonl").unlink()
    other = recipe(lambda data: data["IDTrain"].pop(), seed=7)
    train(other, tmp_path / "run")
    train(other, tmp_path / "fresh")
    first, second = (weights(tmp_path / name) for name in ("run", "fresh"))
    assert first.keys() == second.keys()
    assert all(
        torch.equal(first[file][name], second[file][name]) for file in first for name in first[file]
    )


def test_a_run_of_0_3_goes_on_with_its_prompts_or_not_at_all(on_files, tmp_path):
    _, recipe = on_files
    run = tmp_path / "run"
    train(recipe(prompts="brief-0.3"), run)
    facts = json.loads((run / "run.json").read_text())
    words = facts.pop("prompts")
    facts["recipe"]["prompts"] = "brief"  # as 0.3 called them
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ArtifactError, match=r"prompts: 'brief-0\.3' -> 'brief'\n.*take the change"):
        train(recipe(), run)
    *_, last = sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    export_checkpoint(last, tmp_path / "exported")
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert manifest["prompts"] == prompt_set("brief-0.3").to_dict()
    steps = trained_steps(run)
    train(recipe(prompts="brief-0.3"), run)
    assert trained_steps(run) == steps
    facts = json.loads((run / "run.json").read_text())
    assert (facts["prompts"], facts["recipe"]["prompts"]) == (words, "brief-0.3")

    # Nor with a set that has changed under its name.
    (run / "run.json").write_text(json.dumps({**facts, "prompts": "0" * 64}))
    with pytest.raises(ArtifactError, match=f"prompts.words: '{'0' * 64}' -> '{words}'"):
        train(recipe(prompts="brief-0.3"), run)


def test_after_training_only_what_a_change_touches_is_done_again(on_files):
    folder, made = on_files
    recipe = partial(made, baselines={"without_corl": False, "without_reasoning": True})
    run = folder / "run"
    before = train(recipe(), run)
    steps, exported = trained_steps(run), weights(run)

    def shorten(data):
        data["OOD1Test"][0]["agent_golden_response"] = data["OOD1Test"][1]["agent_golden_response"]

    after = train(recipe(shorten), run)
    assert trained_steps(run) == steps
    assert after["perplexity"]["full"]["OOD1Test"] != before["perplexity"]["full"]["OOD1Test"]
    assert after["perplexity"]["full"]["IDTest"] == before["perplexity"]["full"]["IDTest"]
    # Of the trained pair, although the baseline's weights were the last ones in memory.
    examples = read_corpus(folder / "dialogues.json").require("OOD1Test")
    estimator = ProbabilityEstimator.from_pretrained(run / "estimator", device="cpu")
    golden = [example.golden_response for example in examples]
    for name, form in (("full", Reasoning()), ("full_none", Reasoning("none"))):
        found = perplexity(estimator.log_prob(examples, golden, form))
        assert after["perplexity"][name]["OOD1Test"] == pytest.approx(found, rel=1e-6)

    limited = train(recipe(shorten, data={"limit": {"OOD2Test": 3}}), run)
    assert limited["perplexity"]["full"]["IDTest"] == before["perplexity"]["full"]["IDTest"]

    responses = folder / "responses.jsonl"
    data = json.loads((folder / "dialogues.json").read_text())
    rows = [row for split, rows in data.items() if split != "IDTrain" for row in rows]
    lines = [
        {"sample_ID": row["sample_ID"], "response": row["agent_golden_response"]} for row in rows
    ]
    responses.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = train(recipe(shorten, remid={"responses": {"golden": str(responses)}}), run)
    assert set(judged["remid"]["average"]) == {"golden"} and trained_steps(run) == steps
    now = weights(run)
    assert all(
        torch.equal(exported[file][name], now[file][name])
        for file in exported
        for name in exported[file]
    )


def test_a_baseline_that_is_measured_again_is_trained_again(on_files, tmp_path):
    """As a run from the start would have it, though its weights are not kept."""
    _, recipe = on_files
    all_of_them = {
        "rounds": {"count": 1, "phases": ["refresh", "estimator_sft"]},
        "baselines": {
            "without_corl": True,
            "without_reasoning": True,
            "ensemble": 2,
        },
    }
    train(recipe(**all_of_them), tmp_path / "run")

    def change(data):
        data["OOD1Test"][0]["agent_golden_response"] += (
            " " + data["OOD1Test"][1]["agent_golden_response"]
        )

    changed = recipe(change, **all_of_them)
    again, fresh = (train(changed, tmp_path / name) for name in ("run", "fresh"))
    assert again["perplexity"] == fresh["perplexity"]


def test_what_was_trained_on_may_not_change_and_the_pair_can_be_kept(on_files, tmp_path):
    folder, recipe = on_files
    run = folder / "kept"
    train(recipe(), run)

    def change(data):
        data["IDTrain"].reverse()

    kept = r"The trained pair can be kept: coevolve export \S+ --out DIR"
    with pytest.raises(ArtifactError, match=kept):
        train(recipe(seed=9), run)
    with pytest.raises(ArtifactError, match=kept) as error:
        train(recipe(change), run)
    checkpoint = str(error.value).split("coevolve export ")[1].split(" --out")[0]
    manifest = export_checkpoint(
        run / "checkpoints" / os.path.basename(checkpoint), tmp_path / "kept"
    )
    assert manifest["training"]["recipe"]


def test_a_run_is_not_tied_to_the_folder_it_was_started_from(recipe_of, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(recipe_of(**SHORT), "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    export_checkpoint(checkpoint, tmp_path / "exported")
    train(recipe_of(**SHORT), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    export_checkpoint(tmp_path / "moved" / "checkpoints" / checkpoint.name, tmp_path / "again")
    assert train(recipe_of(**SHORT), tmp_path / "moved")["perplexity"]
