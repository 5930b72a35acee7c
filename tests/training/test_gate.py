"""The gate, seen from outside: what a run says of a phase that does harm,
and what it goes on with.
"""

import json

import pytest

from coevolve.errors import ContentError
from coevolve.training.run import train

# The estimator knows one reasoning only, so that it minds what a spoilt connector writes.
REASONING = "[Connections] people detour cause dry challenge [Features] joy joy joy joy joy"
LEARNT = {"steps": 60, "learning_rate": 3e-3, "train_batch_size": 8}
SPOILT = {"steps": 2, "learning_rate": 1.0, "train_batch_size": 8}  # too fast for anything to last
SMALL = {
    "seed": 2,
    "data": {"world": {"train": 24, "test": 3}, "validation": 6},
    "cold_start": {"connector": LEARNT, "estimator": LEARNT},
    "connector_sft": SPOILT,
    "estimator_sft": SPOILT,
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
    "checkpoints": {"keep": 99},
}
PHASES = ["connector_sft", "refresh", "estimator_sft"]


@pytest.fixture(scope="module")
def run(recipe_of, tmp_path_factory):
    """A function from options of `rounds` to (folder, gates) of a run."""
    traces = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    rows = [{"sample_ID": f"IDTrain-{i:06d}", "trace": REASONING} for i in range(24)]
    traces.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def run_with(**rounds):
        folder = tmp_path_factory.mktemp("gate") / "run"
        recipe = recipe_of(
            **SMALL,
            traces={"teacher": "file", "path": str(traces)},
            rounds={"count": 1, "phases": PHASES, **rounds},
        )
        return folder, train(recipe, folder)["gates"]

    return run_with


@pytest.fixture(scope="module")
def harmed(run):
    """A connector is spoilt, writes reasonings, and an estimator is spoilt on them."""
    return run()


def reasonings(folder, stage):
    """Those that the next phase would train on, by the checkpoint behind a stage."""
    [checkpoint] = (folder / "checkpoints").glob(f"*-{stage}")
    return json.loads((checkpoint / "state.json").read_text())["reasoning"]


def test_what_a_connector_on_probation_wrote_goes_with_it(harmed):
    folder, gates = harmed
    assert [(gate["phase"], gate["kept"]) for gate in gates] == [
        ("connector_sft", False),
        ("estimator_sft", False),
    ]
    assert set(reasonings(folder, "cold-start-gate")) == {REASONING}
    assert gates[0]["after"] > 1.05 * gates[0]["before"]  # by what it writes, and nothing else
    assert set(reasonings(folder, "trained")) == {REASONING}


def test_a_connector_that_says_nothing_stops_before_rl(recipe_of, tmp_path, capsys):
    """The run can go on once its recipe asks for less."""
    rl = {"steps": 1, "learning_rate": 1e-5, "train_batch_size": 4, "num_generations": 2}
    rounds = {"count": 1, "phases": ["connector_rl"]}

    def recipe(least):
        untrained = {"steps": 1, "learning_rate": 1e-6, "train_batch_size": 4}
        return recipe_of(
            **{**SMALL, "cold_start": {"connector": untrained, "estimator": untrained}},
            rounds=rounds,
            connector_rl={**rl, "max_completion_length": 4, "least_content": least},
        )

    with pytest.raises(ContentError, match=r"^0% of .* asks for 40% .*least_content to 0 to go on"):
        train(recipe(0.4), tmp_path / "run")
    assert capsys.readouterr().err.count("warning: Only 0% of the connector's held-out") == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert len(train(recipe(0.0), tmp_path / "run")["gates"]) == 1


def test_so_much_worse_as_the_recipe_tolerates_is_kept(harmed, run):
    """The tolerance is a share of the perplexity that is to be beaten."""
    connector = harmed[1][0]
    worse = connector["after"] / connector["before"] - 1
    _, gates = run(gate_tolerance=1.01 * worse)
    assert gates[0] == {**connector, "kept": True}
    assert (gates[1]["before"], gates[1]["kept"]) == (connector["after"], False)
