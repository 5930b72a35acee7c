"""Gain, control and leak on a real estimator that learned to use its features; words for figures
that are wrong.
"""

import math
import re
import typing

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from coevolve import ProbabilityEstimator
from coevolve.prompts import NO_REASONING, Renderer, prompt_set
from coevolve.recipe.rpm import Rpm, RpmRecipe
from coevolve.recipe.schema import Recipe
from coevolve.scoring.models import load_model, load_tokenizer
from coevolve.scoring.roles import ESTIMATOR, SeparateRoles
from coevolve.scoring.scores import Scores
from coevolve.training.diagnostics import RULES, derangement, diagnose, drift, warnings_in
from coevolve.worlds.corpus import world_corpus
from coevolve.worlds.tiny import write_tiny_base

COUNT = 24


@pytest.fixture(scope="module")
def corpus():
    return list(world_corpus(0, train=COUNT, test=2).require("IDTrain"))


@pytest.fixture(scope="module")
def examples(corpus):
    """All the same x, so that only the features can tell one response from another."""
    return [corpus[0]] * COUNT


@pytest.fixture(scope="module")
def responses(corpus):
    return [example.golden_response for example in corpus]


@pytest.fixture(scope="module")
def reasoning(responses):
    """Half of the response, backwards."""
    return [f"[Connections] so [Features] {' '.join(text.split()[::-2])}" for text in responses]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    base = write_tiny_base(tmp_path_factory.mktemp("base"), seed=0, hidden=32, layers=1, heads=2)
    roles = SeparateRoles.create(load_model(str(base)), keep_base=False)
    return ProbabilityEstimator(
        roles, Renderer(prompt_set("world"), load_tokenizer(str(base))), max_new_tokens=8
    )


@pytest.fixture(scope="module")
def trained(untrained, examples, responses, reasoning):
    """As `untrained`, after some steps on x -> y with and without features. Returns it with the
    scores from before.
    """
    before = untrained.log_prob(examples, responses, reasoning)
    render, model = untrained.renderer, untrained.roles.module(ESTIMATOR)
    rows = [
        (render.prompt_ids(render.estimator(example, text)), render.response_ids(response))
        for texts in (reasoning, [NO_REASONING] * COUNT)
        for example, text, response in zip(examples, texts, responses, strict=True)
    ]
    ids, labels = (
        torch.full((len(rows), max(len(x) + len(y) for x, y in rows)), fill) for fill in (0, -100)
    )
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(
            input_ids=ids, labels=labels
        ).loss.backward()  # what is padded comes last, where no token sees it
        optimizer.step()
        optimizer.zero_grad()
    return untrained, before


def test_features_that_are_used_gain_and_those_of_another_example_hurt(
    trained, examples, responses, reasoning
):
    found = diagnose(trained[0], examples, responses, reasoning, seed=0)
    assert found["coevolve/reasoning_gain"] > 3 * found["coevolve/reasoning_gain_error"] > 0
    assert (
        found["coevolve/reasoning_gain_control"]
        < -3 * found["coevolve/reasoning_gain_control_error"]
        < 0
    )
    assert 0.3 < found["coevolve/leak"] < 0.7


def test_the_figures_are_what_their_names_say(trained, examples, responses, reasoning):
    estimator, _ = trained
    found = diagnose(estimator, examples, responses, reasoning, seed=3)

    def per_token(index, text):
        return estimator.log_prob([examples[index]], [responses[index]], [text]).mean[0]

    others = derangement(COUNT, 3)
    gains = [per_token(i, reasoning[i]) - per_token(i, "nothing of use") for i in range(COUNT)]
    controls = [
        per_token(i, reasoning[others[i]]) - per_token(i, "nothing of use") for i in range(COUNT)
    ]
    for name, values in [("reasoning_gain", gains), ("reasoning_gain_control", controls)]:
        assert found[f"coevolve/{name}"] == pytest.approx(np.mean(values), abs=1e-4)
        assert found[f"coevolve/{name}_error"] == pytest.approx(
            np.std(values, ddof=1) / math.sqrt(COUNT), abs=1e-4
        )


def test_reasonings_that_say_nothing_gain_nothing(trained, examples, responses):
    found = diagnose(trained[0], examples, responses, ["[Connections] only"] * COUNT, seed=0)
    assert set(found.values()) == {0.0}


def test_where_all_say_the_same_the_control_is_the_gain(trained, examples, responses):
    found = diagnose(trained[0], examples, responses, ["[Features] warm"] * COUNT, seed=0)
    assert found["coevolve/reasoning_gain"] == found["coevolve/reasoning_gain_control"] != 0


def test_the_leak_counts_words_with_repeats(trained, examples):
    responses = ["a a b", "c d"]
    reasoning = ["[Connections] a b [Features] A e", "[Features] d c more"]
    found = diagnose(trained[0], examples[:2], responses, reasoning, seed=0)
    assert found["coevolve/leak"] == pytest.approx((1 / 3 + 1) / 2)


