"""Each phase moves its own role and no other; the gate puts back what got worse."""

import json

import numpy as np
import pytest
import torch
from trl.trainer import utils as trl_utils

from coevolve.prompts import missing_sections
from coevolve.recipe.rounds import Phase
from coevolve.scoring.models import load_model
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training import phases
from coevolve.training.gate import Gate
from coevolve.training.phases import PHASES
from coevolve.training.schedule import Budget, Turn, turns_of
from coevolve.training.setup import prepare_origins


@pytest.fixture(params=["full", "lora", "mixed"])
def trainee(request, recipe_of, tmp_path, build):
    """A pair after a cold start of a few steps."""
    return build(recipe_of(request.param), tmp_path)


def test_the_cold_start_is_well_formed(trainee):
    texts = trainee.estimator.reason(trainee.train[:8])
    sections = trainee.estimator.renderer.prompts.sections
    assert sum(not missing_sections(text, sections) for text in texts) >= 4, texts


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def test_a_phase_moves_its_own_role_only(trainee):
    roles = trainee.estimator.roles
    before_all = dict(trainee.updates)
    for turn in turns_of(trainee.recipe):
        name, learner = turn.phase.name, turn.phase.role
        before = {role: roles.weights(role) for role in ROLES}
        reasoning = list(trainee.reasoning)
        PHASES[name](trainee, turn)
        for role in ROLES:
            moved = not same(before[role], roles.weights(role))
            assert moved == (role == learner), f"{name}: {role}"
        assert (trainee.reasoning != reasoning) == (name == "refresh")
    assert {role: trainee.updates[role] - before_all[role] for role in ROLES} == {
        CONNECTOR: 2,
        ESTIMATOR: 5,
    }


def test_trainers_leave_nothing_on_the_model(trainee):
    roles = trainee.estimator.roles
    before = trainee.estimator.log_prob(trainee.train[:3], ["x"] * 3, trainee.reasoning[:3]).sum
    phases.connector_rl(trainee, turn("connector_rl"))
    model = roles.module(CONNECTOR)
    bare = model.get_base_model() if roles.tuning[CONNECTOR] == "lora" else model
    assert "forward" not in bare.__dict__
    assert not trl_utils._use_triton(torch.device("cpu"))
    assert all(parameter.grad is None for parameter in model.parameters())
    after = trainee.estimator.log_prob(trainee.train[:3], ["x"] * 3, trainee.reasoning[:3]).sum
    assert np.array_equal(before, after)


def test_the_gate_keeps_what_helps_and_puts_back_what_harms(trainee):
    roles, held_out = trainee.estimator.roles, trainee.train[:8]
    gate = started_gate(trainee, held_out)
    best = {role: roles.weights(role) for role in ROLES}
    start = gate.best.held_out.perplexity

    _spoil(trainee, ESTIMATOR)
    gate.judge(turn("estimator_rl"))
    assert gate.verdicts[-1]["kept"] is False and gate.verdicts[-1]["after"] > start
    assert all(same(best[role], roles.weights(role)) for role in ROLES)

    phases.sft(
        trainee,
        ESTIMATOR,
        "fitted",
        "on the held-out examples themselves",
        phases.estimator_rows(trainee.estimator, held_out, gate.best.held_out.reasoning),
        trainee.recipe.cold_start.estimator,
        Budget(60, 60),
    )
    gate.judge(turn("estimator_sft"))
    assert gate.verdicts[-1]["kept"] is True and gate.best.held_out.perplexity < start
    assert not same(best[ESTIMATOR], roles.weights(ESTIMATOR))


def test_a_connector_on_probation_is_judged_with_the_estimator_that_met_it(trainee):
    roles = trainee.estimator.roles
    gate = started_gate(trainee, trainee.train[:8])
    best = {role: roles.weights(role) for role in ROLES}
    reasoning = list(trainee.reasoning)

    _spoil(trainee, CONNECTOR)
    gate.judge(turn("connector_rl", estimator_sft_follows=True))
    assert gate.verdicts[-1]["kept"] is None and not same(best[CONNECTOR], roles.weights(CONNECTOR))
    trainee.reasoning[0] = "changed by a refresh"
    _spoil(trainee, ESTIMATOR)
    gate.judge(turn("estimator_sft"))
    assert [verdict["kept"] for verdict in gate.verdicts] == [False, False]
    assert all(same(best[role], roles.weights(role)) for role in ROLES)
    assert trainee.reasoning == reasoning


