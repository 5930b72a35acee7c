"""A loss or a gradient that is no number stops training before the step, and the batch is there to
be looked at.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer, SFTTrainer

from coevolve.errors import DivergenceError
from coevolve.recipe.rounds import Phase
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training import phases
from coevolve.training.rl.ppo import RolePPOTrainer
from coevolve.training.schedule import ScheduledPhase

CONNECTOR_RL = ScheduledPhase(1, Phase.model_validate("connector_rl"), "connector_rl")
ESTIMATOR_SFT = ScheduledPhase(1, Phase.model_validate("estimator_sft"), "estimator_sft")


@pytest.fixture(scope="module")
def cold(recipe_of, build, tmp_path_factory):
    return build(
        recipe_of(connector_rl={"per_device_train_batch_size": 4}), tmp_path_factory.mktemp("run")
    )


def the_gradient(trainer, loss):
    """A term that is 0 and has no derivative there."""
    parameter = next(value for value in trainer.model.parameters() if value.requires_grad)
    return loss + (parameter - parameter.detach()).abs().sum().sqrt()


def the_loss(trainer, loss):
    return loss * float("inf")


def poisoned(loss_of, poison):
    """The loss as it is, with poison in the second step."""

    def compute_loss(trainer, *args, **kwargs):
        loss = loss_of(trainer, *args, **kwargs)
        return poison(trainer, loss) if trainer.state.global_step == 1 else loss

    return compute_loss


def run(context, state, algorithm):
    if algorithm == "sft":
        return phases.estimator_sft(context, state, ESTIMATOR_SFT)
    rl = context.recipe.connector_rl.model_copy(update={"algorithm": algorithm})
    recipe = context.recipe.model_copy(update={"connector_rl": rl})
    return phases.connector_rl(replace(context, recipe=recipe), state, CONNECTOR_RL)


@pytest.mark.parametrize("poison", [the_loss, the_gradient])
@pytest.mark.parametrize("algorithm", ["sft", "grpo", "ppo", "rloo"])
def test_it_stops_before_the_step_and_names_the_batch(cold, monkeypatch, algorithm, poison):
    context, state = cold
    roles, role = context.roles, ESTIMATOR if algorithm == "sft" else CONNECTOR
    before = {each: roles.weights(each) for each in ROLES}
    for base in (GRPOTrainer, SFTTrainer):
        monkeypatch.setattr(base, "compute_loss", poisoned(base.compute_loss, poison))
    ppo = poisoned(RolePPOTrainer.policy_loss, poison)
    monkeypatch.setattr(RolePPOTrainer, "policy_loss", ppo)
    with pytest.raises(
        DivergenceError, match=rf"{role}, step 1: the loss is .* The step was not taken"
    ) as caught:
        run(context, state, algorithm)
    after, state.segment = {each: roles.weights(each) for each in ROLES}, None
    assert all(bool(torch.isfinite(value).all()) for value in after[role].values())
    assert any(
        not torch.equal(before[role][name], after[role][name]) for name in after[role]
    )  # the first step
    path = context.record.folder / "failed" / f"{role}-step-1-process-0"
    assert str(path) in str(caught.value)
    described, tensors = (
        json.loads(path.with_name(f"{path.name}.json").read_text()),
        load_file(f"{path}.safetensors"),
    )
    assert "nan" in str(described["gradient_norm"])
    if poison is the_loss:
        assert all(value in ("inf", "-inf", "nan") for value in described["loss"])
    if algorithm == "sft":
        assert len(described["texts"]) == 8 and set(tensors) >= {"0|input_ids", "0|labels"}
    else:
        assert len(described["loss"]) == 2 and len(described["texts"]) == 8
        assert {"prompt", "completion"} == set(described["texts"][0])
        assert {"0|completion_ids", "1|advantages"} <= set(tensors)
        assert {"completion", "reward/likelihood", "advantage"} <= set(described["samples"][0])
