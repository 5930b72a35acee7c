"""What the estimator is trained to do without and with: reasoning dropout, the direct start, and
reasonings of connectors that were not trained on the examples.
"""

import json
from dataclasses import replace

import pytest
import torch

from coevolve.errors import RecipeError
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR
from coevolve.training import baselines, cold_start, loop, phases
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.run import train
from coevolve.training.state import RunState

PLACES = 2000
CROSS = {"cross_fit": 2, "samples": 2, "temperature": 1.0}
SFT = {"steps": 3, "learning_rate": 2e-3, "train_batch_size": 8}


@pytest.fixture(scope="module")
def prepared(recipe_of, build, tmp_path_factory):
    """A function from changes to a recipe to a context and the state before anything is trained."""

    def prepare(**changes):
        context, state = build(recipe_of(**changes), tmp_path_factory.mktemp("cold"))
        for role, weights in state.kept["untrained"].items():
            state.load(context.roles, role, weights)
        return context, RunState.begin(context.roles, context.traces)

    return prepare


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_row_is_met_without_reasoning_now_and_then(prepared):
    context, _ = prepared()
    assert context.recipe.p_none == 0.3
    rows, count = phases.rows_of_estimator(context, "estimator_sft", context.traces), 40
    assert len(rows) == count
    order = [place % count for place in range(PLACES)]
    met, numbers = rows.visited(order, 0)
    render = context.estimator.renderer
    without = [
        place
        for place, index in enumerate(order)
        if met[numbers[place]].prompt
        == render.prompt_ids(render.estimator(context.train[index], None))
    ]
    error = (0.3 * 0.7 / PLACES) ** 0.5
    assert len(without) / PLACES == pytest.approx(0.3, abs=3 * error)
    # No row always, none never; and the rows' visits are independent of one another.
    shares = [sum(place % count == index for place in without) / 50 for index in range(count)]
    assert min(shares) > 0 and max(shares) < 0.7
    # It is the same from the middle on, and other for another training.
    later, at = rows.visited(order[700:], 700)
    assert [later[number] for number in at] == [met[number] for number in numbers[700:]]
    other = phases.rows_of_estimator(context, "cold_estimator", context.traces)
    assert [other.form(index, place) for place, index in enumerate(order)] != [
        rows.form(index, place) for place, index in enumerate(order)
    ]


