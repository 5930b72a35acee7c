"""Reasonings drawn from the posterior: by weights that can be computed by hand, in a run, to the
bit.
"""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from coevolve.errors import PreflightError, RecipeError
from coevolve.information.importance import self_normalised
from coevolve.prompts import Renderer
from coevolve.recipe.rounds import Phase
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.roles import CONNECTOR
from coevolve.seeds import derive_seed
from coevolve.training import posterior as module
from coevolve.training.distributed.estimator import DistributedEstimator
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.documents import CheckpointState
from coevolve.training.phases import PHASES
from coevolve.training.run import train
from coevolve.training.schedule import ScheduledPhase, scheduled_phases

DRAWN = 2000
POSTERIOR = ScheduledPhase(1, Phase.model_validate("posterior"), "posterior")


@pytest.fixture(scope="module")
def cold(recipe_of, build, tmp_path_factory):
    """Context and state of a pair that writes; its prompt set has words for a teacher, too."""
    context, state = build(recipe_of(), tmp_path_factory.mktemp("run"))
    own = context.estimator
    prompts = replace(own.renderer.prompts, teacher_user="{context} / {response}")
    estimator = ProbabilityEstimator(
        own.roles, Renderer(prompts, own.renderer.tokenizer), max_new_tokens=own.max_new_tokens
    )
    distributed = DistributedEstimator(estimator, context.processes)
    return replace(context, estimator=estimator, distributed=distributed), state


def with_settings(context, **settings):
    recipe = context.recipe
    changed = recipe.posterior.model_copy(update=settings)
    return replace(context, recipe=recipe.model_copy(update={"posterior": changed}))


def log_q1(context, prompt, text):
    render = context.estimator.connector_renderer
    with context.roles.acting(CONNECTOR) as model:
        [values] = score_rows(
            model, [render.prompt_ids(prompt)], [render.response_ids(text)], pad_id=0
        )
    return values.sum()


@pytest.mark.parametrize("proposal", ["connector", "connector_with_answer", "mixture", "teacher"])
def test_reasonings_come_as_often_as_their_weights_say(cold, proposal):
    context, state = cold
    settings = {"proposal": proposal, "samples": 4, "resampled": DRAWN, "examples": 3}
    context = with_settings(context, **settings)
    PHASES["posterior"].run(context, state, POSTERIOR)
    assert state.texts == [] and len(state.posterior) == 3 * DRAWN
    render, seed = context.estimator.connector_renderer, derive_seed(0, POSTERIOR.name)
    assert len({place for place, _ in state.posterior}) == 3
    for place in {place for place, _ in state.posterior}:
        example = context.train[place]
        [candidates] = module._candidates(context, context.recipe.posterior, [example], seed)
        texts = [text for text, _ in candidates]
        texts += [context.traces[place]] * (proposal == "teacher")
        of_y = context.estimator.log_prob(
            [example] * len(texts), [example.golden_response] * len(texts), texts
        ).sum
        own = [log_q1(context, render.connector(example), text) for text in texts]
        shown = [log_q1(context, render.chat(render.teacher(example)), text) for text in texts]
        proposed = {
            "connector": own,
            "teacher": own,
            "connector_with_answer": shown,
            "mixture": np.logaddexp(own, shown) - np.log(2),
        }[proposal]
        expected: Counter[str] = Counter()
        for text, weight in zip(texts, self_normalised(of_y + own - proposed), strict=True):
            expected[text] += weight
        found = Counter(text for index, text in state.posterior if index == place)
        for text, share in expected.items():
            assert found[text] / DRAWN == pytest.approx(share, abs=2 / DRAWN)


def test_candidates_do_not_depend_on_what_else_is_asked(cold):
    context, _ = cold
    settings = with_settings(context, samples=4).recipe.posterior
    together = module._candidates(context, settings, context.train[:5], 1)
    alone = [module._candidates(context, settings, [x], 1)[0] for x in context.train[:5]]
    assert together == alone
    before, context.estimator.token_budget = context.estimator.token_budget, 100  # a row or two
    try:
        assert module._candidates(context, settings, context.train[:5], 1) == together
    finally:
        context.estimator.token_budget = before
    assert any(len({text for text, _ in of}) > 1 for of in together)


def test_one_that_was_cut_off_is_no_candidate(cold):
    context, state = cold
    context = with_settings(context, samples=2, examples=4)
    context.estimator.max_new_tokens, before = 1, context.estimator.max_new_tokens
    try:
        with pytest.raises(RecipeError, match="none of 4 examples has a candidate"):
            PHASES["posterior"].run(context, state, POSTERIOR)
    finally:
        context.estimator.max_new_tokens, state.texts = before, []


SFT = {"learning_rate": 2e-3, "train_batch_size": 8}
LATENT = {
    "data": {"world": {"train": 24, "test": 3}, "validation": 6},
    "rounds": {"count": 2, "phases": ["posterior", "connector_sft", "estimator_sft"]},
    "posterior": {"samples": 3, "resampled": 2},
    "cold_start": {"connector": {**SFT, "steps": 60}, "estimator": {**SFT, "steps": 3}},
    "connector_sft": {**SFT, "steps": 2},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
    "checkpoints": {"every_minutes": 1e-4, "keep": 99},
}


