"""Whatever is wrong with a grid is said before anything is run."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from coevolve.cli import main
from coevolve.compare.apart import Known, require_apart
from coevolve.compare.plan import make_plan
from coevolve.data.corpus import read_corpus
from coevolve.errors import CoevolveError, RecipeError
from coevolve.files import write_json
from coevolve.preflight.dialogues import limited
from coevolve.recipe import check_recipe
from coevolve.recipe.load import load_grid
from coevolve.shipped import shipped_recipes
from tests.compare.conftest import ESTIMATOR, GRID, write, write_answers

RECIPES = Path(__file__).parents[2] / "recipes"
DIALOGUES = shipped_recipes()["smollm2-135m"].parent / "dialogues.json"


@pytest.fixture
def folder(tmp_path):
    """With the files of a grid that is right."""
    write(tmp_path)
    write_answers(tmp_path)
    return tmp_path


def looked_at(folder, capsys, *overrides):
    """Exit status of a look at it, and what was said."""
    words = ["compare", str(folder / "grid.yaml"), *overrides, "--out", str(folder / "out")]
    status = main([*words, "--dry-run"])
    assert not (folder / "out").exists()
    return status, capsys.readouterr().err


def test_a_grid_that_is_right_has_nothing_in_its_way(folder, capsys):
    status, said = looked_at(folder, capsys)
    assert status == 0 and "Nothing stands in the way" in said
    assert "were trained on 40 of the same rows" in said  # one world, and no draw of its own


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models.theirs.responses=gone.jsonl", r"models.theirs.responses: .*gone.jsonl: no such"),
        ("models.start.rpm=gone.yaml", r"gone.yaml: no such file"),
        ("judge.scores=gone.jsonl", r"gone.jsonl: no such file"),
        ("data=gone.json", r"gone.json: no such file"),
        ("estimator=gone", r"gone: no manifest.json"),
        ("models.dpo.set=[rpm.method=ppo]", r"rpm.method: found 'ppo'; .*'grpo'"),
        ("models.dpo.start=begin", r"models.dpo.start: found 'begin'; the models are start, dpo"),
        ("models.start.start=dpo", r"models.dpo.start: .start. leads in a circle"),
        ("models.dpo.start=theirs", r"models.dpo.start: 'theirs' has no weights to go on from"),
        ("models.DPO={responses: theirs.jsonl}", r"'dpo' and 'DPO' would be one file"),
        ("models.a/b={responses: theirs.jsonl}", r"found the name 'a/b'; accepted are letters"),
        ("models.dpo.set=[rpm.betta=1]", r"rpm.betta: unknown key"),
        ("models.theirs.set=[seed=1]", r"set: goes over the recipe of rpm; there is none"),
        ("models.theirs={remedy: dpo}", r"needs one of rpm, model and responses"),
        ("judge.scale=[1, 3]", r"score is [45].*; accepted is .* from 1 to 3"),
        ("judge={scores: judged.jsonl, ask: {model: m}}", r"judge: accepted is either"),
        ("judge={ask: {model: m, rubric: gone.yaml}}", r"gone.yaml: no such file"),
        ("judge={ask: {model: m, repeat: 2}}", r"judge.ask: .*repeat is none of its options"),
        ("ask.max_tokens=3", r"models.start.ask: .*max_tokens is none of its options"),
        ("ask.limit=3", r"models.start.ask: limit: is not for the grid to say here"),
        ("measure.negativ=20", r"measure: .*negativ is none of its options"),
        ("measure.reader=mine", r"reader: found 'mine'; accepted are estimator, own, fitted, best"),
        ("measure.protocol=reference", r"measure: protocol: is not for the grid"),
        (
            "measure.negatives=20",
            r"Accepted here are all and negatives_per_context; or say own: false",
        ),
        ("bound.embedder=mine", r"embedder: found 'mine'; accepted are base, minilm"),
        ("estimater=gone", r"estimater: unknown key; .* Did you mean estimator"),
        ("estimator.set=[seed=5]", r"estimator: is the reward as well \(models trained .*: dpo\)"),
        ("reward=null", r"method dpo needs rpm.estimator"),
    ],
)
def test_what_is_wrong_is_one_message_before_anything_runs(folder, capsys, override, message):
    status, said = looked_at(folder, capsys, override)
    assert status == 2 and re.search(message, said), said
    assert len(said.strip().splitlines()) == 1


def test_a_model_that_is_there_twice_is_refused(folder):
    text = (folder / "grid.yaml").read_text()
    twice = text.replace("models:\n", "models:\n  theirs: {responses: theirs.jsonl}\n")
    (folder / "grid.yaml").write_text(twice)
    with pytest.raises(RecipeError, match=r"grid.yaml:\d+: .*'theirs'"):
        load_grid(folder / "grid.yaml")


def test_a_folder_with_another_comparison_or_with_the_users_own_is_left_alone(folder, capsys):
    out = folder / "out"
    out.mkdir()
    (out / "results.json").write_text("mine")
    words = ["compare", str(folder / "grid.yaml"), "--out", str(out), "--dry-run"]
    assert main(words) == 2
    assert "results.json is there already and is not a comparison" in capsys.readouterr().err
    (out / "results.json").unlink()
    write_json(out / "grid.json", {"schema": "coevolve.grid/1", "name": "other"})
    assert main(words) == 2
    assert "holds the comparison 'other'" in capsys.readouterr().err


def recipe_of(path, seed=0, base="org/base", **data):
    model = {**ESTIMATOR["model"], "base": base}
    values = {**ESTIMATOR, "prompts": "roleplay", "model": model, "seed": seed}
    values["traces"] = {"teacher": "rules"}
    return check_recipe({**values, "data": {"path": str(path), "validation": 4, **data}}, "recipe")


def of_test_rows(path):
    corpus = read_corpus(path)
    return replace(corpus, splits={x: corpus.splits[x] for x in corpus.test_splits})


def test_an_estimator_that_was_trained_on_test_rows_is_refused(tmp_path):
    """Whatever they are called in the other file."""
    splits = json.loads(DIALOGUES.read_text())
    moved = {**splits["IDTest"][0], "sample_ID": "IDTrain-900"}
    other = {**splits, "IDTrain": [*splits["IDTrain"], moved]}
    write_json(tmp_path / "other.json", other)
    tests = of_test_rows(DIALOGUES)
    seen, clean = recipe_of(tmp_path / "other.json"), recipe_of(DIALOGUES)
    require_apart(Known("estimator", tmp_path, clean), [], {}, tests)
    for known, trained in ((seen, {}), (clean, {"mine": seen})):
        with pytest.raises(RecipeError, match=r"is trained on 1 of 28 test rows \('idtest-01'"):
            require_apart(Known("estimator", tmp_path, known), [], trained, tests)


def test_what_estimator_and_reward_have_in_common_is_told(tmp_path):
    tests = of_test_rows(DIALOGUES)
    ours, theirs = recipe_of(DIALOGUES, 1), recipe_of(DIALOGUES, 2)
    few = recipe_of(DIALOGUES, 3, "org/other", limit={"IDTrain": 20})
    reward = Known("reward", tmp_path / "b", theirs)
    parent, rows = require_apart(Known("estimator", tmp_path, ours), [("m", reward)], {}, tests)
    assert "share a parent, org/base (models trained for it: m)" in parent
    assert "40 of the same rows, of 40 and 40" in rows
    (rows,) = require_apart(Known("estimator", tmp_path, few), [("m", reward)], {}, tests)
    assert "20 of the same rows, of 20 and 40" in rows
    halves = [recipe_of(DIALOGUES, 1, f"org/{x}", part=f"{x}/2") for x in (1, 2)]
    first, second = [Known(x.model.base, tmp_path / x.model.base, x) for x in halves]
    assert require_apart(first, [("m", second)], {}, tests) == []
    rows = [
        limited(x, "IDTrain", list(read_corpus(DIALOGUES).splits["IDTrain"]))
        for x in (*halves, recipe_of(DIALOGUES, 1, part="1/1"))
    ]
    assert len(rows[0]) + len(rows[1]) == len(rows[2]) == 40 and 10 < len(rows[0]) < 30
    with pytest.raises(RecipeError, match="is the reward as well"):
        require_apart(Known("estimator", tmp_path, theirs), [("m", reward)], {}, tests)


def test_a_model_trained_elsewhere_says_by_its_folder_for_which_estimator(folder, monkeypatch):
    (folder / "weights").mkdir()
    write_json(folder / "weights" / "rpm.json", {"estimator": "f" * 64})
    grid = {**GRID, "models": {"mine": {"model": "weights"}}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    plan = make_plan(folder / "grid.yaml", [], folder / "out")
    ((name, reward),) = plan.rewards()
    assert name == "mine" and reward.identity == "f" * 64
    monkeypatch.setattr(Known, "identity", "f" * 64)
    with pytest.raises(CoevolveError, match="is the reward as well"):
        plan.flags()


def test_models_are_trained_behind_those_that_they_began_as(folder):
    models = {"b": {**GRID["models"]["dpo"], "start": "a"}, "a": GRID["models"]["start"]}
    (folder / "grid.yaml").write_text(yaml.safe_dump({**GRID, "models": models}))
    first, second = make_plan(folder / "grid.yaml", ["seed=7"], folder / "out").members
    assert (first.name, first.remedy, second.name, second.remedy) == ("a", "none", "b", "dpo")
    assert second.run.recipe.model.base == str(folder / "out/models/a/model")
    assert second.run.recipe.rpm.estimator == str(folder / "out/reward/estimator")
    assert first.run.recipe.rpm.estimator is None and second.run.recipe.seed == 7


def test_rows_are_the_first_of_each_subset(folder, capsys):
    grid = {
        **GRID,
        "data": "dialogues.json",
        "rows": 3,
        "judge": None,
        "models": {"m": {"model": "x"}},
    }
    shutil.copy(DIALOGUES, folder / "dialogues.json")
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    plan = make_plan(folder / "grid.yaml", [], folder / "out")
    counts = {split: len(rows) for split, rows in plan.corpus.splits.items()}
    assert counts == {"IDTest": 3, "OOD1Test": 6, "OOD2Test": 3, "OOD3Test": 3}


@pytest.mark.parametrize("grid", sorted(RECIPES.glob("*/grid.yaml")), ids=lambda x: x.parent.name)
def test_a_shipped_grid_is_whole_and_found_by_name(grid, tmp_path):
    own = [] if "world" in (grid.parent / "judge.yaml").read_text() else [f"data={DIALOGUES}"]
    own += [f'set=["data.path={DIALOGUES}"]'] if own else []
    plan = make_plan(grid.parent.name, own, tmp_path)
    assert all(member.remedy for member in plan.members)
    known = {str(tmp_path / "models" / x.name / "model") for x in plan.members}
    known |= {x.grid.model for x in plan.members if x.run is None}
    recipes = [x.run.recipe for x in plan.members if x.grid.start]
    assert {x.rpm.adapter or x.model.base for x in recipes} <= known
    judged = plan.flags()
    assert not [flag for flag in judged if "same rows" in flag]
