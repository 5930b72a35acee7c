"""The real entry point, from data to table, for a few steps of everything."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, BertConfig, BertLMHeadModel

from coevolve import ProbabilityEstimator
from coevolve.data.corpus import read_corpus
from coevolve.errors import ArtifactError, DataError, RecipeError, TooLongError
from coevolve.information.perplexity import perplexity
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.scores import Scores
from coevolve.training import forms
from coevolve.training.baselines import redrawn
from coevolve.training.export import export_checkpoint
from coevolve.training.run import train
from coevolve.training.tracing import Tracer
from coevolve.worlds.tiny import write_tiny_base

SPLITS = ("IDTest", "OOD1Test", "OOD2Test", "OOD3Test", "OOD4Test")


@pytest.fixture(scope="module", params=["full", "lora"])
def finished(request, recipe_of, tmp_path_factory):
    """(recipe, folder, results) of a finished run."""
    recipe = recipe_of(request.param, checkpoints={"keep": 99}, baselines={"ensemble": 2})
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return recipe, folder, train(recipe, folder)


def weights_of(folder):
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        if path.parent.name in ("connector", "estimator")
        for name, tensor in load_file(path).items()
    }


def test_every_figure_is_there(finished):
    _, folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    for name in (
        "full",
        "without_corl",
        "without_reasoning",
        "without_reasoning_2",
        "without_reasoning_ensemble_2",
        "floor",
        "full_none",
        "full_mixture",
        "full_mixture_2",
        "full_marginal_2",
        "without_corl_marginal_2",
    ):
        assert set(results["perplexity"][name]) == set(SPLITS)
        assert all(
            math.isfinite(value) and value > 1 for value in results["perplexity"][name].values()
        )
    for name in ("full/without_corl", "full/without_reasoning"):
        for split in SPLITS:
            ratio = results["ratio"][name][split]
            expected = (
                results["perplexity"]["full"][split]
                / results["perplexity"][name.partition("/")[2]][split]
            )
            assert ratio["ratio"] == pytest.approx(expected, rel=1e-9)
            assert ratio["standard_error"] > 0
    for form in ("", "_none", "_mixture", "_marginal_2", "_mixture_2"):
        for baseline in ("", "_ensemble_2"):
            ratios = results["ratio"][f"full{form}/without_reasoning{baseline}"]
            assert set(ratios) == set(SPLITS)
    # The members differ, and by Jensen their mean is better than their average.
    one, two, both = (
        np.log([results["perplexity"][f"without_reasoning{name}"][split] for split in SPLITS])
        for name in ("", "_2", "_ensemble_2")
    )
    assert (one != two).all() and (both < (one + two) / 2).all()
    assert [gate["phase"] for gate in results["gates"]] == [
        "connector_rl",
        "estimator_sft",
        "estimator_rl",
    ]
    assert all(gate["kept"] in (True, False) for gate in results["gates"])
    assert {row["row"] for row in results["remid"]["subsets"]} >= {"IDTest"}
    assert len(results["exact_remid"]) == 5 * len(results["remid"]["models"])


def test_the_export_scores_as_the_run_did(finished):
    _, folder, results = finished
    estimator = ProbabilityEstimator.from_pretrained(folder / "estimator", device="cpu")
    examples = read_corpus(folder / "world" / "dialogues.json").require("IDTest")
    responses = [example.golden_response for example in examples]
    scores = estimator.log_prob(examples, responses, estimator.reason(examples))
    assert perplexity(scores) == pytest.approx(results["perplexity"]["full"]["IDTest"], rel=1e-6)
    held_out = estimator.manifest["training"]["held_out_perplexity"]
    assert held_out["IDTest"] == results["perplexity"]["full"]["IDTest"]


def test_the_exported_form_is_the_best_on_held_out_rows(finished):
    recipe, folder, results = finished
    estimator = ProbabilityEstimator.from_pretrained(folder / "estimator", device="cpu")
    held_out = results["held_out"]
    assert estimator.manifest["held_out"] == held_out
    assert estimator.manifest["form"] == results["form"] == estimator.form.values()
    assert set(held_out) == {"none", "greedy", "marginal_2", "mixture", "mixture_2"}
    assert {found["n"] for found in held_out.values()} == {recipe.data.validation}
    best = held_out[estimator.form.name]["perplexity"]
    assert best == min(found["perplexity"] for found in held_out.values())
    assert best <= held_out["none"]["perplexity"]
    # Each column of the table is what the exported estimator gives by that form.
    examples = read_corpus(folder / "world" / "dialogues.json").require("IDTest")
    responses = [example.golden_response for example in examples]
    for form in (
        Reasoning("none"),
        Reasoning("marginal", 2, recipe.seed),
        Reasoning("mixture", weight=held_out["mixture"]["weight"]),
        Reasoning("mixture", 2, recipe.seed, held_out["mixture_2"]["weight"]),
    ):
        found = perplexity(estimator.log_prob(examples, responses, form))
        expected = results["perplexity"][f"full_{form.name}"]["IDTest"]
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, "mixture"),
        ({"form": "greedy"}, "greedy"),
        ({"form": "none"}, "none"),
        ({"form": "marginal"}, "marginal_4"),
        ({"form": "marginal", "samples": 3}, "marginal_3"),
        ({"form": "mixture", "samples": 3}, "mixture_3"),
        ({"samples": 3}, "marginal_3"),
    ],
)
def test_the_recipe_may_name_the_form(recipe_of, build, tmp_path, monkeypatch, asked, chosen):
    context, state = build(recipe_of(export=asked, evaluation={"marginal_samples": 0}), tmp_path)
    tokens = np.full(len(context.data.validation), 6)
    # Greedy is the better one on every other pair of rows, so that a mixture is worth it.
    good, bad = np.full(tokens.shape, -6.0), np.full(tokens.shape, -12.0)
    turns = np.arange(tokens.size) // 2 % 2 == 0
    given = {
        "none": np.where(turns, good, bad),
        "greedy": np.where(turns, bad, good),
        "marginal": good + 1,
    }
    monkeypatch.setattr(
        forms, "score_form", lambda c, x, form, title: Scores(given[form.kind], tokens)
    )
    forms.choose_form(context, state)
    assert state.form.form.form().name == chosen
    weight = state.form.held_out["mixture"].weight
    assert weight == pytest.approx(0.5, abs=0.2)
    assert ("marginal_3" in state.form.held_out) == (asked.get("samples") == 3)


def test_another_seed_draws_a_new_adapter_and_leaves_what_was_trained():
    weights = {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.zeros(3, 2)}
    weights |= {"y.lora_A.weight": torch.ones(2, 4), "y.lora_B.weight": torch.ones(3, 2)}
    drawn = redrawn(weights, 1)
    assert drawn["x.lora_A.weight"].abs().max() <= 0.5 and drawn["x.lora_A.weight"].std() > 0.1
    assert drawn["x.lora_A.weight"].unique().numel() == 8
    same = [name for name in weights if torch.equal(drawn[name], weights[name])]
    assert same == ["x.lora_B.weight", "y.lora_A.weight", "y.lora_B.weight"]
    assert not torch.equal(redrawn(weights, 2)["x.lora_A.weight"], drawn["x.lora_A.weight"])
    # As PEFT's own are: Kaiming's uniform distribution with a = sqrt 5.
    wide = {"lora_A": torch.zeros(64, 256), "lora_B": torch.zeros(8, 64)}
    own = torch.nn.init.kaiming_uniform_(torch.empty(64, 256), a=5**0.5)
    assert redrawn(wide, 0)["lora_A"].std() == pytest.approx(own.std().item(), rel=0.03)


@pytest.mark.parametrize("asked", [{"ensemble": 1}, {"ensemble": 2, "without_reasoning": False}])
def test_an_ensemble_is_of_two_or_more_baselines(recipe_of, asked):
    with pytest.raises(RecipeError, match="baselines: ensemble is"):
        recipe_of(baselines=asked)


def test_any_checkpoint_can_be_exported(finished, tmp_path):
    _, folder, _ = finished
    [last] = (folder / "checkpoints").glob("*-trained")
    [cold] = (folder / "checkpoints").glob("*-cold-start-gate")
    export_checkpoint(last, tmp_path / "last")
    export_checkpoint(cold, tmp_path / "first")
    last, final = weights_of(tmp_path / "last"), weights_of(folder / "estimator")
    assert set(last) == set(final) and all(torch.equal(last[name], final[name]) for name in final)
    first = weights_of(tmp_path / "first")
    assert any(not torch.equal(first[name], final[name]) for name in final)
    ProbabilityEstimator.from_pretrained(tmp_path / "first", device="cpu")


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    _, folder, _ = finished
    [cold] = (folder / "checkpoints").glob("*-cold-start-gate")
    shutil.copytree(cold, tmp_path / "copy")
    damaged = tmp_path / "copy" / "connector.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(
        ArtifactError, match=r"connector\.safetensors: \d+ bytes, \d+ by the manifest"
    ):
        export_checkpoint(damaged.parent, tmp_path / "no")


def test_the_record_can_be_redrawn(finished):
    _, folder, _ = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert any("connector/rewards/likelihood/mean" in line for line in lines)
    assert any("estimator/golden_nll" in line for line in lines)
    assert any("eval/perplexity/validation" in line for line in lines)


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    recipe, folder, results = finished
    again = train(recipe, tmp_path / "again")
    first, second = weights_of(folder / "estimator"), weights_of(tmp_path / "again" / "estimator")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again["perplexity"] == results["perplexity"] and again["remid"] == results["remid"]


def test_bad_input_stops_before_anything_is_trained(recipe_of, tmp_path):
    with pytest.raises(TooLongError, match=r"sample_ID 'IDTrain-000000': needs \d+ tokens"):
        train(recipe_of(model={"max_length": 30}), tmp_path / "long")
    with pytest.raises(DataError, match="IDTrain: none of its 40 examples fits"):
        train(recipe_of(model={"max_length": 30}, data={"over_long": "drop"}), tmp_path / "dropped")
    responses = tmp_path / "responses.jsonl"
    responses.write_text('{"sample_ID": "IDTest-000000", "response": "x"}\n')
    with pytest.raises(DataError, match=r"responses\.jsonl"):
        train(recipe_of(remid={"responses": {"model": str(responses)}}), tmp_path / "responses")
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_base_that_cannot_be_scored_is_refused_before_a_teacher_is_asked(
    recipe_of, tmp_path, monkeypatch
):
    """An encoder that calls itself a causal language model: what follows a token changes its
    prediction.
    """
    base = write_tiny_base(tmp_path / "base", seed=0)
    size = AutoConfig.from_pretrained(base).vocab_size
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    BertLMHeadModel(BertConfig(vocab_size=size, initializer_range=0.2, **shape)).save_pretrained(
        base
    )
    monkeypatch.setattr(
        Tracer, "collect", lambda *args, **kwargs: pytest.fail("a teacher was asked")
    )
    with pytest.raises(ArtifactError, match="is no causal language model as it is configured"):
        train(recipe_of(model={"base": str(base)}), tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoints"))