def test_a_recipe_trains_both_roles_on_what_was_drawn_and_is_resumed_to_the_bit(
    recipe_of, tmp_path, stop_after, monkeypatch
):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "WRITTEN_AT_ONCE", 12)  # several parts
    recipe, inside = recipe_of(**LATENT), []
    whole = train(recipe, tmp_path / "whole")
    save = module.save_if_due
    for looks in (3, 7, 15):  # among the tokens, or the scores, of the part behind the first
        stop = stop_after(10**9)

        def saved(*args, stop=stop, looks=looks):
            save(*args)
            stop.looks = min(stop.looks, looks)

        monkeypatch.setattr(module, "save_if_due", saved)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", stop=stop)
        newest = max((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
        saved_state = json.loads((newest / "state.json").read_text())
        assert saved_state["stage"] == "round-1-posterior"
        inside.append(len(saved_state["texts"]))
    monkeypatch.setattr(module, "save_if_due", save)
    again = train(recipe, tmp_path / "run")
    torch.set_num_threads(threads)
    assert inside == [4, 8, 12]
    assert again["perplexity"] == whole["perplexity"] and again["gates"] == whole["gates"]
    lines = [
        [
            line
            for line in map(json.loads, (tmp_path / name / "metrics.jsonl").open())
            if "posterior/bound" in line
        ]
        for name in ("whole", "run")
    ]
    for one, other in zip(*lines, strict=True):
        same = [key for key in one if key.startswith("posterior/")]
        assert [one[key] for key in same] == [other[key] for key in same]
        assert one["posterior/mean_log_prob"] <= one["posterior/best_log_prob"]
        assert one["posterior/bound"] <= one["posterior/best_log_prob"]
        assert 1 <= one["posterior/effective_samples"] <= 3
    assert [gate["phase"] for gate in whole["gates"]] == ["connector_sft", "estimator_sft"] * 2
    last = max((tmp_path / "whole" / "checkpoints").glob("*-round-2-posterior"))
    saved = CheckpointState.model_validate_json((last / "state.json").read_text())
    assert len(saved.posterior) == 2 * len({index for index, _ in saved.posterior}) > 30


def test_each_role_is_trained_on_the_rows_of_its_source(cold, monkeypatch):
    context, state = cold
    seen = []
    monkeypatch.setattr("coevolve.training.phases.sft", lambda *args, **_: seen.append(args[5]))
    settings = dict.fromkeys(
        ("connector_sft", "estimator_sft"), context.recipe.cold_start.estimator
    )
    context = replace(context, recipe=context.recipe.model_copy(update=settings))
    state = replace(state, posterior=[(2, "[Features] kindness")], chosen=[1])
    render = context.estimator.renderer

    def rows(name, on):
        PHASES[name].run(context, state, ScheduledPhase(1, Phase.model_validate(name), name, on=on))
        return [render.decode(list(row.response)) for row in seen.pop()]

    assert rows("connector_sft", None) == rows("connector_sft", "traces")
    assert len(rows("connector_sft", None)) == len(context.train)
    assert rows("connector_sft", "posterior") == ["[Features] kindness"]
    assert rows("estimator_sft", None) == [context.train[1].golden_response]
    assert rows("estimator_sft", "posterior") == [context.train[2].golden_response]


@pytest.mark.parametrize(
    ("phases", "sources"),
    [
        (["posterior", "connector_sft", "estimator_sft"], ["posterior", "posterior"]),
        (["posterior", "connector_sft", "refresh", "estimator_sft"], ["posterior", "refreshed"]),
        (["refresh", "posterior", "estimator_sft", "connector_sft"], ["posterior", "posterior"]),
        (["connector_sft", "refresh", "estimator_sft"], ["traces", "refreshed"]),
        (["posterior", {"role": "connector", "kind": "sft", "on": "traces"}], ["traces"]),
    ],
)
def test_sft_is_on_what_was_drawn_before_it(recipe_of, phases, sources):
    recipe = recipe_of(connector_sft=LATENT["connector_sft"], rounds={"count": 1, "phases": phases})
    assert [x.on for x in scheduled_phases(recipe) if x.phase.kind == "sft"] == sources


SFT_ON = {"role": "connector", "kind": "sft", "on": "posterior"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rounds": {"count": 1, "phases": [SFT_ON]}},
            "connector_sft trains on a posterior sample; put",
        ),
        ({"rounds": {"count": 2, "phases": [SFT_ON, "posterior"]}}, "put posterior before it"),
        (
            {"rounds": {"count": 2, "phases": [{"kind": "posterior", "every": 2}, SFT_ON]}},
            "put posterior before it",
        ),
        (
            {"rounds": {"count": 1, "phases": [{"kind": "refresh", "on": "traces"}]}},
            "on is for kind sft",
        ),
        (
            {"rounds": {"count": 1, "phases": [{"kind": "posterior", "role": "estimator"}]}},
            "leave role",
        ),
        ({"posterior": {"samples": 1}}, "posterior.samples"),
        ({"posterior": {"proposal": "oracle"}}, "posterior.proposal"),
    ],
)
def test_what_cannot_be_drawn_is_said_by_the_recipe(recipe_of, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(connector_sft=LATENT["connector_sft"], **changes)


@pytest.mark.parametrize("proposal", ["connector_with_answer", "mixture"])
def test_a_proposal_that_sees_the_answer_needs_words_for_it(recipe_of, tmp_path, proposal):
    recipe = recipe_of(**{**LATENT, "posterior": {"proposal": proposal}})
    with pytest.raises(
        (PreflightError, RecipeError), match=r"the prompt set 'world' has none\. Use connector"
    ):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_from_before_has_no_sample():
    assert CheckpointState.model_fields["posterior"].get_default(call_default_factory=True) == []
