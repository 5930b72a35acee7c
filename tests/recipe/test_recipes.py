"""Every shipped recipe is read by the code that runs it, and a wrong one says what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from coevolve.errors import RecipeError
from coevolve.recipe import Recipe, check_recipe, load_recipe, recipe_values
from coevolve.recipe.rpm import RpmRecipe
from coevolve.recipe.section import Section

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(x for x in (ROOT / "recipes").glob("*/*.yaml") if x.name != "grid.yaml")


def load(path):
    """For `coevolve train`, or for `coevolve rpm`."""
    try:
        return load_recipe(path)
    except RecipeError as error:
        assert "is about a role-playing model" in str(error)
        return load_recipe(path, kind=RpmRecipe)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_recipe_loads_and_survives_the_run_file(path):
    recipe = load(path)
    assert check_recipe(recipe_values(recipe), "run.json") == recipe
    assert (path.parent / "README.md").exists()


def test_there_are_as_many_as_the_readme_says():
    folders = {path.parent.name for path in SHIPPED}
    small = {"quickstart", "quickstart-rpms"}
    assert folders == small | {"smollm2-135m", "qwen3-8b", "qwen3-4b", "llama3-8b"}
    assert load_recipe(ROOT / "recipes" / "quickstart") == load_recipe(
        ROOT / "recipes" / "quickstart" / "config.yaml"
    )


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-4b", "llama3-8b"])
def test_the_published_settings(name):
    recipe = load_recipe(ROOT / "recipes" / name)
    for sft in (recipe.cold_start.connector, recipe.cold_start.estimator):
        assert (sft.epochs, sft.learning_rate, sft.lr_scheduler_type) == (3, 2e-4, "cosine")
        assert (sft.warmup_ratio, sft.max_grad_norm) == (0.03, 0.3)
        assert (sft.train_batch_size, sft.micro_batch(1)) == (16, (4, 4))
    for rl, completion in ((recipe.connector_rl, 2048), (recipe.estimator_rl, 256)):
        assert (rl.learning_rate, rl.num_generations, rl.max_completion_length) == (
            1e-5,
            8,
            completion,
        )
        assert rl.micro_batch(1) == (4, 8)
        assert rl.steps * rl.train_batch_size / rl.num_generations == 1000
    lora = recipe.model.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (
        16,
        32,
        0.05,
        "all-linear",
    )
    assert recipe.connector_rl.rewards.target_words == 250 and recipe.model.dtype == "bfloat16"


QUICKSTART = ROOT / "recipes" / "quickstart"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["colour=red"], "colour: unknown key; accepted are name, seed, prompts"),
        (["model.colour=red"], "model.colour: unknown key; accepted are base, tiny, tuning"),
        (
            ["connector_rl.rewards.likelyhood=1"],
            "connector_rl.rewards.likelyhood: unknown key; accepted are likelihood",
        ),
        (
            ["connector_rl.rewards.length=-0.1"],
            "connector_rl.rewards.length: found -0.1; input should be greater than",
        ),
        (
            ["estimator_rl.rewards.format=.nan"],
            "estimator_rl.rewards.format: found nan; input should be",
        ),
        (
            ["connector_rl.rewards={likelihood: 0, format: 0, length: 0}"],
            "connector_rl.rewards: all weights are 0; reinforcement learning needs a reward",
        ),
        (["connector_rl.rewards.custom={brevity: 1.0}"], "connector_rl.rewards.custom.brevity"),
        (
            ["connector_rl.rewards.custom={mine:length: 1.0}"],
            "connector_rl.rewards: custom: two rewards are called 'length'",
        ),
        (
            ["estimator_rl.rewards.custom={mine:good: 1.0, theirs:good: 1.0}"],
            "estimator_rl.rewards: custom: two rewards are called 'good'",
        ),
        (
            ["estimator_rl.scale_rewards=group", "estimator_rl.rewards.kernel_score=1"],
            "estimator_rl: rewards.kernel_score is proper only where groups are not scaled",
        ),
        (
            [
                "estimator_rl.scale_rewards=none",
                "estimator_rl.rewards.kernel_score=1",
                "estimator_rl.num_generations=2",
            ],
            "estimator_rl: rewards.kernel_score compares candidates; set num_generations to 3",
        ),
        (
            ["model.dtype=float8"],
            "model.dtype: found 'float8'; input should be 'float32', 'bfloat16' or 'float16'",
        ),
        (["rounds.count=-1"], "rounds.count: found -1; input should be greater than or equal to 0"),
        (["rounds.phases=[estimator_sft]"], "put refresh before it"),
        (["connector_rl=null"], "the section connector_rl is missing"),
        (["connector_rl.num_generations=7"], "num_generations (7) must divide"),
        (["connector_rl.num_generations=1"], "num_generations is 1, but grpo compares"),
        (
            ["connector_rl.algorithm=a2c"],
            "connector_rl.algorithm: found 'a2c'; accepted are grpo, ppo, rloo, custom:",
        ),
        (
            ["connector_rl.algorithm=ppo", "connector_rl.beta=0.1"],
            "connector_rl: beta: not an option of algorithm ppo (found 0.1); leave it out, or set "
            "algorithm to grpo or rloo, or ppo.kl_coef",
        ),
        (
            ["connector_rl.algorithm=ppo", "connector_rl.loss_type=grpo"],
            "connector_rl: loss_type: not an option of algorithm ppo (found 'grpo')",
        ),
        (
            ["connector_rl.algorithm=rloo", "connector_rl.scale_rewards=none"],
            "scale_rewards: not an option of algorithm",
        ),
        (
            ["connector_rl.ppo.lam=0.5"],
            "connector_rl: ppo: not an option of algorithm grpo; leave it out, or set",
        ),
        (
            ["connector_rl.ppo.lambda=0.5"],
            "connector_rl.ppo.lambda: unknown key; accepted are value_backbone, gamma",
        ),
        (["connector_rl.loss_type=cispo"], "loss_type cispo needs epsilon_high"),
        (
            ["connector_rl.algorithm=ppo", "connector_rl.ppo.value_backbone=adapter"],
            "connector_rl.ppo.value_backbone: adapter needs a model.tuning of lora for the "
            "connector",
        ),
        (
            [
                "model.tuning=lora",
                "connector_rl.algorithm=ppo",
                "connector_rl.ppo.value_backbone=adapter",
                "connector_rl.gradient_checkpointing=true",
            ],
            "ppo.value_backbone: adapter cannot be had with gradient_checkpointing",
        ),
        (
            ["connector_rl.algorithm=ppo", "connector_rl.ppo={kl_coef: 0, kl_target: 1}"],
            "connector_rl.ppo: kl_target adapts kl_coef by factors",
        ),
        (["refresh.samples=2", "refresh.temperature=0"], "refresh: samples is 2 and temperature 0"),
        (
            ["cold_start.refresh={cross_fit: 1}"],
            "cold_start.refresh.cross_fit: found 1; input should be greater than or equal to 2",
        ),
        (["p_none=1"], "p_none: found 1; input should be less than 1"),
        (["estimator_sft.steps=null"], "give exactly one of steps and epochs"),
        (["data.hub=x"], "give exactly one of path, hub and world; found hub, world"),
        (["traces.teacher=endpoint"], "teacher 'endpoint' needs model, base_url"),
        (["estimator_rl.rewards.judge=base"], "was never trained to judge"),
        (["data.path=x.json"], "prompts: world and data.world go together"),
        (["seed"], "accepted is dotted.key=value"),
        (["name.x=1"], "'name' is a value, not a section"),
        (["name=[1"], "is not a YAML value"),
    ],
)
def test_a_wrong_value_is_named(overrides, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides)
    assert message in str(caught.value)


def test_a_users_reward_is_named_with_its_weight():
    recipe = load_recipe(QUICKSTART, ["connector_rl.rewards.custom={my.rewards:brevity: 0.5}"])
    assert recipe.connector_rl.rewards.custom == {"my.rewards:brevity": 0.5}
    assert (
        recipe.connector_rl.rewards.likelihood
        == load_recipe(QUICKSTART).connector_rl.rewards.likelihood
    )


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "none")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match="mapping of sections; found list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_an_override_of_one_section_leaves_its_yaml_twin_alone():
    recipe = load_recipe(QUICKSTART, ["cold_start.connector.learning_rate=0.5"])
    assert recipe.cold_start.connector.learning_rate == 0.5
    assert (
        recipe.cold_start.estimator.learning_rate
        == load_recipe(QUICKSTART).cold_start.estimator.learning_rate
    )


def test_a_path_given_as_an_override_replaces_the_recipes_source():
    recipe = load_recipe(ROOT / "recipes" / "smollm2-135m", ["data.path=x.json"])
    assert recipe.data.path == "x.json" and recipe.data.hub is None


def test_extends_merges_section_by_section(tmp_path):
    parent = yaml.safe_load((QUICKSTART / "config.yaml").read_text())
    (tmp_path / "parent.yaml").write_text(yaml.safe_dump(parent))
    (tmp_path / "child.yaml").write_text(
        "extends: parent.yaml\nname: child\nrefresh: {examples: 7}\n"
    )
    child = load_recipe(tmp_path / "child.yaml")
    assert child.name == "child" and child.refresh.examples == 7
    assert child.refresh.temperature == parent["refresh"]["temperature"]


def test_reading_a_recipe_imports_nothing_heavy():
    code = (
        "import sys; from coevolve.recipe import load_recipe; load_recipe('recipes/quickstart');"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'wandb', 'accelerate', "
        "'numpy'};print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_field_of_every_section_is_used():
    """A field that nobody reads is a promise that nobody keeps."""
    source = "".join(
        path.read_text() for path in (ROOT / "coevolve").rglob("*.py") if path.name != "schema.py"
    )
    passed_on_whole = {"Lora"}
    unread = [
        f"{section.__name__}.{name}"
        for section in _sections(Recipe)
        if section.__name__ not in passed_on_whole
        for name in section.model_fields
        if f".{name}" not in source and f'"{name}"' not in source
    ]
    assert unread == []


def _sections(section):
    found = {section}
    for field in section.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= _sections(kind)
    return found