def test_a_refresh_of_a_kept_connector_outlasts_the_estimator_that_failed_on_it(trainee):
    gate = started_gate(trainee, trainee.train[:8])
    trainee.reasoning[0], trainee.chosen = "written by the refresh", [0, 2]
    gate.note_refresh()
    trainee.optimizers["estimator_sft"] = {"exp_avg|x": torch.ones(1)}
    _spoil(trainee, ESTIMATOR)
    gate.judge(turn("estimator_sft"))
    assert gate.verdicts[-1]["kept"] is False
    assert trainee.reasoning[0] == "written by the refresh" and trainee.chosen == [0, 2]
    assert trainee.optimizers == {}
    assert gate.holds_best


def started_gate(trainee, held_out):
    gate = Gate(trainee, held_out, tolerance=0.0)
    gate.start()
    return gate


def turn(name, **options):
    """The phase of that name in round 1, judged at once."""
    return Turn(1, Phase.model_validate(name), name, gated=True, **options)


def _spoil(trainee, role):
    trainee.updates[role] += 1
    torch.manual_seed(0)
    weights = trainee.pair[role]
    trainee.load(
        role, {name: value + 0.5 * torch.randn_like(value) for name, value in weights.items()}
    )


def test_the_golden_term_alone_raises_golden_likelihood(recipe_of, tmp_path, build):
    """With a reward that is the same for all, the policy gradient is 0 and only the golden
    responses teach.
    """
    rl = {
        "steps": 40,
        "golden_nll_weight": 1.0,
        "rewards": {"judge": "overlap", "match": 0.0, "format": 0.0001},
    }
    trainee = build(recipe_of(estimator_rl=rl), tmp_path)
    golden = [example.golden_response for example in trainee.train]
    before = trainee.estimator.log_prob(trainee.train, golden, trainee.reasoning).sum.mean()
    phases.estimator_rl(trainee, turn("estimator_rl"))
    assert (
        trainee.estimator.log_prob(trainee.train, golden, trainee.reasoning).sum.mean()
        > before + 0.1
    )


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_kl_term_is_to_the_role_as_the_phase_began(recipe_of, tmp_path, build, tuning):
    rl = {"steps": 4, "beta": 0.1, "learning_rate": 5e-3}
    lora = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
    }  # TRL leaves dropout on in the reference, too
    trainee = build(
        recipe_of(tuning, connector_rl=rl, logging={"every": 1}, model={"lora": lora}), tmp_path
    )
    trainee.record.main = True
    phases.connector_rl(trainee, turn("connector_rl"))
    lines = [json.loads(line) for line in trainee.record.path.read_text().splitlines()]
    kl = [line["connector/kl"] for line in lines if "connector/kl" in line]
    assert len(kl) == 4
    assert kl[0] == pytest.approx(0.0, abs=1e-6)  # nothing has moved yet
    assert kl[-1] > 1e-5


def test_computing_logits_only_where_the_loss_is_changes_nothing(recipe_of, tmp_path):
    """The shortcut that `engines` takes on a CPU gives the loss and the gradients of TRL's own way."""
    base = prepare_origins(recipe_of(), tmp_path)[ESTIMATOR].base
    ids = torch.randint(0, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(12) < 7, -100)
    found = {}
    for compact in (False, True):
        model = load_model(base.path)
        trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        use_triton = trl_utils._use_triton
        trl_utils._use_triton = lambda device, compact=compact: compact
        try:
            output = model(input_ids=ids, labels=labels, fused_lm_head=True)
            output.loss.backward()
        finally:
            trl_utils._use_triton = use_triton
        found[compact] = [output.loss, output.log_probs, *(p.grad for p in model.parameters())]
    for plain, short in zip(found[False], found[True], strict=True):
        assert torch.allclose(plain, short, atol=1e-6)
