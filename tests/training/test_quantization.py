"""QLoRA for real: bitsandbytes' CPU kernels hold the base in 4 or 8 bits, from the recipe to the
loaded estimator.
"""

import importlib.util
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from coevolve import ProbabilityEstimator
from coevolve.data.corpus import read_corpus
from coevolve.errors import ArtifactError, RecipeError
from coevolve.recipe import check_recipe, recipe_values
from coevolve.scoring import models
from coevolve.scoring.origins import PARENT, WEIGHTS
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training.distributed.launch import Launch, check_launch
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.run import train
from coevolve.training.setup import build_roles, prepare_origins

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs: pip install 'coevolve[quantization]'",
)
SFT = {"steps": 3, "learning_rate": 2e-3, "train_batch_size": 8, "gradient_checkpointing": True}
KINDS = [("4bit", "float32"), ("4bit", "bfloat16"), ("8bit", "float32")]


@pytest.fixture(scope="module")
def recipe_for(recipe_of):
    """A function from quantization and dtype to the recipe of a short run."""

    def recipe(quantization, dtype="float32", **own):
        shape = {"hidden_size": 64, "layers": 2, "heads": 2}
        return recipe_of(
            "lora",
            data={"world": {"train": 24, "test": 4}, "validation": 6},
            model={"quantization": quantization, "dtype": dtype, "tiny": shape, **own},
            cold_start=dict.fromkeys(ROLES, SFT),
            connector_rl={"beta": 0.1},
            baselines={"without_corl": False, "without_reasoning": False},
            evaluation={"marginal_samples": 0},
        )

    return recipe


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def finished(request, recipe_for, tmp_path_factory):
    """(quantization, dtype, recipe, folder, results) of a run without interruption."""
    quantization, dtype = request.param
    recipe = recipe_for(quantization, dtype)
    folder = tmp_path_factory.mktemp(quantization) / "run"
    return quantization, dtype, recipe, folder, train(recipe, folder)


def adapters(estimator):
    return {
        f"{role}/{name}": x
        for role in ROLES
        for name, x in load_file(estimator / role / WEIGHTS).items()
    }


@needs_bitsandbytes
@pytest.mark.slow
def test_the_export_scores_as_the_run_did(finished):
    quantization, dtype, _, folder, results = finished
    for role in ROLES:
        record = json.loads((folder / "estimator" / role / PARENT).read_text())
        assert record["base"]["quantization"] == quantization
    estimator = ProbabilityEstimator.from_pretrained(
        folder / "estimator", device="cpu", dtype=dtype
    )
    examples = read_corpus(folder / "world" / "dialogues.json").require("IDTest")
    golden, reasoning = (
        [example.golden_response for example in examples],
        estimator.reason(examples),
    )
    scores = estimator.log_prob(examples, golden, reasoning)
    assert np.exp(-scores.sum.sum() / scores.tokens.sum()) == pytest.approx(
        results["perplexity"]["full"]["IDTest"], rel=1e-6
    )
    # Whatever else is in the batch. In bfloat16 even whole models differ by the rounding of sums
    # there.
    alone = estimator.log_prob(examples[-1:], golden[-1:], reasoning[-1:])
    assert alone.sum[0] == pytest.approx(scores.sum[-1], abs=1e-4 if dtype == "float32" else 0.2)
    # Held as it is on the disk it is another model, and a near one.
    whole = ProbabilityEstimator.from_pretrained(
        folder / "estimator", device="cpu", dtype=dtype, quantization="none"
    )
    difference = np.abs(whole.log_prob(examples, golden, reasoning).mean - scores.mean).max()
    assert 0 < difference < 0.2


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("finished", KINDS[:1], indirect=True, ids="-".join)
def test_a_quantized_run_that_is_interrupted_ends_with_the_same_bits(
    finished, tmp_path, stop_after
):
    _, _, recipe, folder, _ = finished
    sittings = 0
    while True:
        try:
            train(recipe, tmp_path / "run", stop=stop_after(60 + 40 * sittings))
            break
        except Interrupted:
            sittings += 1
    assert sittings >= 2
    expected, found = adapters(folder / "estimator"), adapters(tmp_path / "run" / "estimator")
    assert set(expected) == set(found) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
    learned = [tensor for name, tensor in expected.items() if "lora_B" in name]
    assert all(tensor.dtype == torch.float32 and tensor.abs().max() > 0 for tensor in learned)


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("finished", KINDS[:1], indirect=True, ids="-".join)
def test_two_processes_do_what_one_does(finished, launcher, tmp_path):
    _, _, recipe, _, results = finished
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values(recipe)))
    train = ["-m", "coevolve", "train", tmp_path / "recipe.yaml", "--output-dir", tmp_path / "run"]
    launcher.run("ddp", train, tmp_path / "log")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["perplexity"]["full"]
    # Dropout differs between one process and two, and the adapters have moved little in these few
    # steps.
    assert found == pytest.approx(results["perplexity"]["full"], rel=1e-2)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "most"), [("4bit", 0.15), ("8bit", 0.27)])