def test_several_reasonings_are_met_pass_after_pass(prepared):
    context, _ = prepared(p_none=0.0)
    several = [[f"{trace} one", f"{trace} two"] for trace in context.traces]
    rows, render = phases.rows_of_estimator(context, "x", several), context.estimator.renderer
    order = [*range(40), *reversed(range(40)), *range(40)]
    met, numbers = rows.visited(order, 0)
    for place, index in enumerate(order):
        prompt = render.estimator(context.train[index], several[index][place // 40 % 2])
        assert met[numbers[place]].prompt == render.prompt_ids(prompt)


def test_with_dropout_alone_the_cold_start_is_that_of_the_baseline(prepared):
    """What is dropped is asked in the baseline's words, of the same row."""
    context, state = prepared(p_none=1 - 1e-12)
    cold_start.estimator(context, state)
    dropped = state.pair[ESTIMATOR]
    context, state = prepared(p_none=0.3)
    state.load(context.roles, ESTIMATOR, state.kept["untrained"][ESTIMATOR])
    rows = phases.estimator_rows(context.estimator, context.train, [None] * len(context.train))
    settings = context.recipe.cold_start.estimator
    phases.sft(context, state, ESTIMATOR, "cold_estimator", "x", rows, settings, carry=False)
    assert same(dropped, state.pair[ESTIMATOR])


def test_the_golden_term_drops_reasoning_too(recipe_of, build, tmp_path, monkeypatch):
    """With a reward that is the same for all, only the golden responses teach."""
    rl = {"golden_nll_weight": 1.0, "rewards": {"judge": "overlap", "match": 0.0, "format": 1e-9}}
    context, state = build(recipe_of(estimator_rl=rl), tmp_path)
    begun = state.pair[ESTIMATOR]
    [scheduled] = [
        one for one in loop.scheduled_phases(context.recipe) if one.phase.name == "estimator_rl"
    ]

    def trained(p_none):
        changed = replace(context, recipe=recipe_of(estimator_rl=rl, p_none=p_none))
        state = RunState.begin(context.roles, context.traces)
        state.load(context.roles, ESTIMATOR, begun)
        phases.estimator_rl(changed, state, scheduled)
        return state.pair[ESTIMATOR]

    dropped, kept = trained(1 - 1e-12), trained(0.0)
    nothing = [None] * len(context.train)
    rows = phases.estimator_rows(context.estimator, context.train, nothing)
    monkeypatch.setattr(phases, "rows_of_estimator", lambda *others: rows)
    assert same(dropped, trained(0.0)) and not same(dropped, kept)


def test_a_connector_writes_for_what_it_was_not_trained_on(prepared, monkeypatch):
    settings = {**CROSS, "cross_fit": 3, "trace_share": 0.25}
    sections = {"connector": SFT, "estimator": SFT, "refresh": settings}
    context, state = prepared(cold_start=sections)
    by_id = {example.sample_id: index for index, example in enumerate(context.train)}
    trained, written = [], []
    rows, reason = phases.connector_rows, context.distributed.reason

    def note_rows(estimator, examples, traces):
        trained.append({by_id[example.sample_id] for example in examples})
        assert traces == [context.traces[by_id[example.sample_id]] for example in examples]
        return rows(estimator, examples, traces)

    def note_written(examples, **options):
        written.append({by_id[example.sample_id] for example in examples})
        return reason(examples, **options)

    monkeypatch.setattr(cold_start, "connector_rows", note_rows)
    monkeypatch.setattr(context.distributed, "reason", note_written)
    weights = []
    for part in range(3):
        cold_start.cross_fit(context, state, part)
        weights.append(state.pair[CONNECTOR])
        cold_start.cross_write(context, state, part)
    assert state.texts == []
    first, second = written[::2], written[1::2]
    assert first == second  # two samples
    for part in range(3):
        assert not trained[part] & first[part]
        assert trained[part] | set(cold_start.parts_of(context)[part]) == set(range(40))
    kept = set(range(40)) - set.union(*first)
    assert sum(map(len, first)) + len(kept) == 40 and 3 <= len(kept) <= 18
    for index, reasoning in enumerate(state.reasoning):
        if index in kept:
            assert reasoning == context.traces[index]
        else:
            assert len(reasoning) == 2
    assert any(one != other for one, other in (r for r in state.reasoning if len(r) == 2))
    assert not same(weights[0], weights[1])
    # Each begins from the same weights, not from the one before it.
    context, state = prepared(cold_start=sections)
    cold_start.cross_fit(context, state, 2)
    assert same(state.pair[CONNECTOR], weights[2])


SMALL = {
    "data": {"world": {"train": 24, "test": 3}, "validation": 6},
    "cold_start": {"connector": SFT, "estimator": SFT, "direct": SFT, "refresh": CROSS},
    "refresh": {"temperature": 1.0, "samples": 2},
    "connector_rl": {"steps": 1},
    "estimator_rl": {"steps": 2},
    "evaluation": {"marginal_samples": 0},
    "baselines": {"without_corl": True, "without_reasoning": True},
    "checkpoints": {"every_minutes": 1e-6},
}


def newest(folder):
    return max((folder / "checkpoints").glob("[0-9]*"))


def test_the_new_stages_resume_to_the_bit_and_the_baselines_are_trained_as_long(
    recipe_of, tmp_path, monkeypatch, stop_at_checkpoint
):
    monkeypatch.setattr(phases, "REFRESHED_AT_ONCE", 4)
    recipe = recipe_of(**SMALL)
    results = train(recipe, tmp_path / "whole")
    for name in (
        "cold-start-connector-2-step-1",
        "cold-start-connector-2-writes",
        "cold-start-direct-step-1",
        "cold-start-estimator-step-1",
    ):
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", stop=stop_at_checkpoint(tmp_path / "run", f"-{name}"))
        saved = json.loads((newest(tmp_path / "run") / "state.json").read_text())
        assert saved["stage"] == name.partition("-step")[0] and saved["stage"] not in saved["done"]
        # It was left in the middle of the writing.
        assert (0 < len(saved["texts"]) < 18) == name.endswith("writes")
    again = train(recipe, tmp_path / "run")
    assert again["perplexity"] == results["perplexity"] and again["gates"] == results["gates"]
    final = [
        json.loads((newest(tmp_path / name) / "state.json").read_text())
        for name in ("whole", "run")
    ]
    for name in ("reasoning", "cold_reasoning", "progress", "updates", "done"):
        assert final[0][name] == final[1][name]
    assert all(len(texts) == 2 for texts in final[0]["cold_reasoning"])
    # The estimator's updates, stage by stage: 3 direct, 3 cold, 3 of SFT, 2 of RL.
    progress = final[0]["progress"]
    own = ["cold_direct", "cold_estimator", "estimator_sft", "estimator_rl"]
    assert [progress[name] for name in own] == [3, 3, 3, 2]
    assert progress["without_corl"] == progress["without_reasoning"] == 5
    assert progress["cold_without_reasoning"] == 3


def test_the_baseline_without_reasoning_begins_with_the_same_direct_start(prepared):
    sections = {"connector": SFT, "estimator": SFT, "direct": SFT}
    context, state = prepared(cold_start=sections)
    cold_start.direct(context, state)
    started = state.pair[ESTIMATOR]
    assert not same(started, state.kept["untrained"][ESTIMATOR])
    cold_start.estimator(context, state)
    baselines.without_reasoning_cold(context, state)
    found = state.pair[ESTIMATOR]
    context, state = prepared(cold_start=sections)
    state.kept["direct"] = {ESTIMATOR: started}
    baselines.without_reasoning_cold(context, state)
    assert same(found, state.pair[ESTIMATOR])
    context, state = prepared(cold_start={**sections, "direct": None})
    baselines.without_reasoning_cold(context, state)
    assert not same(found, state.pair[ESTIMATOR])


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, "connector estimator"),
        ({"direct": SFT}, "connector direct estimator"),
        (
            {"refresh": CROSS, "direct": SFT},
            "connector-1 connector-1-writes connector-2 connector-2-writes connector direct "
            "estimator",
        ),
        (
            {"refresh": {**CROSS, "connector": "last"}},
            "connector-1 connector-1-writes connector-2 connector-2-writes estimator",
        ),
    ],
)
def test_the_stages_of_a_cold_start(prepared, changes, stages):
    context, _ = prepared(cold_start={"connector": SFT, "estimator": SFT, **changes})
    names = [stage.name for stage in loop.stages(context)]
    expected = [f"cold-start-{name}" for name in [*stages.split(), "gate"]]
    assert names[: len(expected)] == expected and names[len(expected)].startswith("round-1-")


def test_more_parts_than_examples_are_refused_at_the_start(recipe_of, tmp_path):
    sections = {"connector": SFT, "estimator": SFT, "refresh": {**CROSS, "cross_fit": 19}}
    recipe = recipe_of(**{**SMALL, "cold_start": sections})
    with pytest.raises(RecipeError, match=r"cold_start\.refresh\.cross_fit: found 19; 18 training"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
