"""PPO and RLOO in the phases: what they train, log, save, and refuse."""

import json
import math

import pytest
import torch

from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training import phases
from coevolve.training.value_function import ADAPTER, HEAD

OBJECTIVE = ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores")
METRICS = {
    *(f"connector/objective/{name}" for name in OBJECTIVE),
    "connector/policy/approxkl_avg",
    "connector/policy/clipfrac_avg",
    "connector/policy/entropy_avg",
    "connector/loss/policy_avg",
    "connector/loss/value_avg",
    "connector/val/clipfrac_avg",
    "connector/val/ratio",
    "connector/val/ratio_var",
    "connector/val/explained_variance",
}
KINDS = [("full", "policy"), ("full", "head"), ("lora", "policy"), ("lora", "head"), ("lora", "adapter")]


@pytest.fixture(scope="module")
def trainee_of(recipe_of, build, tmp_path_factory):
    """A function from a tuning and the connector's RL settings to a trainee that logs every step."""

    def make(tuning="full", **rl):
        recipe = recipe_of(tuning, connector_rl=rl, logging={"every": 1})
        trainee = build(recipe, tmp_path_factory.mktemp("trainee"))
        trainee.record.main = True
        return trainee

    return make


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def logged(trainee):
    """The lines of a phase's steps."""
    lines = [json.loads(line) for line in trainee.record.path.read_text().splitlines()]
    return [line for line in lines if "connector/loss" in line]


@pytest.mark.parametrize(("tuning", "backbone"), KINDS)
def test_ppo_trains_its_role_and_leaves_no_trace_but_its_state(trainee_of, tuning, backbone):
    rl = {"num_generations": 1, "num_iterations": 2, "steps": 4, "per_device_train_batch_size": 4}
    trainee = trainee_of(tuning, algorithm="ppo", ppo={"value_backbone": backbone}, **rl)
    roles = trainee.estimator.roles
    before = {role: roles.weights(role) for role in ROLES}
    names = [name for name, _ in roles.module(CONNECTOR).named_parameters()]
    phases.connector_rl(trainee, 1)
    assert not same(before[CONNECTOR], roles.weights(CONNECTOR))
    assert same(before[ESTIMATOR], roles.weights(ESTIMATOR))
    module = roles.module(CONNECTOR)
    assert [name for name, _ in module.named_parameters()] == names
    assert not any(child._forward_hooks for child in module.modules())
    assert set(trainee.pair[CONNECTOR]) == set(before[CONNECTOR])
    own = {name for name in trainee.optimizers["connector_rl"] if name.startswith("own|")}
    assert any(HEAD in name for name in own) and "own|kl_coef" in own
    assert any(f".{ADAPTER}." in name for name in own) == (backbone == "adapter")
    lines = logged(trainee)
    assert len(lines) == 4
    rollouts = [line for line in lines if "connector/objective/kl" in line]
    assert set().union(*lines) >= METRICS and len(rollouts) == 2
    assert all(math.isfinite(value) for line in lines for name, value in line.items() if name in METRICS)
    assert rollouts[0]["connector/objective/kl"] == pytest.approx(0.0, abs=1e-4)  # nothing has moved yet
    assert lines[0]["connector/val/ratio"] == pytest.approx(1.0, abs=1e-5 if tuning == "full" else 0.1)
    assert "connector/frac_reward_zero_std" not in set().union(*lines)
