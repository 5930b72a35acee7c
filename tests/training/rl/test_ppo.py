"""PPO and RLOO in the phases: what they train, log, save, and refuse."""

import json
import math
from dataclasses import replace

import pytest
import torch

from coevolve.errors import ArtifactError, RewardError
from coevolve.recipe.rounds import Phase
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training import phases, plans
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.record.record import Record
from coevolve.training.rl.grpo import RoleGRPOTrainer
from coevolve.training.rl.ppo import RolePPOTrainer, RoleRLOOTrainer
from coevolve.training.rl.value_function import ADAPTER, HEAD, ValueFunction
from coevolve.training.schedule import Budget, ScheduledPhase
from coevolve.training.state import RunState

CONNECTOR_RL = ScheduledPhase(1, Phase.model_validate("connector_rl"), "connector_rl")

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
KINDS = [
    ("full", "policy"),
    ("full", "head"),
    ("lora", "policy"),
    ("lora", "head"),
    ("lora", "adapter"),
]


@pytest.fixture(scope="module")
def cold_of(recipe_of, build, tmp_path_factory):
    """A function from a tuning and the connector's RL settings to a context that logs every step,
    and a state.

    The cold start, which is the same for all, is done once for each tuning.
    """
    built = {}

    def make(tuning="full", **rl):
        recipe = recipe_of(tuning, connector_rl=rl, logging={"every": 1})
        if tuning not in built:
            built[tuning] = build(recipe, tmp_path_factory.mktemp(tuning))
        context, cold = built[tuning]
        state = RunState.begin(context.roles, context.traces)
        for role, weights in cold.pair.items():
            state.load(context.roles, role, weights)
        record = Record(tmp_path_factory.mktemp("record"))
        return replace(context, recipe=recipe, record=record), state

    return make


@pytest.mark.parametrize("kind", [RoleGRPOTrainer, RoleRLOOTrainer, RolePPOTrainer])
def test_ratios_begin_at_one_also_under_adapters_with_dropout(cold_of, monkeypatch, kind):
    name = kind.__name__.removeprefix("Role").removesuffix("Trainer").lower()
    rl = {"gradient_checkpointing": True, "updates_per_generation": 2}
    context, state = cold_of("lora", algorithm=name, **rl)
    policy_loss, ratios = kind.policy_loss, []

    def seen(self, model, inputs, *args, **kwargs):
        assert model.training
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        new = self.log_probs(model, ids, mask, inputs["completion_ids"].shape[1])[0]
        moved = (new - inputs["old_per_token_logps"]) * inputs["completion_mask"]
        ratios.append(moved.detach().abs().max().item())
        return policy_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(kind, "policy_loss", seen)
    phases.connector_rl(context, state, CONNECTOR_RL)
    assert ratios[0] < 1e-5 < ratios[1]  # the second update is behind a step
    dropped = [
        x for x in context.roles.module("connector").modules() if type(x) is torch.nn.Dropout
    ]
    assert dropped and all(module.p == 0.1 for module in dropped)


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def logged(context):
    """The lines of a phase's steps."""
    lines = [json.loads(line) for line in context.record.path.read_text().splitlines()]
    return [line for line in lines if "connector/loss" in line]


@pytest.mark.parametrize(("tuning", "backbone"), KINDS)
def test_ppo_trains_its_role_and_leaves_no_trace_but_its_state(cold_of, tuning, backbone):
    rl = {"num_generations": 1, "num_iterations": 2, "steps": 4, "per_device_train_batch_size": 4}
    context, state = cold_of(tuning, algorithm="ppo", ppo={"value_backbone": backbone}, **rl)
    roles = context.roles
    before = {role: roles.weights(role) for role in ROLES}
    names = [name for name, _ in roles.module(CONNECTOR).named_parameters()]
    phases.connector_rl(context, state, CONNECTOR_RL)
    assert not same(before[CONNECTOR], roles.weights(CONNECTOR))
    assert same(before[ESTIMATOR], roles.weights(ESTIMATOR))
    module = roles.module(CONNECTOR)
    assert [name for name, _ in module.named_parameters()] == names
    assert not [(n, c._forward_hooks) for n, c in module.named_modules() if c._forward_hooks]
    assert set(state.pair[CONNECTOR]) == set(before[CONNECTOR])
    own = {name for name in state.optimizers["connector_rl"] if name.startswith("own|")}
    assert any(HEAD in name for name in own) and {"own|kl_coef", "own|value_offset"} <= own
    assert any(f".{ADAPTER}." in name for name in own) == (backbone == "adapter")
    lines = logged(context)
    assert len(lines) == 4
    rollouts = [line for line in lines if "connector/objective/kl" in line]
    assert set().union(*lines) >= METRICS and len(rollouts) == 2
    assert all(
        math.isfinite(value) for line in lines for name, value in line.items() if name in METRICS
    )
    assert rollouts[0]["connector/objective/kl"] == pytest.approx(
        0.0, abs=1e-4
    )  # nothing has moved yet
    # The first values are all the mean reward.
    assert state.optimizers["connector_rl"]["own|value_offset"].item() == pytest.approx(
        rollouts[0]["connector/objective/rlhf_reward"], abs=1e-6
    )
    assert lines[0]["connector/val/ratio"] == pytest.approx(
        1.0, abs=1e-5 if tuning == "full" else 0.1
    )
    assert "connector/frac_reward_zero_std" not in set().union(*lines)


