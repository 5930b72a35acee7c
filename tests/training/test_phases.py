"""Each phase moves its own role and no other; the gate puts back what got worse; rewards ask the resident model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from trl.trainer import utils as trl_utils

from coevolve.errors import RewardError
from coevolve.prompts import missing_sections
from coevolve.recipe import check_recipe, recipe_values
from coevolve.scoring.models import load_model
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training import phases, rewards
from coevolve.training.gate import Gate
from coevolve.training.phases import Trainee
from coevolve.training.processes import Processes
from coevolve.training.record import Record
from coevolve.training.run import PHASES
from coevolve.training.scorers import ConnectorScore, EstimatorScore, _finite
from coevolve.training.setup import build_estimator, build_renderers, load_corpus, prepare_origins
from coevolve.training.spread import SpreadEstimator
from coevolve.training.stopping import Stop


@pytest.fixture(params=["full", "lora", "mixed"])
def trainee(request, recipe_of, tmp_path):
    """A pair after a cold start of a few steps."""
    return build(recipe_of(request.param), tmp_path)


class Unwatched:
    """Lets every phase go on to its end."""

    def after_step(self, step, capture):
        pass

    def after_part(self):
        pass

    def between(self):
        pass

    def poll(self):
        pass


def build(recipe, folder):
    """A trainee that writes well-formed reasonings, so that its rewards differ and there is something to learn.

    Adapters cannot teach a random base that much, so they get a base that can do it already.
    """
    train = load_corpus(recipe).require("IDTrain")
    origins = prepare_origins(recipe, folder)
    if recipe.model.tuning == "lora":
        values = recipe_values(recipe)
        shared = {name: value for name, value in values["model"].items() if name not in ROLES}
        whole = check_recipe({**values, "model": {**shared, "tuning": "full"}}, "whole")
        build(whole, folder / "whole").estimator.roles.save(CONNECTOR, Path(origins[CONNECTOR].base.path))
    estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
    processes = Processes(torch.device("cpu"), Stop())
    trainee = Trainee(
        recipe=recipe,
        estimator=estimator,
        spread=SpreadEstimator(estimator, processes),
        train=train,
        reasoning=[example.trace for example in train],
        record=Record(folder, main=False),
        processes=processes,
        watcher=Unwatched(),
    )
    rows = {
        CONNECTOR: phases.connector_rows(estimator, train, trainee.reasoning),
        ESTIMATOR: phases.estimator_rows(estimator, train, trainee.reasoning),
    }
    for role in ROLES:
        phases.sft(trainee, role, rows[role], recipe.cold_start.connector, "cold", role, steps=60)
    return trainee


def test_the_cold_start_is_well_formed(trainee):
    texts = trainee.estimator.reason(trainee.train[:8])
    sections = trainee.estimator.renderer.prompts.sections
    assert sum(not missing_sections(text, sections) for text in texts) >= 4, texts


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def test_a_phase_moves_its_own_role_only(trainee):
    roles = trainee.estimator.roles
    before_all = dict(trainee.updates)
    for name, (run_phase, learner) in PHASES.items():
        before = {role: roles.weights(role) for role in ROLES}
        reasoning = list(trainee.reasoning)
        run_phase(trainee, 1)
        for role in ROLES:
            moved = not same(before[role], roles.weights(role))
            assert moved == (role == learner), f"{name}: {role}"
        assert (trainee.reasoning != reasoning) == (name == "refresh")
    assert {role: trainee.updates[role] - before_all[role] for role in ROLES} == {CONNECTOR: 2, ESTIMATOR: 5}


def test_trainers_leave_nothing_on_the_model(trainee):
    roles = trainee.estimator.roles
    before = trainee.estimator.log_prob(trainee.train[:3], ["x"] * 3, trainee.reasoning[:3]).sum
    phases.connector_rl(trainee, 1)
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
    gate.judge(1, "estimator_rl", ESTIMATOR, may_wait=False)
    assert gate.verdicts[-1]["kept"] is False and gate.verdicts[-1]["after"] > start
    assert all(same(best[role], roles.weights(role)) for role in ROLES)

    phases.sft(
        trainee,
        ESTIMATOR,
        phases.estimator_rows(trainee.estimator, held_out, gate.best.held_out.reasoning),
        trainee.recipe.cold_start.estimator,
        "on the held-out examples themselves",
        steps=60,
    )
    gate.judge(1, "estimator_sft", ESTIMATOR, may_wait=False)
    assert gate.verdicts[-1]["kept"] is True and gate.best.held_out.perplexity < start
    assert not same(best[ESTIMATOR], roles.weights(ESTIMATOR))


def test_a_connector_on_probation_is_judged_with_the_estimator_that_met_it(trainee):
    roles = trainee.estimator.roles
    gate = started_gate(trainee, trainee.train[:8])
    best = {role: roles.weights(role) for role in ROLES}
    reasoning = list(trainee.reasoning)

    _spoil(trainee, CONNECTOR)
    gate.judge(1, "connector_rl", CONNECTOR, may_wait=True)
    assert gate.verdicts[-1]["kept"] is None and not same(best[CONNECTOR], roles.weights(CONNECTOR))
    trainee.reasoning[0] = "changed by a refresh"
    _spoil(trainee, ESTIMATOR)
    gate.judge(1, "estimator_sft", ESTIMATOR, may_wait=False)
    assert [verdict["kept"] for verdict in gate.verdicts] == [False, False]
    assert all(same(best[role], roles.weights(role)) for role in ROLES)
    assert trainee.reasoning == reasoning


def test_a_refresh_of_a_kept_connector_outlasts_the_estimator_that_failed_on_it(trainee):
    gate = started_gate(trainee, trainee.train[:8])
    trainee.reasoning[0], trainee.chosen = "written by the refresh", [0, 2]
    gate.note_refresh()
    trainee.optimizers["estimator_sft"] = {"exp_avg|x": torch.ones(1)}
    _spoil(trainee, ESTIMATOR)
    gate.judge(1, "estimator_sft", ESTIMATOR, may_wait=False)
    assert gate.verdicts[-1]["kept"] is False
    assert trainee.reasoning[0] == "written by the refresh" and trainee.chosen == [0, 2]
    assert trainee.optimizers == {}
    assert gate.holds_best


def started_gate(trainee, held_out):
    gate = Gate(trainee, held_out, tolerance=0.0)
    gate.start()
    return gate


def _spoil(trainee, role):
    torch.manual_seed(0)
    weights = trainee.pair[role]
    trainee.load(role, {name: value + 0.5 * torch.randn_like(value) for name, value in weights.items()})


def test_the_golden_term_alone_raises_golden_likelihood(recipe_of, tmp_path):
    """With a reward that is the same for all, the policy gradient is 0 and only the golden responses teach."""
    rl = {"steps": 40, "golden_nll_weight": 1.0, "rewards": {"judge": "overlap", "match": 0.0, "format": 0.0001}}
    trainee = build(recipe_of(estimator_rl=rl), tmp_path)
    golden = [example.golden_response for example in trainee.train]
    before = trainee.estimator.log_prob(trainee.train, golden, trainee.reasoning).sum.mean()
    phases.estimator_rl(trainee, 1)
    assert trainee.estimator.log_prob(trainee.train, golden, trainee.reasoning).sum.mean() > before + 0.1


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_kl_term_is_to_the_role_as_the_phase_began(recipe_of, tmp_path, tuning):
    rl = {"steps": 4, "beta": 0.1, "learning_rate": 5e-3}
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}  # TRL leaves dropout on in the reference, too
    trainee = build(recipe_of(tuning, connector_rl=rl, logging={"every": 1}, model={"lora": lora}), tmp_path)
    trainee.record.main = True
    phases.connector_rl(trainee, 1)
    lines = [json.loads(line) for line in trainee.record.path.read_text().splitlines()]
    kl = [line["connector/kl"] for line in lines if "connector/kl" in line]
    assert len(kl) == 4
    assert kl[0] == pytest.approx(0.0, abs=1e-6)  # nothing has moved yet
    assert kl[-1] > 1e-5


def test_the_connectors_likelihood_is_the_estimators_own(trainee):
    render = trainee.estimator.renderer
    score = ConnectorScore(trainee.estimator, trainee.train, target_words=5)
    good = render.response_ids(trainee.train[0].trace)
    cut_off = good[:-1]
    unparsable = render.response_ids("[Connections]")
    logged = {}
    values = score.likelihood(
        completion_ids=[good, cut_off, unparsable],
        index=[0, 0, 0],
        log_metric=lambda name, value: logged.update({name: value}),
    )
    expected = trainee.estimator.log_prob(
        trainee.train[:1], [trainee.train[0].golden_response], [trainee.train[0].trace]
    )
    assert values == [pytest.approx(math.exp(expected.mean[0]), rel=1e-6), 0.0, 0.0]
    assert logged == {"unparsable_completions": pytest.approx(2 / 3)}
    assert score.format(completion_ids=[good, cut_off, unparsable]) == [1.0, 0.0, 0.0]
    assert score.length(completion_ids=[good, cut_off, unparsable]) == [1.0, 0.0, 0.0]


def test_the_estimators_match_is_relative_to_the_golden_response(trainee):
    render, example = trainee.estimator.renderer, trainee.train[0]
    golden, other = (render.response_ids(text) for text in (example.golden_response, trainee.train[1].golden_response))
    for judge in ("overlap", "likelihood"):
        score = EstimatorScore(trainee.estimator, trainee.train, trainee.reasoning, judge)
        with trainee.estimator.roles.frozen(ESTIMATOR, trainee.pair[ESTIMATOR]):
            values = score.match(completion_ids=[golden, other, golden[:-1]], index=[0, 0, 0])
        assert values[0] == pytest.approx(1.0) and 0 <= values[1] <= 1 and values[2] == 0.0
    assert score.format(completion_ids=[golden, golden[:-1]]) == [1.0, 0.0]


def test_a_reward_that_is_no_number_is_an_error():
    with pytest.raises(RewardError, match="'match' gave nan for completion 1"):
        _finite("match", [0.0, math.nan])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (rewards.likelihood(math.log(0.25)), 0.25),
        (rewards.match_ratio(-3.0, -2.0), math.exp(-1)),
        (rewards.match_ratio(-1.0, -2.0), 1.0),
        (rewards.word_overlap("the cat sat", "The cat ran off"), 0.5),
        (rewards.word_overlap("cat cat", "cat"), 1.0),
        (rewards.features_length("[A] x [F] one two", ("[A]", "[F]"), 4), 0.5),
        (rewards.features_length("none", ("[A]", "[F]"), 4), 0.0),
        (rewards.reasoning_format("[A] x [F] y", ("[A]", "[F]")), 1.0),
        (rewards.reasoning_format("[F] y", ("[A]", "[F]")), 0.5),
        (rewards.reasoning_format("", ("[A]", "[F]")), 0.0),
        (rewards.response_format("hello", True), 1.0),
        (rewards.response_format("hello", False), 0.0),
        (rewards.response_format(" ", True), 0.0),
    ],
)
def test_rewards_by_hand(value, expected):
    assert value == pytest.approx(expected)


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