def test_the_base_is_held_in_so_many_bits(recipe_for, tmp_path, quantization, most):
    recipe = recipe_for(quantization, estimator={"tuning": "full"})
    roles = build_roles(recipe, prepare_origins(recipe, tmp_path), torch.device("cpu"))
    held, whole = linear_bytes(roles.module(CONNECTOR)), linear_bytes(roles.module(ESTIMATOR))
    assert held < most * whole
    assert all(
        parameter.dtype == torch.float32 for parameter in roles.module(ESTIMATOR).parameters()
    )


def linear_bytes(model):
    """Of the weights of the layers' linear modules, adapters left out, as they lie in memory."""
    return sum(
        parameter.untyped_storage().nbytes()
        for name, parameter in model.named_parameters()
        if "_proj" in name and "lora_" not in name
    )


def test_without_the_package_the_recipe_is_refused_before_anything_is_loaded(
    recipe_for, tmp_path, monkeypatch
):
    found = importlib.util.find_spec
    hide = lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    with pytest.raises(
        RecipeError, match=r"bitsandbytes is not installed: pip install 'coevolve\[quantization\]'"
    ):
        check_launch(recipe_for("4bit"), Launch(processes=1, kind="single", gpus=0))
    with pytest.raises(
        ArtifactError, match=r"quantization is '8bit'.*pip install 'coevolve\[quantization\]'"
    ):
        models.load_model(str(tmp_path), quantization="8bit")


@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp"])
def test_a_launch_that_would_divide_packed_weights_is_refused(recipe_for, kind):
    launch = Launch(processes=2, kind=kind, gpus=2, local_processes=2)
    recipe = recipe_for("4bit", device="cuda")
    with pytest.raises(
        RecipeError,
        match=rf"model.quantization is '4bit', and {kind} would divide .*launch/ddp.yaml",
    ):
        check_launch(recipe, launch)


def test_vllm_takes_no_quantized_base_but_4bit_on_a_gpu(recipe_for):
    values = recipe_values(recipe_for("4bit"))
    values["connector_rl"]["use_vllm"] = True
    with pytest.raises(
        RecipeError, match=r"'4bit', and connector_rl\.use_vllm is true; vLLM quantizes .* on a GPU"
    ):
        check_launch(check_recipe(values, "x"), Launch(processes=1, kind="single", gpus=0))
    values["model"] |= {"quantization": "8bit", "device": "auto"}
    with pytest.raises(RecipeError, match=r"'8bit', and connector_rl\.use_vllm .* to 4bit"):
        check_launch(check_recipe(values, "x"), Launch(processes=1, kind="single", gpus=1))


def test_whole_models_are_not_loaded_quantized(recipe_of, tmp_path):
    recipe = recipe_of(
        "full", data={"world": {"train": 24, "test": 4}, "validation": 6}, rounds={"count": 0}
    )
    train(recipe, tmp_path / "run")
    with pytest.raises(
        ArtifactError, match="quantization is '8bit', but both roles are whole models"
    ):
        ProbabilityEstimator.from_pretrained(
            tmp_path / "run" / "estimator", device="cpu", quantization="8bit"
        )
