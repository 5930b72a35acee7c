"""What a role has of its own goes over what both share, when the recipe is read and never later."""

from pathlib import Path

import pytest

from coevolve.errors import RecipeError
from coevolve.recipe import check_recipe, load_recipe, recipe_values

ROOT = Path(__file__).parents[2]
LORA = ["model.tuning=lora", "model.lora.r=8", "model.lora.lora_dropout=0.2"]


def model(*overrides):
    return load_recipe(ROOT / "recipes" / "quickstart", [*LORA, *overrides]).model


def test_a_role_without_settings_has_the_shared_ones():
    shared = model()
    for own in (shared.connector, shared.estimator):
        assert (own.base, own.tuning, own.lora, own.adapter) == ("tiny", "lora", shared.lora, None)


def test_lora_goes_field_by_field_over_the_shared_one():
    found = model("model.connector.lora.r=4", "model.connector.lora.target_modules=[q_proj]")
    assert (found.connector.lora.r, found.connector.lora.target_modules) == (4, ["q_proj"])
    assert found.connector.lora.lora_dropout == 0.2
    assert found.estimator.lora == found.lora


def test_whole_models_and_adapters_to_go_on_from_have_no_lora_settings():
    found = model(
        "model.estimator.tuning=full", "model.connector.adapter=runs/a/estimator/connector"
    )
    assert found.estimator.lora is None and found.estimator.tuning == "full"
    assert found.connector.lora is None and found.connector.adapter == "runs/a/estimator/connector"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.connector.lora.r=4"],
        ["model.estimator.tuning=full"],
        ["model.connector.adapter=a", "model.quantization=4bit"],
        ["model.estimator.base=other/model", "model.estimator.lora.r=2"],
    ],
)
def test_a_recipe_survives_the_run_file(overrides):
    recipe = load_recipe(ROOT / "recipes" / "quickstart", [*LORA, *overrides])
    assert check_recipe(recipe_values(recipe), "run.json") == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.connector.rank=4"],
            "model.connector.rank: unknown key; accepted are base, tuning, lora, adapter",
        ),
        (
            ["model.connector.lora.rank=4"],
            "model.connector.lora.rank: unknown key; accepted are r, lora_alpha",
        ),
        (
            ["model.connector.lora.r=0"],
            "model.connector.lora.r: found 0; input should be greater than 0",
        ),
        (["model.connector=x"], "model.connector: found 'x'; input should be a valid dictionary"),
        (
            ["model.estimator.tuning=full", "model.estimator.lora.r=4"],
            "model.estimator: lora goes with tuning: lora; found tuning: full",
        ),
        (
            ["model.estimator.tuning=full", "model.estimator.adapter=x"],
            "model.estimator: adapter goes with tuning: lora; found tuning: full",
        ),
        (
            ["model.connector.adapter=x", "model.connector.lora.r=4"],
            "adapter brings its own LoRA settings",
        ),
        (
            ["model.quantization=2bit"],
            "model.quantization: found '2bit'; input should be '4bit' or '8bit'",
        ),
        (["model.tuning=full", "model.quantization=4bit"], "no role has an adapter"),
        (
            ["model.sharded=true", "model.estimator.tuning=full"],
            "sharded divides a frozen base, and estimator.tuning is full. Set tuning: lora",
        ),
        (
            ["model.sharded=true", "model.quantization=4bit"],
            "sharded divides plain weights, and quantization is '4bit'. Leave one of them out",
        ),
        (["model.base=null"], "model.base: found None"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(overrides, message):
    with pytest.raises(RecipeError) as caught:
        model(*overrides)
    assert message in str(caught.value)