class Leaves:
    """Leaves a phase that begins at `first` after a step, or between two parts of the step that
    follows it.
    """

    def __init__(self, first, step, *, halfway):
        self.step, self.halfway, self.done = step, halfway, first

    def after_step(self, step, capture):
        self.done = step
        if step == self.step and not self.halfway:
            raise Interrupted

    def between(self):
        if self.done == self.step and self.halfway:
            raise Interrupted

    def poll(self):
        pass


@pytest.mark.parametrize(
    ("tuning", "backbone"),
    [("full", "policy"), pytest.param("lora", "adapter", marks=pytest.mark.slow)],
)
def test_left_anywhere_it_goes_on_to_the_bit(cold_of, monkeypatch, tuning, backbone):
    """With dropout, three epochs of two minibatches, an adapted KL coefficient, and a value
    function to go on from.
    """
    ppo = {"value_backbone": backbone, "kl_target": 0.01, "value_learning_rate": 0.01}
    batches = {
        "updates_per_generation": 2,
        "num_iterations": 3,
        "steps": 7,
        "per_device_train_batch_size": 4,
    }
    carried, progress = {}, {}

    def begun():
        context, state = cold_of(tuning, algorithm="ppo", num_generations=1, ppo=ppo, **batches)
        state.optimizers, state.progress = dict(carried), dict(progress)
        return context, state

    context, state = begun()
    phases.connector_rl(context, state, CONNECTOR_RL)
    carried, progress = state.optimizers, state.progress
    first = 12  # six updates share their completions, and seven were done
    context, state = begun()
    phases.connector_rl(context, state, CONNECTOR_RL)
    weights, optimizer, lines = (
        dict(state.pair[CONNECTOR]),
        state.optimizers["connector_rl"],
        figures(context),
    )
    assert optimizer["own|kl_coef"] != carried["connector_rl"]["own|kl_coef"]
    for step, halfway in ((1, False), (6, False), (0, True), (3, True), (6, True)):
        context, state = begun()
        leaves = Leaves(first, first + step, halfway=halfway)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(plans, "Watch", lambda context, state: leaves)  # noqa: B023
            phases.connector_rl(context, state, CONNECTOR_RL)
        assert state.segment.step == first + step
        phases.connector_rl(context, state, CONNECTOR_RL)
        found = state.optimizers["connector_rl"]
        assert set(found) == set(optimizer) and all(
            torch.equal(found[name], optimizer[name]) for name in found
        )
        assert same(weights, state.pair[CONNECTOR])
        assert figures(context) == lines, (step, halfway)


def figures(context):
    """What the phase logged, without what depends on the clock."""
    timed = ("seconds", "_time", "_runtime", "_per_second")
    return [
        {name: value for name, value in line.items() if not name.endswith(timed)}
        for line in logged(context)
    ]


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_the_reward_holds_the_kl(cold_of, algorithm):
    """A KL that outweighs every other reward keeps the policy near to where the phase began."""
    last = {}
    for weight in (1e-6, 10.0):
        kl = {"ppo": {"kl_coef": weight}} if algorithm == "ppo" else {"beta": weight}
        context, state = cold_of(
            algorithm=algorithm, learning_rate=3e-3, steps=8, train_batch_size=32, **kl
        )
        phases.connector_rl(context, state, CONNECTOR_RL)
        name = "connector/objective/kl" if algorithm == "ppo" else "connector/kl"
        found = [line[name] for line in logged(context)]
        assert found[0] == pytest.approx(0.0, abs=1e-4)
        last[weight] = found[-1]
    assert last[1e-6] > 1e-3 and last[10.0] < 0.5 * last[1e-6], last


