"""Values of a recipe that nothing can be trained with are refused when it is read."""

import os
from pathlib import Path

import pytest

from coevolve.errors import RecipeError
from coevolve.recipe import check_recipe, load_recipe, recipe_values

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
PPO = "connector_rl.algorithm=ppo"
UNTIL = "{role: connector, kind: sft, until: {steps: 1, at_most: 9000}}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # A value is of its own kind.
        (["seed=true"], "seed: found True; input should be a valid integer"),
        (["seed='3'"], "seed: found '3'; input should be a valid integer"),
        (["rounds.count=2.0"], "rounds.count: found 2.0; input should be a valid integer"),
        (
            ["refresh.temperature=false"],
            "refresh.temperature: found False; input should be a valid number",
        ),
        (
            ["connector_rl.learning_rate='1e-3'"],
            "connector_rl.learning_rate: found '1e-3'; input should be a valid num",
        ),
        (["baselines.oracle=1"], "baselines.oracle: found 1; input should be a valid boolean"),
        (
            ["baselines.oracle=yes"],
            "baselines.oracle: found 'yes'; input should be a valid boolean",
        ),
        (["name=3"], "name: found 3; input should be a valid string"),
        (
            ["data.limit={IDTest: true}"],
            "data.limit.IDTest: found True; input should be a valid integer",
        ),
        # Numbers are finite, and no larger than makes sense.
        (
            ["connector_rl.max_grad_norm=.inf"],
            "connector_rl.max_grad_norm: found inf; input should be a finite number",
        ),
        (
            ["connector_rl.beta=.nan"],
            "connector_rl.beta: found nan; input should be a finite number",
        ),
        (
            ["connector_rl.learning_rate=1e400"],
            "connector_rl.learning_rate: found inf; input should be a finite",
        ),
        (
            ["connector_rl.learning_rate=1e300"],
            "found 1e+300; input should be less than or equal to 1",
        ),
        (
            ["cold_start.connector.weight_decay=1e300"],
            "weight_decay: found 1e+300; input should be less than or equal",
        ),
        (
            ["estimator_rl.golden_nll_weight=1e300"],
            "golden_nll_weight: found 1e+300; input should be less than or eq",
        ),
        (["estimator_rl.rewards.match=1e300"], "estimator_rl.rewards.match: found 1e+300"),
        (
            ["estimator_rl.temperature=1e-300"],
            "estimator_rl.temperature: found 1e-300; input should be greater than",
        ),
        (
            ["refresh.temperature=1e-300"],
            "refresh: temperature is 1e-300; accepted are 0 (greedy) and 0.01 to 100",
        ),
        (["cold_start.estimator.adam_beta2=1"], "adam_beta2: found 1; input should be less than 1"),
        (
            ["model.lora.lora_dropout=1"],
            "model.lora.lora_dropout: found 1; input should be less than 1",
        ),
        (
            ["estimator_sft.learning_rate=1", "estimator_sft.weight_decay=2"],
            "estimator_sft: learning_rate x weight_decay is 2; accepted is less than 1",
        ),
        (["seed=-1"], "seed: found -1; input should be greater than or equal to 0"),
        (["seed=4294967296"], "seed: found 4294967296; input should be less than 4294967296"),
        (
            ["data.world.seed=-1"],
            "data.world.seed: found -1; input should be greater than or equal to 0",
        ),
        (
            [f"model.max_length={10**30}"],
            f"model.max_length: found {10**30}; input should be less than or equal to",
        ),
        ([f"logging.every={'9' * 200}"], "logging.every: found 999"),
        (["model.tiny.hidden_size=1000000"], "model.tiny.hidden_size: found 1000000"),
        (
            ["model.tiny.heads=128"],
            "model.tiny: hidden_size (128) must be an even multiple of heads (128)",
        ),
        # Not enough to work with.
        (
            ["data.validation=1"],
            "data.validation: found 1; input should be greater than or equal to 2",
        ),
        (
            ["data.world.test=1"],
            "data.world.test: found 1; input should be greater than or equal to 2",
        ),
        (
            [PPO, "connector_rl.num_generations=1", "connector_rl.train_batch_size=1"],
            "connector_rl: train_batch_size is 1, and a single completion has nothing to tell its "
            "advantage from",
        ),
        # Too much to begin.
        (
            ["rounds.count=2501"],
            "rounds: count (2,501) makes 10,004 phases and parts of phases; accepted are 10,000",
        ),
        (["rounds.count=1000000000"], "rounds: count (1,000,000,000) makes 4,000,000,000 phases"),
        (
            ["rounds.count=2", f"rounds.phases=[{UNTIL}]"],
            "rounds: count (2) makes 18,000 phases and parts of phases",
        ),
        (
            ["cold_start.connector.steps=2000000"],
            "2,000,000 steps of 64 rows are 128,000,000; accepted are 100,000,000",
        ),
        (
            ["rounds.phases=[{role: connector, kind: rl, steps: 1000000}]"],
            "rounds.phases: connector_rl: 1,000,000 steps of 512 rows are 512,000,000; accepted "
            "are 100,000,000",
        ),
        (
            ["estimator_sft.train_batch_size=999999937"],
            "train_batch_size: found 999999937; input should be less than",
        ),
        # Paths.
        (
            ["traces.teacher=file", 'traces.path="a\\0b"'],
            "traces.path: found 'a\\x00b'; accepted is a path",
        ),
        (["traces.teacher=file", "traces.path=''"], "traces.path: found ''; accepted is a path"),
        (
            ["model.base=''"],
            "model.base: found ''; accepted is a path, or a name that stands for one",
        ),
        # What is shown of a value has an end.
        (
            [f"model.dtype={'x' * 9000}"],
            "model.dtype: found '" + "x" * 116 + "...; input should be",
        ),
        (["a" + ".a" * 200 + "=1"], "200 sections in one another"),
        (
            ["name={a: 1, a: 2}"],
            "the key 'a' is there twice (first in line 1); remove one. Text that is not a YAML",
        ),
    ],
)
def test_a_value_that_cannot_be_trained_with_is_named(overrides, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_what_is_large_and_makes_sense_is_accepted():
    recipe = load_recipe(
        QUICKSTART,
        [
            "seed=4294967295",
            "connector_rl.max_grad_norm=1e9",
            "rounds.gate_tolerance=1000000000",
            "rounds.count=2500",
            "cold_start.connector.learning_rate=1",
            "connector_rl.learning_rate=1e-300",
            "connector_rl.epsilon=1",
        ],
    )
    assert (recipe.seed, recipe.connector_rl.max_grad_norm, recipe.rounds.gate_tolerance) == (
        2**32 - 1,
        1e9,
        1e9,
    )
    assert type(recipe.cold_start.connector.learning_rate) is float
    # PPO can do with one row in a step, if a batch of completions holds more.
    single = ["connector_rl.num_generations=1", "connector_rl.train_batch_size=1"]
    assert load_recipe(QUICKSTART, [PPO, *single, "connector_rl.updates_per_generation=2"])


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    recipe = load_recipe(
        QUICKSTART.parent / "smollm2-135m",
        [
            "data.path=~/data.json",
            "model.base=~/base",
            "model.estimator.base=~/other",
            "model.connector.adapter=~/adapter",
            "traces={teacher: file, path: ~/traces.jsonl, model: ~/teacher}",
            "remid.responses={mine: ~/mine.jsonl, theirs: runs/~/theirs.jsonl}",
        ],
    )
    assert recipe.data.path == "/home/ada/data.json"
    assert (recipe.model.base, recipe.model.connector.base) == ("/home/ada/base", "/home/ada/base")
    assert (recipe.model.estimator.base, recipe.model.connector.adapter) == (
        "/home/ada/other",
        "/home/ada/adapter",
    )
    assert (recipe.traces.path, recipe.traces.model) == (
        "/home/ada/traces.jsonl",
        "/home/ada/teacher",
    )
    assert recipe.remid.responses == {
        "mine": "/home/ada/mine.jsonl",
        "theirs": "runs/~/theirs.jsonl",
    }
    assert check_recipe(recipe_values(recipe), "run.json") == recipe


def test_files_that_extend_one_another_in_a_circle_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: sub/b.yaml")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text("extends: ../a.yaml")
    (tmp_path / "own.yaml").write_text("extends: own.yaml")
    a, b = tmp_path / "a.yaml", tmp_path / "sub" / "b.yaml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(a)
    assert str(caught.value).startswith(
        f"{a} extends {b} extends {b.parent}/../a.yaml: extends leads in a circle"
    )
    with pytest.raises(
        RecipeError, match=r"own\.yaml extends .*own\.yaml: extends leads in a circle"
    ):
        load_recipe(tmp_path / "own.yaml")


def test_a_recipe_that_is_no_file_or_extends_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "list.yaml").write_text("extends: [a]")
    (tmp_path / "lost.yaml").write_text("extends: none.yaml")
    (tmp_path / "large.yaml").write_text("#" * 2_000_000)
    for path, message in {
        tmp_path / "pipe.yaml": "pipe.yaml: is a pipe; accepted is a plain file",
        tmp_path / "list.yaml": r"list.yaml: extends: found \['a'\]; accepted is the path of ",
        tmp_path / "lost.yaml": "none.yaml: no such file",
        tmp_path / "large.yaml": "has 2,000,000 bytes",
        tmp_path / ("n" * 300): "File name too long",
        f"{tmp_path}/nu\0l": "null byte",
        "": "No such file",
    }.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(path)
