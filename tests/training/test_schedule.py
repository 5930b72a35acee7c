"""Rounds as data: any granularity is the same training, budgets end where they say, and a resume
finds its place.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from coevolve.errors import ArtifactError, RecipeError
from coevolve.recipe import check_recipe, recipe_values
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.export import export_checkpoint
from coevolve.training.run import train
from coevolve.training.schedule import budget_of, scheduled_phases

ALONE = {"without_corl": False, "without_reasoning": False}
SMALL = {
    "data": {"world": {"train": 24, "test": 3}, "validation": 6},
    "baselines": ALONE,
    "evaluation": {"marginal_samples": 0},
    "connector_sft": {"steps": 3, "learning_rate": 2e-3, "train_batch_size": 8},
}


def exported(folder):
    paths = sorted(
        path for path in folder.glob("**/*or/*.safetensors") if "checkpoints" not in path.parts
    )
    assert len(paths) == 2
    return {
        f"{path.parent.name}/{name}": tensor
        for path in paths
        for name, tensor in load_file(path).items()
    }


def same_weights(folder, other):
    first, second = exported(folder), exported(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def schedule(count, *phases, **rounds):
    return {"rounds": {"count": count, "phases": list(phases), "lr_schedule": "run", **rounds}}


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_the_granularity_of_a_role_alone_changes_nothing(recipe_of, tmp_path, kind):
    """Three phases of two updates are one phase of six, to the bit: optimizer, learning rate and
    data go on.
    """
    for name, count, steps in (("coarse", 1, 6), ("fine", 3, 2)):
        phase = {"role": "connector", "kind": kind, "steps": steps}
        last = {"kind": "evaluate", "every": count}
        recipe = recipe_of(
            **SMALL, **schedule(count, phase, last, gate_tolerance=1e9), logging={"every": 1}
        )
        train(recipe, tmp_path / name)
    assert same_weights(tmp_path / "coarse", tmp_path / "fine")
    rates = [
        [
            line["connector/learning_rate"]
            for line in lines(tmp_path / name)
            if line.get("coevolve/round") and "connector/learning_rate" in line
        ]
        for name in ("coarse", "fine")
    ]
    assert rates[0] == rates[1] and len(set(rates[0])) == 6  # one cosine over all six


def test_alternating_updates_resume_to_the_bit(recipe_of, tmp_path, stop_after):
    rounds = schedule(
        4,
        {"role": "connector", "kind": "rl", "steps": 1},
        {"kind": "refresh", "every": 2},
        {"role": "estimator", "kind": "sft", "steps": 1},
        {"kind": "evaluate", "every": 2},
    )
    recipe = recipe_of(**SMALL, **rounds, checkpoints={"keep": 99})
    results = train(recipe, tmp_path / "whole")
    assert [gate["phase"] for gate in results["gates"]] == ["evaluate", "evaluate"]
    assert [gate["round"] for gate in results["gates"]] == [2, 4]

    sittings = 0
    while True:
        try:
            again = train(recipe, tmp_path / "parts", stop=stop_after(150))
            break
        except Interrupted:
            sittings += 1
    assert sittings >= 2
    assert again["gates"] == results["gates"] and same_weights(
        tmp_path / "whole", tmp_path / "parts"
    )


def test_a_phase_ends_when_nothing_improves_and_goes_back_to_the_best(recipe_of, tmp_path):
    """A learning rate that destroys the model can improve nothing, so patience and not the limit
    ends the phase.
    """
    until = {"steps": 2, "patience": 2, "at_most": 12}
    recipe = recipe_of(
        **SMALL,
        estimator_sft={"steps": 3, "learning_rate": 1.0, "train_batch_size": 8},
        rounds={
            "count": 1,
            "phases": ["refresh", {"role": "estimator", "kind": "sft", "until": until}],
        },
        checkpoints={"keep": 99},
    )
    results = train(recipe, tmp_path / "run")
    assert [(gate["part"], gate["kept"]) for gate in results["gates"]] == [(1, False), (2, False)]
    cold = results["gates"][0]["before"]
    assert all(
        gate["before"] == cold and (gate["after"] or math.inf) > cold for gate in results["gates"]
    )
    assert sum("eval/perplexity/validation" in line for line in lines(tmp_path / "run")) == 3
    export_checkpoint(
        next((tmp_path / "run" / "checkpoints").glob("*-cold-start-gate")), tmp_path / "cold"
    )
    assert same_weights(tmp_path / "run", tmp_path / "cold")


def test_a_phase_that_goes_on_improving_ends_at_its_limit(recipe_of, tmp_path):
    until = {"steps": 4, "patience": 2, "at_most": 10}
    phase = {"role": "connector", "kind": "sft", "until": until}
    recipe = recipe_of(**SMALL, rounds={"count": 1, "phases": [phase], "gate_tolerance": 1e9})
    train(recipe, tmp_path / "run")
    steps = [
        budget_of(recipe, turn, recipe.connector_sft, 24).steps for turn in scheduled_phases(recipe)
    ]
    assert steps == [4, 4, 2]


def test_a_budget_of_tokens_ends_with_the_step_that_reaches_it(recipe_of, tmp_path):
    phase = {"role": "connector", "kind": "sft", "tokens": 1000}
    settings = {**SMALL["connector_sft"], "lr_scheduler_type": "constant"}
    recipe = recipe_of(
        **{**SMALL, "connector_sft": settings},
        rounds={"count": 2, "phases": [phase]},
        logging={"every": 1},
    )
    train(recipe, tmp_path / "run")
    for index in (1, 2):
        tokens = [
            line["connector/num_tokens"]
            for line in lines(tmp_path / "run")
            if line.get("coevolve/round") == index and "connector/num_tokens" in line
        ]
        assert tokens[-1] >= 1000 and all(value < 1000 for value in sorted(set(tokens))[:-1])


def test_rollouts_are_never_shared_by_two_phases(recipe_of):
    """With two updates per batch of completions, a phase of three ends in the middle; the next
    begins a new batch.
    """
    recipe = recipe_of(
        connector_rl={"updates_per_generation": 2, "steps": 3}, **schedule(3, "connector_rl")
    )
    budgets = [
        budget_of(recipe, turn, recipe.connector_rl, 160) for turn in scheduled_phases(recipe)
    ]
    assert [(budget.steps, budget.schedule) for budget in budgets] == [(3, 12)] * 3


def test_the_scheduled_phases_the_default_rounds(recipe_of):
    turns = list(scheduled_phases(recipe_of(rounds={"count": 2})))
    assert [turn.name for turn in turns[:4]] == [
        "round-1-connector_rl",
        "round-1-refresh",
        "round-1-estimator_sft",
        "round-1-estimator_rl",
    ]
    assert [turn.gated for turn in turns[:4]] == [True, False, True, True]
    assert [turn.estimator_sft_follows for turn in turns[:4]] == [True, True, False, False]


def test_a_phase_that_comes_twice_has_two_names(recipe_of):
    phases = ["connector_rl", "refresh", "estimator_sft", "connector_rl"]
    names = [
        turn.name for turn in scheduled_phases(recipe_of(rounds={"count": 1, "phases": phases}))
    ]
    assert names == [
        "round-1-connector_rl-1",
        "round-1-refresh",
        "round-1-estimator_sft",
        "round-1-connector_rl-4",
    ]


def test_the_short_forms_are_written_out(recipe_of):
    recipe = recipe_of(rounds={"count": 1, "phases": ["connector_rl", "evaluate"]})
    assert check_recipe(recipe_values(recipe), "again") == recipe
    assert [phase.name for phase in recipe.rounds.phases] == ["connector_rl", "evaluate"]


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (
            "estimator_ppo",
            "found 'estimator_ppo'; accepted are connector_rl, connector_sft, refresh",
        ),
        ({"kind": "rl"}, "kind 'rl' needs a role"),
        ({"kind": "evaluate", "role": "connector"}, "leave role out"),
        ({"kind": "refresh", "role": "estimator"}, "the connector writes the reasonings"),
        ({"kind": "refresh", "steps": 3}, "has no budget of steps"),
        (
            {"kind": "rl", "role": "connector", "steps": 3, "tokens": 9},
            "give one budget; found steps and tokens",
        ),
        (
            {"kind": "rl", "role": "connector", "tokens": 9},
            "lr_scheduler_type must be constant, found cosine",
        ),
        ({"kind": "rl", "role": "connector", "every": 3}, "`every` is above count"),
        ({"kind": "sft", "role": "connector"}, "the section connector_sft is missing"),
    ],
)
def test_bad_phases_are_named(recipe_of, phase, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(rounds={"count": 1, "phases": [phase]})


def test_more_rounds_need_a_learning_rate_that_does_not_know_how_many(recipe_of, tmp_path):
    phase = {"role": "connector", "kind": "sft", "steps": 1}
    train(recipe_of(**SMALL, **schedule(1, phase)), tmp_path / "run")
    with pytest.raises(ArtifactError, match=r"rounds\.count: 1 -> 2"):
        train(recipe_of(**SMALL, **schedule(2, phase)), tmp_path / "run")
