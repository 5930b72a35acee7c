"""What is planned is what is done."""

import json
import re

import pytest

from coevolve.cli import main
from coevolve.training.plan import Step, plan
from coevolve.training.run import train
from coevolve.training.timing import Pace

SFT = {"learning_rate": 1e-3, "train_batch_size": 8}
EPOCHS = {**SFT, "steps": None, "epochs": 1.5}
RL = {"learning_rate": 1e-4, "train_batch_size": 8, "num_generations": 4}
COLD = {
    "connector": EPOCHS,
    "refresh": {"cross_fit": 3, "samples": 2, "temperature": 1.0},
    "direct": {**SFT, "steps": 2},
    "estimator": EPOCHS,
}
LATENT = {
    "rounds": {"count": 2, "phases": ["posterior", "connector_sft", "refresh", "estimator_sft"]},
    "posterior": {"proposal": "teacher", "samples": 2, "resampled": 2, "examples": 5},
    "connector_sft": {**SFT, "steps": None, "epochs": 2.0},
    "refresh": {"samples": 2, "temperature": 1.0, "examples": 9},
    "estimator_sft": EPOCHS,
}
EVERY = {
    "rounds": {
        "count": 3,
        "phases": ["connector_rl", {"role": "estimator", "kind": "rl", "every": 2}],
    },
    "connector_rl": {
        **RL,
        "steps": None,
        "epochs": 0.2,
        "max_completion_length": 4,
        "updates_per_generation": 2,
    },
    "estimator_rl": {**RL, "steps": 3, "max_completion_length": 4, "rewards": {"judge": "overlap"}},
}


@pytest.mark.parametrize("changes", [{"cold_start": COLD, **LATENT}, EVERY], ids=("latent", "rl"))
def test_updates_and_texts_are_those_of_the_run(recipe_of, tmp_path, changes):
    recipe = recipe_of(**changes, baselines={"without_corl": False, "without_reasoning": False})
    sizes = {"train": 40 - 8, "validation": 8, "tests": 5 * 6}
    steps = plan(recipe, **sizes)
    train(recipe, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "estimator" / "manifest.json").read_text())["training"]
    assert sum(facts["updates"].values()) == sum(step.updates for step in steps)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    written = [line.get("refresh/reasonings", 0) for line in map(json.loads, lines)]
    whole = [step for step in steps if "refresh" in step.what or step.what.startswith("cold")]
    assert sum(written) == sum(step.texts for step in whole)


def test_baselines_have_their_updates(recipe_of):
    recipe = recipe_of(cold_start=COLD, baselines={"without_corl": True, "ensemble": 2})
    by_name = {step.what: step.updates for step in plan(recipe, 32, 8, 30)}
    of_rounds = by_name["round 1: estimator_sft"] + by_name["round 1: estimator_rl"]
    assert by_name["without_corl"] == of_rounds
    assert by_name["without_reasoning"] == by_name["cold start: estimator"] + of_rounds
    assert by_name["without_reasoning 2"] == by_name["without_reasoning"] + 2


def test_validate_shows_origins_lengths_and_what_is_scored(recipe_of, tmp_path, capsys):
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text(json.dumps(recipe_of().model_dump(mode="json", exclude_unset=True)))
    above.write_text("extends: below.yaml\ncold_start: {connector: {steps: 5}}\n")
    assert main(["validate", str(above), "seed=4"]) == 0
    shown = capsys.readouterr().out
    assert f"said by {above}\n  cold_start.connector.steps: 5\n\n" in shown
    assert "said by command line\n  seed: 4\n\n" in shown and f"said by {below}\n" in shown
    assert "said by nobody" not in shown and "IDTrain, held out" in shown
    scored = shown.split("\u2192")[1].split("\u2190")[0]
    assert len(scored.split("\u00b7")) == 6  # five words and the end of turn
    dry = ["train", str(above), "seed=4", "--output-dir", str(tmp_path / "run"), "--dry-run"]
    assert main(dry) == 0 and capsys.readouterr().out == shown
    assert not (tmp_path / "run").exists()
    assert main(["validate", str(above), "--all"]) == 0
    assert "said by nobody: the default\n" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/status.json"))


def test_validate_measures_memory_disk_and_time(recipe_of, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(recipe_of("lora").model_dump(mode="json", exclude_unset=True)))
    command = ["validate", str(path), "--measure", "--launch", "zero2", "--num-processes", "4"]
    assert main([*command, "evaluation.token_budget=128"]) == 0
    shown, said = capsys.readouterr()
    assert "max_new_tokens" not in said
    memory, disk = shown.split("memory of each of 4 GPUs (zero2)")[1].split("disk, beside the base")
    for table, parts in (
        (memory, ("frozen base", "optimizer", "backward", "CUDA")),
        (disk, ("3 check",)),
    ):
        numbers = [float(x) for x in re.findall(r"(\d+\.\d+)  $", table, re.MULTILINE)]
        assert all(part in table for part in parts)
        assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.03) and numbers[-1] >= 0
    of_parts = [line for line in shown.splitlines() if re.search(r" (\d+ s|\d+:\d\d h)  $", line)]
    assert len(of_parts) > 8 and of_parts[-1].split()[:2] == ["in", "all"]


def test_parts_take_as_long_as_their_rows_and_texts():
    pace = Pace(row=0.5, token=0.01, load=9.0)
    assert pace.seconds(Step("x", updates=4, rows=8)) == 16.0
    assert pace.seconds(Step("x", texts=10, tokens=30), processes=2) == 1.5


def test_validate_names_every_problem_at_once(recipe_of, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(recipe_of().model_dump(mode="json", exclude_unset=True)))
    wrong = ["data.limit={Nowhere: 3}", 'connector_rl.rewards={"custom:nowhere.py:f": 1.0}']
    assert main(["validate", str(path), *wrong]) == 2
    said = capsys.readouterr().err
    assert "Nowhere" in said and "nowhere.py" in said