@pytest.mark.parametrize(
    "rl",
    [
        *({"loss_type": name} for name in ("grpo", "dr_grpo", "bnpo")),
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
        {"delta": 2.0, "top_entropy_quantile": 0.5, "scale_rewards": "none"},
        {"algorithm": "rloo", "normalize_advantages": True},
        {
            "algorithm": "ppo",
            "mask_truncated_completions": True,
            "ppo": {"value_learning_rate": 0.1, "kl_coef": 0.0},
        },
    ],
    ids=str,
)
def test_every_option_reaches_a_trainer_that_trains(cold_of, rl):
    context, state = cold_of(**rl)
    before = context.roles.weights(CONNECTOR)
    phases.connector_rl(context, state, CONNECTOR_RL)
    assert not same(before, context.roles.weights(CONNECTOR))


@pytest.mark.parametrize(
    ("tuning", "backbone", "reaches"),
    [
        ("full", "policy", True),
        ("full", "head", False),
        ("lora", "policy", True),
        ("lora", "head", False),
    ],
)
def test_the_value_loss_reaches_the_policy_only_where_it_may(cold_of, tuning, backbone, reaches):
    model = cold_of(tuning)[0].roles.module(CONNECTOR)
    value = ValueFunction(model, CONNECTOR, backbone)
    with value.attached({}), value.reading(2) as read:
        own = value.parameters()
        with torch.no_grad():
            for parameter in own.values():
                parameter.fill_(1.0)
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
        read[0].square().sum().backward()
        assert all(parameter.grad.any() for parameter in own.values())
        others = [parameter.grad for name, parameter in model.named_parameters() if name not in own]
        assert any(grad is not None and bool(grad.any()) for grad in others) == reaches
    model.zero_grad(set_to_none=True)


def test_the_value_of_a_token_is_that_of_the_state_before_it(cold_of):
    model = cold_of()[0].roles.module(CONNECTOR).eval()
    value = ValueFunction(model, CONNECTOR, "policy")
    with value.attached({}), value.reading(3) as read, torch.no_grad():
        next(iter(value.parameters().values())).normal_(generator=torch.Generator().manual_seed(0))
        for ids in ([5, 6, 7, 8, 9], [5, 6, 7, 8, 4], [5, 6, 4, 8, 9], [5, 4, 7, 8, 9]):
            model(input_ids=torch.tensor([ids]))
    first, last_changed, first_changed, prompt_changed = (values[0] for values in read)
    assert torch.equal(first, last_changed)
    assert first[0] == first_changed[0] and bool((first[1:] != first_changed[1:]).all())
    assert bool((first != prompt_changed).all())


def test_a_missing_or_other_value_head_is_named(cold_of):
    context, state = cold_of(algorithm="ppo")
    phases.connector_rl(context, state, CONNECTOR_RL)
    carried = state.optimizers["connector_rl"]
    state.optimizers["connector_rl"] = {
        name: value for name, value in carried.items() if HEAD not in name
    }
    with pytest.raises(
        ArtifactError, match=r"connector_rl.algorithm is ppo, but .* has no value head"
    ):
        phases.connector_rl(context, state, CONNECTOR_RL)
    state.segment = None
    odd = {
        name: value[:, :-1] if name.endswith(f"own|{HEAD}.weight") else value
        for name, value in carried.items()
    }
    state.optimizers["connector_rl"] = odd
    with pytest.raises(
        ArtifactError,
        match=r"is not the one that ppo.value_backbone policy asks for.*value_head.weight",
    ):
        phases.connector_rl(context, state, CONNECTOR_RL)


def test_a_new_optimizer_goes_on_with_the_value_head_that_there_is(cold_of, recipe_of):
    context, state = cold_of(algorithm="ppo")
    phases.connector_rl(context, state, CONNECTOR_RL)
    head = state.optimizers["connector_rl"][f"own|{HEAD}.weight"]
    assert bool(head.any())
    rounds = context.recipe.rounds.model_copy(update={"carry_optimizer": False})
    frozen = context.recipe.connector_rl.model_copy(update={"learning_rate": 1e-30})
    recipe = context.recipe.model_copy(update={"rounds": rounds, "connector_rl": frozen})
    phases.connector_rl(replace(context, recipe=recipe), state, CONNECTOR_RL)
    carried = state.optimizers["connector_rl"]
    assert torch.allclose(carried[f"own|{HEAD}.weight"], head, atol=1e-6)
    assert carried[f"step|{HEAD}.weight"].item() == context.recipe.connector_rl.steps


def test_a_completion_without_any_reward_is_refused(cold_of):
    context, state = cold_of(algorithm="ppo")
    with pytest.raises(
        RewardError,
        match="connector_rl: completion 1 of 8 got no value from any of the rewards nothing",
    ):
        phases.rl(
            context,
            state,
            CONNECTOR,
            "connector_rl",
            Budget(1, 1),
            ["a"] * 8,
            [("nothing", lambda completions, **_: [1.0, *[None] * (len(completions) - 1)], 1.0)],
            context.recipe.connector_rl,
            lambda index, completion: {},
        )
