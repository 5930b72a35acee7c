"""What comes with the package is what the repository has, and is found by name from anywhere."""

import os
from collections import Counter
from pathlib import Path

import pytest

from coevolve.cli import main
from coevolve.data.corpus import read_corpus
from coevolve.errors import RecipeError
from coevolve.recipe import load_recipe
from coevolve.shipped import shipped_launch_files, shipped_recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_has_a_name_and_a_line_that_says_what_it_is(capsys):
    recipes = shipped_recipes()
    there = sorted((ROOT / "recipes").glob("*/*.yaml"))
    assert sorted(path.resolve() for path in recipes.values()) == there
    assert {"quickstart", "qwen3-8b", "qwen3-8b/qlora"} <= set(recipes)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes)
    assert all(len(line.split()) > 3 for line in lines)


def test_a_recipe_is_read_by_its_name_unless_there_is_one_at_that_path():
    assert load_recipe("quickstart") == load_recipe(ROOT / "recipes" / "quickstart")
    smaller = load_recipe("smollm2-135m/smoke", ["data.path=mine.json"])
    assert smaller.name == "smollm2-135m-smoke" and smaller.data.path == "mine.json"
    mine = Path("quickstart")
    mine.mkdir()
    text = (ROOT / "recipes" / "quickstart" / "config.yaml").read_text()
    (mine / "config.yaml").write_text(text.replace("name: quickstart", "name: mine"))
    assert load_recipe("quickstart").name == "mine"
    with pytest.raises(RecipeError, match=r"quickstrat: no such file.*`coevolve recipes` lists"):
        load_recipe("quickstrat")


def test_a_run_may_have_the_recipes_name(capsys):
    """A name is no path, so it is not in the way of an output."""
    assert main(["train", "quickstart", "data.validation=9999", "--output-dir", "quickstart"]) == 2
    assert "data.validation takes 9999" in capsys.readouterr().err


def test_a_copy_is_ones_own(capsys):
    assert main(["recipes", "copy", "smollm2-135m", "mine"]) == 0
    assert "config.yaml" in capsys.readouterr().out
    copied = sorted(path.name for path in Path("mine").iterdir())
    assert copied == sorted(os.listdir(ROOT / "recipes" / "smollm2-135m"))
    assert load_recipe("mine") == load_recipe("smollm2-135m")
    schema = Path("mine/config.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert Path(schema).is_absolute() and Path(schema).name == "recipe.schema.json"
    assert Path(schema).is_file()
    before = Path("mine/config.yaml").read_text() + "# mine\n"
    Path("mine/config.yaml").write_text(before)
    assert main(["recipes", "copy", "quickstart", "mine"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert Path("mine/config.yaml").read_text() == before
    assert main(["recipes", "copy", "nope", "other"]) == 2
    assert "'nope': unknown; accepted are llama3-8b, quickstart" in capsys.readouterr().err


def test_the_dialogues_of_smollm2_are_enough_for_its_smoke_recipe():
    """All 68 are read as they are, nothing is there twice, and no split is short of its limit."""
    corpus = read_corpus(shipped_recipes()["smollm2-135m"].parent / "dialogues.json")
    assert {name: Counter(x.subset for x in rows) for name, rows in corpus.splits.items()} == {
        "IDTrain": {"IDTrain": 40},
        "IDTest": {"IDTest": 8},
        "OOD1Test": {"german": 4, "french": 4},
        "OOD2Test": {"fantasy": 6},
        "OOD3Test": {"turn_composition": 6},
    }
    examples = corpus.examples
    texts = [
        text
        for x in examples
        for text in (x.user_persona, x.golden_response, *(turn.text for turn in x.dialogue))
    ]
    assert len(set(texts)) == len(texts)
    characters = Counter(str(x.agent_character) for x in corpus.require("IDTrain"))
    assert list(characters.values()) == [4] * 10
    for x in examples:
        long = x.subset == "turn_composition"
        assert len(x.dialogue) >= 8 if long else 2 <= len(x.dialogue) <= 6
        assert 8 <= len(x.golden_response.split()) <= 40
    smoke = load_recipe("smollm2-135m/smoke").data
    assert all(count <= len(corpus.require(split)) for split, count in smoke.limit.items())
    assert smoke.validation < smoke.limit["IDTrain"]


def test_launch_files_are_found_by_name(capsys):
    there = {path for path in (ROOT / "launch").iterdir() if path.suffix in (".yaml", ".sh")}
    assert {path.resolve() for path in shipped_launch_files().values()} == there
    assert main(["launch-file", "zero2"]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("# DeepSpeed ZeRO-2")
    assert main(["launch-file", "zero9"]) == 2
    assert "'zero9': unknown; accepted are ddp, fsdp2" in capsys.readouterr().err


def test_help_has_every_command_on_one_screen(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 40 and {"data:", "train:", "measure:", "publish:"} <= set(shown)
    assert sum(line.startswith("  launch-file") for line in shown) == 1


def test_recipes_are_listed_by_name_the_main_one_of_a_folder_first():
    names = list(shipped_recipes())
    assert names == sorted(names, key=lambda name: name.split("/"))
