"""Exact truth against brute force over all contexts, against sampling, and against what must hold
by construction.
"""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest

from coevolve.errors import DataError
from coevolve.information.discrete import entropy, jensen_shannon
from coevolve.worlds.language import (
    FACTORS,
    INPUT_WORDS,
    RESPONSE_VOCABULARY,
    SLOTS,
    parse_all,
    parse_responses,
)
from coevolve.worlds.policies import Policy
from coevolve.worlds.role_players import OTHER_CODE, rare_values, role_players
from coevolve.worlds.truth import (
    RESPONSE_TOKENS,
    emi,
    emid,
    information,
    plan_distribution,
    readable_information,
    response_distribution,
)
from coevolve.worlds.world import World, WorldSpec


@pytest.fixture(scope="module")
def world():
    return World.draw(WorldSpec(seed=1))


@pytest.fixture(scope="module")
def shifted(world):
    return world.shifted("all", seed=1)


@pytest.fixture(scope="module")
def policies(world):
    return role_players(world)


def every_context(world):
    """All contexts as flat arrays, and their probabilities: nothing shared with `truth`."""
    grids = np.meshgrid(*(np.arange(len(words)) for words in INPUT_WORDS.values()), indexing="ij")
    inputs = {name: grid.ravel() for name, grid in zip(INPUT_WORDS, grids, strict=True)}
    weights = [
        world.factors[factor][tuple(inputs[name] for name in names)]
        for factor, names in FACTORS.items()
    ]
    return inputs, reduce(np.multiply, weights)


@pytest.mark.parametrize(
    "name",
    [
        "perfect",
        "ignores_user",
        "unsure_of_everything",
        "misinformed",
        "shuffled",
        "copies_context",
    ],
)
def test_response_distribution_is_the_sum_over_every_context(world, policies, name):
    policy = policies[name]
    inputs, weights = every_context(world)
    manner, *features = policy.plan(inputs)
    exact, emissions = response_distribution(world, policy), policy.slot_emissions()
    assert exact.shape == (len(RESPONSE_VOCABULARY),) * SLOTS
    assert exact.sum() == pytest.approx(1)
    for words in np.random.default_rng(0).integers(0, len(RESPONSE_VOCABULARY), size=(4, SLOTS)):
        given_x = [emissions[slot, manner, features[slot], words[slot]] for slot in range(SLOTS)]
        assert exact[tuple(words)] == pytest.approx(
            weights @ reduce(np.multiply, given_x), rel=1e-9
        )


@pytest.mark.parametrize("name", ["perfect", "noise_0.4", "unsure_of_user", "shuffled"])
def test_entropies_are_the_means_of_sampled_log_probabilities(world, policies, name):
    policy, rng = policies[name], np.random.default_rng(2)
    examples = world.sample(4000, rng, subset="ID", prefix="x")
    responses = policy.respond(examples, rng)
    given_x = policy.log_prob(examples, responses)
    words = parse_responses(examples, responses)
    marginal = np.log(response_distribution(world, policy)[tuple(words.T)])
    exact = information(world, policy)
    for logs, expected in (
        (given_x, exact.conditional_entropy),
        (marginal, exact.response_entropy),
    ):
        assert -logs.mean() == pytest.approx(expected, abs=5 * logs.std() / np.sqrt(len(logs)))
    assert exact.perplexity_floor == pytest.approx(
        np.exp(exact.conditional_entropy / RESPONSE_TOKENS)
    )


def test_information_of_the_plan_is_information_of_the_context(world):
    """For the first slot alone, I(plan; Y_1) by the joint matrix equals H(Y_1) - H(Y_1 | plan)."""
    marginal = plan_distribution(world, world.golden).sum(
        axis=tuple(range(2, SLOTS + 1))
    )  # (manner, feature)
    joint = (marginal[..., None] * world.emission[0]).reshape(-1, len(RESPONSE_VOCABULARY))
    first_word = response_distribution(world, world.golden).sum(axis=tuple(range(1, SLOTS)))
    np.testing.assert_allclose(joint.sum(axis=0), first_word)
    separate = entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))
    assert 0 < separate - entropy(joint) < information(world).mutual_information


def test_emi_of_policies_is_what_their_design_says(world, shifted, policies):
    exact = {name: emi(world, policy) for name, policy in policies.items()}
    assert exact["perfect"] == 0
    assert exact["shuffled"] == pytest.approx(0, abs=1e-9)
    assert 0 > exact["noise_0.15"] > exact["noise_0.4"] > exact["noise_0.8"]
    assert exact["temperature_0.5"] > 0 > exact["temperature_2"]
    assert all(
        exact[f"ignores_{factor}"] < 0 and exact[f"unsure_of_{factor}"] < 0 for factor in FACTORS
    )
    assert emid(world, shifted, policies["perfect"]) == 0
    assert information(world, world.golden.noisy(1.0)).mutual_information == pytest.approx(
        0, abs=1e-9
    )


def test_a_policy_that_ignores_everything_says_nothing_about_the_context(world, policies):
    assert information(world, policies["ignores_everything"]).mutual_information == pytest.approx(
        0, abs=1e-9
    )


def test_a_policy_that_copies_the_context_says_more_about_it_than_an_answer_does(world, policies):
    assert emi(world, policies["copies_context"]) > 0.2
    inputs = parse_all(world.sample(30, np.random.default_rng(5), subset="ID", prefix="x"))
    _, *says = policies["copies_context"].plan(inputs)
    for values, name in zip(
        says, ("culture", "interest", "occupation", "topic_1", "intent"), strict=True
    ):
        np.testing.assert_array_equal(values, inputs[name])


