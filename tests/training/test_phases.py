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
from coevolve.training import gate, phases
from coevolve.training.phases import PHASES
from coevolve.training.schedule import Budget, ScheduledPhase, scheduled_phases
from coevolve.training.setup import prepare_origins


@pytest.fixture(params=["full", "lora", "mixed"])
def cold(request, recipe_of, tmp_path, build):
    """Context and state after a cold start of a few steps."""
    return build(recipe_of(request.param), tmp_path)


def test_the_cold_start_is_well_formed(cold):
    context, _ = cold
    texts = context.estimator.reason(context.train[:8])
    sections = context.estimator.renderer.prompts.sections
    assert sum(not missing_sections(text, sections) for text in texts) >= 4, texts


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def test_a_phase_moves_its_own_role_only(cold):
    context, state = cold
    before_all = dict(state.updates)
    for scheduled in scheduled_phases(context.recipe):
        name, entry = scheduled.phase.name, PHASES[scheduled.phase.name]
        assert (entry.role, entry.kind) == (scheduled.phase.role, scheduled.phase.kind)
        before = {role: context.roles.weights(role) for role in ROLES}
        reasoning = list(state.reasoning)
        entry.run(context, state, scheduled)
        for role in ROLES:
            moved = not same(before[role], context.roles.weights(role))
            assert moved == (role == entry.role), f"{name}: {role}"
        assert (state.reasoning != reasoning) == (name == "refresh")
    assert {role: state.updates[role] - before_all[role] for role in ROLES} == {
        CONNECTOR: 2,
        ESTIMATOR: 5,
    }


def test_trainers_leave_nothing_on_the_model(cold):
    context, state = cold
    roles, scored = context.roles, (context.train[:3], ["x"] * 3, state.reasoning[:3])
    before = context.estimator.log_prob(*scored).sum
    phases.connector_rl(context, state, scheduled("connector_rl"))
    model = roles.module(CONNECTOR)
    bare = model.get_base_model() if roles.tuning[CONNECTOR] == "lora" else model
    assert "forward" not in bare.__dict__
    assert not trl_utils._use_triton(torch.device("cpu"))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert np.array_equal(before, context.estimator.log_prob(*scored).sum)


def test_the_gate_keeps_what_helps_and_puts_back_what_harms(cold):
    context, state = cold
    roles, held_out = context.roles, context.data.validation
    gate.start(context, state)
    best = {role: roles.weights(role) for role in ROLES}
    start = state.best.held_out

    _spoil(context, state, ESTIMATOR)
    gate.judge(context, state, scheduled("estimator_rl"))
    assert state.verdicts[-1].kept is False and state.verdicts[-1].after > start.perplexity
    assert all(same(best[role], roles.weights(role)) for role in ROLES)

    phases.sft(
        context,
        state,
        ESTIMATOR,
        "fitted",
        "on the held-out examples themselves",
        phases.estimator_rows(context.estimator, held_out, start.reasoning),
        context.recipe.cold_start.estimator,
        Budget(60, 60),
    )
    gate.judge(context, state, scheduled("estimator_sft"))
    assert state.verdicts[-1].kept is True
    assert state.best.held_out.perplexity < start.perplexity
    assert not same(best[ESTIMATOR], roles.weights(ESTIMATOR))


def test_a_connector_on_probation_is_judged_with_the_estimator_that_met_it(cold):
    context, state = cold
    roles = context.roles
    gate.start(context, state)
    best = {role: roles.weights(role) for role in ROLES}
    reasoning = list(state.reasoning)

    _spoil(context, state, CONNECTOR)
    gate.judge(context, state, scheduled("connector_rl", estimator_sft_follows=True))
    assert state.verdicts[-1].kept is None
    assert not same(best[CONNECTOR], roles.weights(CONNECTOR))
    state.reasoning[0] = "changed by a refresh"
    _spoil(context, state, ESTIMATOR)
    gate.judge(context, state, scheduled("estimator_sft"))
    assert [verdict.kept for verdict in state.verdicts] == [False, False]
    assert all(same(best[role], roles.weights(role)) for role in ROLES)
    assert state.reasoning == reasoning


def test_a_refresh_of_a_kept_connector_outlasts_the_estimator_that_failed_on_it(cold):
    context, state = cold
    gate.start(context, state)
    state.reasoning[0], state.chosen = "written by the refresh", [0, 2]
    gate.note_refresh(state)
    state.optimizers["estimator_sft"] = {"exp_avg|x": torch.ones(1)}
    _spoil(context, state, ESTIMATOR)
    gate.judge(context, state, scheduled("estimator_sft"))
    assert state.verdicts[-1].kept is False
    assert state.reasoning[0] == "written by the refresh" and state.chosen == [0, 2]
    assert state.optimizers == {}
    assert state.holds_best


def scheduled(name, **options):
    """The phase of that name in round 1, judged at once."""
    return ScheduledPhase(1, Phase.model_validate(name), name, gated=True, **options)


def _spoil(context, state, role):
    state.updates[role] += 1
    torch.manual_seed(0)
    spoilt = {
        name: value + 0.5 * torch.randn_like(value) for name, value in state.pair[role].items()
    }
    state.load(context.roles, role, spoilt)


def test_the_golden_term_alone_raises_golden_likelihood(recipe_of, tmp_path, build):
    """With a reward that is the same for all, the policy gradient is 0 and only the golden
    responses teach.
    """
    rl = {
        "steps": 40,
        "golden_nll_weight": 1.0,
        "rewards": {"judge": "overlap", "match": 0.0, "format": 0.0001},
    }
    context, state = build(recipe_of(estimator_rl=rl), tmp_path)
    golden = [example.golden_response for example in context.train]
    scored = context.train, golden, state.reasoning
    before = context.estimator.log_prob(*scored).sum.mean()
    phases.estimator_rl(context, state, scheduled("estimator_rl"))
    assert context.estimator.log_prob(*scored).sum.mean() > before + 0.1


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_kl_term_is_to_the_role_as_the_phase_began(recipe_of, tmp_path, build, tuning):
    rl = {"steps": 4, "beta": 0.1, "learning_rate": 5e-3}
    lora = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
    }  # TRL leaves dropout on in the reference, too
    context, state = build(
        recipe_of(tuning, connector_rl=rl, logging={"every": 1}, model={"lora": lora}), tmp_path
    )
    context.record.main = True
    phases.connector_rl(context, state, scheduled("connector_rl"))
    lines = [json.loads(line) for line in context.record.path.read_text().splitlines()]
    kl = [line["connector/kl"] for line in lines if "connector/kl" in line]
    assert len(kl) == 4
    assert kl[0] == pytest.approx(0.0, abs=1e-6)  # nothing has moved yet
    assert kl[-1] > 1e-5


def test_computing_logits_only_where_the_loss_is_changes_nothing(recipe_of, tmp_path):
    """The shortcut that `engines` takes on a CPU gives the loss and the gradients of
    TRL's own way.
    """
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