def test_one_example_alone_has_no_other(trained, examples, responses, reasoning):
    with pytest.raises(ValueError, match="two examples or more"):
        diagnose(trained[0], examples[:1], responses[:1], reasoning[:1], seed=0)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 50])
def test_a_derangement_leaves_none_in_its_place(count):
    drawn = [derangement(count, seed) for seed in range(20)]
    for places in drawn:
        assert sorted(places) == list(range(count))
        assert all(place != index for index, place in enumerate(places))
    assert drawn == [derangement(count, seed) for seed in range(20)]
    assert count == 2 or len({tuple(places) for places in drawn}) > 1


def test_drift_is_how_far_the_mean_log_probs_moved(trained, examples, responses, reasoning):
    scores = Scores(np.array([-4.0, -9.0]), np.array([2, 3]))
    moved = Scores(np.array([-3.0, -15.0]), np.array([2, 3]))
    assert drift(scores, scores) == {"coevolve/drift": 0, "coevolve/drift_signed": 0}
    assert drift(scores, moved) == {"coevolve/drift": 1.25, "coevolve/drift_signed": -0.75}
    assert drift(moved, scores) == {"coevolve/drift": 1.25, "coevolve/drift_signed": 0.75}
    with pytest.raises(ValueError, match="same responses"):
        drift(scores, Scores(scores.sum, np.array([2, 4])))

    estimator, before = trained
    after = estimator.log_prob(examples, responses, reasoning)
    assert drift(before, after)["coevolve/drift_signed"] > 0.5


GOOD = {
    "connector/frac_reward_zero_std": 0.5,
    "connector/completions/clipped_ratio": 0.3,
    "connector/unparsable_completions": 0.3,
    "connector/entropy": 0.05,
    "connector/sampling/sampling_logp_difference/mean": 0.1,
    "connector/loss": 0.1,
    "estimator/frac_reward_zero_std": 0.0,
    "estimator/completions/clipped_ratio": 0.0,
    "estimator/entropy": 2.0,
    "coevolve/reasoning_gain": 0.01,
    "coevolve/reasoning_gain_control": -0.01,
    "coevolve/content_share": 0.5,
    "coevolve/leak": 0.9,
    "coevolve/drift": 1.0,
    "coevolve/phase": "connector_rl",
    "connector/rewards/likelihood/mean": math.nan,
}
BAD = {
    "connector/frac_reward_zero_std": (0.51, "51% of the connector's groups"),
    "connector/completions/clipped_ratio": (0.31, "connector_rl.max_completion_length"),
    "connector/unparsable_completions": (0.31, "no core features"),
    "connector/entropy": (0.049, "connector_rl.temperature"),
    "connector/sampling/sampling_logp_difference/mean": (0.11, "0.110 nats per token from what"),
    "connector/loss": (math.nan, "diverged"),
    "estimator/frac_reward_zero_std": (1.0, "100% of the estimator's groups"),
    "estimator/completions/clipped_ratio": (0.5, "estimator_rl.max_completion_length"),
    "estimator/entropy": (0, "estimator_rl.temperature"),
    "coevolve/reasoning_gain": (0.0, "no more likely"),
    "coevolve/reasoning_gain_control": (0.0, "another example does not hurt"),
    "coevolve/content_share": (0.49, "cold_start.connector"),
    "coevolve/leak": (0.91, "91% of the responses' words"),
    "coevolve/drift": (1.01, "1.01 nats per token"),
}


def test_nothing_is_said_where_nothing_is_wrong():
    assert warnings_in(GOOD) == []
    assert warnings_in({}) == []


@pytest.mark.parametrize("name", BAD)
def test_a_figure_that_is_wrong_is_said_in_words(name):
    value, words = BAD[name]
    (said,) = warnings_in({**GOOD, name: value})
    assert words in said and "Try" in said and "{" not in said


def test_a_role_playing_models_warnings_name_its_own_fields():
    recipe = RpmRecipe.model_construct(rpm=Rpm.model_construct(method="grpo"))
    (said,) = warnings_in({"connector/entropy": 0.01}, recipe.rl_field("connector"))
    assert "Try a higher rpm.grpo.temperature" in said and "connector_rl" not in said


def test_the_fields_that_warnings_name_are_in_the_recipe():
    named = set()
    for name, rule in RULES.items():
        role = name.partition("/")[0]
        text = rule.words.format(value=0.5, role=role, rl=f"{role}_rl")
        named.update(re.findall(r"\b(?:(?:cold_start|traces|\w+_rl|\w+_sft)(?:\.\w+)*)", text))
    assert len(named) > 10
    for path in named:
        section = Recipe
        for part in path.split("."):
            assert part in section.model_fields, f"{path}: the recipe has no {part}"
            kinds = [
                section.model_fields[part].annotation,
                *typing.get_args(section.model_fields[part].annotation),
            ]
            section = next(
                (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)),
                None,
            )