@pytest.mark.parametrize(
    "name", ["perfect", "noise_0.15", "unsure_of_user", "ignores_character", "shuffled"]
)
def test_readable_information_is_the_mean_of_sampled_log_ratios(world, policies, name):
    policy, rng = policies[name], np.random.default_rng(6)
    examples = world.sample(4000, rng, subset="ID", prefix="x")
    responses = policy.respond(examples, rng)
    words = parse_responses(examples, responses)
    marginal = np.log(response_distribution(world, world.golden)[tuple(words.T)])
    ratios = world.golden.log_prob(examples, responses) - marginal
    exact = readable_information(world, policy)
    assert ratios.mean() == pytest.approx(exact, abs=5 * ratios.std() / np.sqrt(4000))
    assert exact <= information(world, policy).mutual_information + 1e-9


def test_what_is_readable_is_all_of_golden_information_and_least_of_another_code(world, policies):
    assert readable_information(world, world.golden) == pytest.approx(
        information(world).mutual_information
    )
    for name, policy in policies.items():
        lost = information(world, policy).mutual_information - readable_information(world, policy)
        if name.startswith(OTHER_CODE):
            assert lost > 2  # surely said, and not what golden responses say
        else:
            assert lost >= -1e-9


def test_the_policies_true_values_cover_a_wide_range(world, policies):
    of_golden = information(world).mutual_information
    emis = [
        information(world, policy).mutual_information - of_golden for policy in policies.values()
    ]
    assert len(policies) >= 18
    assert min(emis) < -5 and max(emis) > 0.4 and np.std(emis) > 1.5


def test_a_policy_unsure_of_a_factor_fails_when_that_factor_shifts_to_its_rare_values(world):
    for factor in FACTORS:
        name, rare = next(iter(rare_values(world, factor).items()))
        weights = np.where(rare, 20.0, 1.0)
        joint = world.factors[factor]
        moved = joint * weights.reshape(-1, *(1,) * (joint.ndim - 1))
        there = replace(world, factors={**world.factors, factor: moved / moved.sum()})
        policy = role_players(world)[f"unsure_of_{factor}"]
        assert name in policy.unsure
        assert emid(world, there, policy) > 0.5


def test_divergences_name_the_factor_that_shifted(world):
    for what in FACTORS:
        factors = world.shifted(what, seed=1).factors
        moved = {x for x in FACTORS if jensen_shannon(world.factors[x], factors[x]) > 0}
        assert moved == {what}


def test_worlds_differ_widely_in_information_and_in_shift():
    """A ranking can only be tested where the true values differ: over settings, 2 to 6 nats and
    more.
    """
    informations, emids = [], []
    for sharpness in (0.5, 0.8, 0.95):
        for skew in (0.4, 1.6):
            world = World.draw(WorldSpec(sharpness=sharpness, skew=skew))
            shifted = world.shifted("all", seed=0)
            informations.append(information(world).mutual_information)
            policies = role_players(world)
            emids += [
                emid(world, shifted, policies[name])
                for name in ("ignores_character", "unsure_of_everything")
            ]
    assert min(informations) < 2.2 and max(informations) > 6
    assert min(emids) < -0.2 and max(emids) > 1.5 and np.std(emids) > 0.3


def test_log_prob_is_finite_for_any_response_of_any_policy(world, policies):
    rng = np.random.default_rng(3)
    examples = world.sample(50, rng, subset="ID", prefix="x")
    for policy in policies.values():
        assert np.isfinite(
            policy.log_prob(examples, policies["shuffled"].respond(examples, rng))
        ).all()


def test_ignored_inputs_do_not_change_what_a_policy_says(world, policies):
    inputs = parse_all(world.sample(50, np.random.default_rng(4), subset="ID", prefix="x"))
    policy = policies["ignores_character"]
    other = {
        **inputs,
        "style": (inputs["style"] + 1) % 5,
        "occupation": (inputs["occupation"] + 2) % 5,
    }
    for ours, theirs in zip(policy.plan(inputs), policy.plan(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    changed = [
        np.array_equal(a, b)
        for a, b in zip(world.golden.plan(inputs), world.golden.plan(other), strict=True)
    ]
    assert not all(changed)


def test_policies_that_cannot_be_are_refused(world):
    golden = world.golden
    with pytest.raises(DataError, match="unknown input 'mood'"):
        replace(golden, assumed={"mood": 1})
    with pytest.raises(DataError, match=r"expresses is .*accepted: 5 of culture"):
        replace(golden, expresses=("language",) * 5)
    with pytest.raises(DataError, match="accepted is a permutation"):
        replace(golden, order=(0, 0, 1, 2, 3))
    with pytest.raises(DataError, match=r"noise is 1\.5"):
        golden.noisy(1.5)
    with pytest.raises(DataError, match="temperature is 0"):
        golden.tempered(0)
    with pytest.raises(DataError, match="emission is"):
        Policy("cut", golden.tables, golden.emission[1:])
    unsure = golden.unsure_of({"topic_1": np.array([True] * 5)}, 0.5)
    with pytest.raises(DataError, match="unsure of topic_1 already"):
        unsure.unsure_of({"topic_1": np.array([True] * 5)}, 0.5)
