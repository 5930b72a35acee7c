"""What a model says by enumeration: a policy that is written as a model has the EMI that `truth`
finds.
"""

from collections import defaultdict
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen3Config

from coevolve.chat.local import LocalChat, load_renderer
from coevolve.errors import DataError
from coevolve.information.discrete import entropy
from coevolve.prompts import prompt_set
from coevolve.prompts.play import WORLD
from coevolve.scoring.ways import VERDICT, Ways
from coevolve.worlds.corpus import worlds_by_split
from coevolve.worlds.enumeration import MISSED, Conditional, conditional
from coevolve.worlds.language import (
    FACTORS,
    INPUT_WORDS,
    RESPONSE_VOCABULARY,
    SLOTS,
    parse,
)
from coevolve.worlds.role_players import role_players
from coevolve.worlds.tiny import write_tiny_base
from coevolve.worlds.truth import emi, information, plan_distribution

ROOM = SLOTS + 2


class Tabular(torch.nn.Module):
    """A causal language model that looks its next word up in a policy's tables, and keeps the
    tokens that it has read in its cache, as keys.
    """

    def __init__(self, policy, tokenizer, astray=0.0):
        super().__init__()
        self.config = Qwen3Config(num_hidden_layers=1, vocab_size=len(tokenizer))
        self.policy, self.tokenizer, self.astray = policy, tokenizer, astray
        self.words = [tokenizer.convert_tokens_to_ids(word) for word in RESPONSE_VOCABULARY]
        self.table = torch.tensor(policy.slot_emissions())
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.name_or_path, self.plans = "tabular", {}

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, use_cache=True, logits_to_keep=1,
        past_key_values=None,
    ):  # fmt: skip
        keys = input_ids[:, None, :, None].float()
        read, _ = past_key_values.update(keys, keys, 0)
        logits = torch.full((len(read), 1, self.config.vocab_size), -torch.inf)
        for row, ids in enumerate(read[:, 0, :, 0].long().tolist()):
            end = ids.index(self.tokenizer.convert_tokens_to_ids("assistant")) + 1
            count, plan = len(ids) - end, self.plan(tuple(ids[:end]))
            if count == SLOTS:
                logits[row, 0, self.tokenizer.eos_token_id] = 0.0
                continue
            probabilities = self.table[count, plan[0], plan[1 + count]] * (1 - self.astray)
            logits[row, 0, self.words] = probabilities.log().float()
            if self.astray:
                logits[row, 0, self.tokenizer.unk_token_id] = np.log(self.astray)
        return SimpleNamespace(logits=logits)

    def plan(self, prompt):
        if prompt not in self.plans:
            self.plans[prompt] = self.read(prompt)
        return self.plans[prompt]

    def read(self, prompt):
        user, character, dialogue = self.tokenizer.decode(prompt).split(" | ")
        words = [*user.split()[2:], *character.split(), *dialogue.split()[:5:2]]
        names = [name for factor in FACTORS.values() for name in factor]
        places = [INPUT_WORDS[x].index(y) for x, y in zip(names, words, strict=True)]
        inputs = {x: np.array([y]) for x, y in zip(names, places, strict=True)}
        return [int(x[0]) for x in self.policy.plan(inputs)]


@pytest.fixture(scope="module")
def worlds():
    return worlds_by_split(3, hops="one")


@pytest.fixture(scope="module")
def chat_of(tmp_path_factory):
    folder = write_tiny_base(tmp_path_factory.mktemp("tiny"), seed=0)

    def chat(policy, astray=0.0, **options):
        renderer = load_renderer(str(folder), prompt_set("world"))
        model = Tabular(policy, renderer.tokenizer, astray)
        model.__dict__[VERDICT] = Ways(generates="in batches")
        options = {"max_new_tokens": ROOM, "batch_size": 8, "temperature": 1.0, **options}
        return LocalChat(model, renderer, **options)

    return chat


def few(world):
    """The world with 24 of its contexts alone."""
    sizes = {"user": 4, "character": 2, "dialogue": 3}
    factors = {
        name: np.where(joint >= np.sort(joint, axis=None)[-sizes[name]], joint, 0)
        for name, joint in world.factors.items()
    }
    return replace(world, factors={name: joint / joint.sum() for name, joint in factors.items()})


@pytest.mark.parametrize(
    ("name", "least", "off"),
    [
        ("perfect", 1e-5, 0.02),
        ("temperature_0.5", 1e-8, 1e-4),
        ("ignores_user", 1e-5, 0.02),
    ],
)
def test_a_policy_written_as_a_model_has_the_emi_that_truth_finds(
    name, least, off, worlds, chat_of
):
    home = few(worlds["IDTest"])
    joint = home.factors["user"] * np.linspace(1, 3, home.factors["user"].size).reshape(3, 5, 5)
    shifted = replace(home, factors={**home.factors, "user": joint / joint.sum()})
    policy = role_players(worlds["IDTest"])[name]
    theta = conditional(chat_of(policy), WORLD, home, least=least)
    for world in (home, shifted):
        found, expected = theta.exact(world), emi(world, policy)
        assert found.missed < off
        assert found.golden == information(world).mutual_information
        assert abs(found.emi - expected) <= found.within
        assert found.emi == pytest.approx(expected, abs=off)
        assert found.outside == pytest.approx(found.missed, abs=1e-9)


def test_other_words_are_outcomes_as_the_worlds_are(worlds, chat_of):
    """A word that goes astray, in any of five places, leaves the others to be read; greedily it
    never does. What is cut off is one outcome, and says nothing.
    """
    home = few(worlds["IDTest"])
    policy = role_players(home)["temperature_0.5"]
    found = conditional(chat_of(policy, astray=0.1), WORLD, home, least=1e-7).exact(home)
    assert found.outside == pytest.approx(1 - 0.9**SLOTS, abs=1e-3) and found.missed < 1e-3
    expected = information_astray(home, policy, 0.1)
    assert found.information == pytest.approx(expected, abs=2e-3)
    assert expected > 0.9**SLOTS * information(home, policy).mutual_information + 0.1
    greedy = conditional(chat_of(policy, astray=0.1, temperature=0.0), WORLD, home).exact(home)
    assert greedy.outside == greedy.missed == 0
    assert greedy.information == pytest.approx(entropy_of_plans(home, policy))
    cut_off = conditional(chat_of(policy, max_new_tokens=SLOTS), WORLD, home).exact(home)
    assert cut_off.outside == pytest.approx(1) and cut_off.information < 1e-4


def test_a_model_of_which_nothing_was_followed_may_say_all_or_nothing(worlds):
    for world in worlds.values():
        _, weights = world.contexts()
        every = np.arange(len(weights))
        nothing = Conditional(
            every, np.full_like(every, MISSED), np.ones(every.shape), every[:2] > 1
        )
        found = nothing.exact(world)
        assert 1 - 1e-9 < found.missed <= 1 and found.information == pytest.approx(0, abs=1e-9)
        assert found.within == pytest.approx(entropy(weights))


def information_astray(world, policy, astray):
    """I(X; Y) where every word is left out with a probability, summed over contexts and texts."""
    examples, weights = world.contexts()
    joint = defaultdict(float)
    for place, (example, weight) in enumerate(zip(examples, weights, strict=True)):
        plan = list(policy.plan(parse(example)))
        said = []
        for slot, emission in enumerate(policy.slot_emissions()):
            words = emission[plan[0], plan[1 + slot]]
            spoken = [
                ((word,), (1 - astray) * p)
                for word, p in zip(RESPONSE_VOCABULARY, words, strict=True)
                if p > 1e-7
            ]
            said.append([*spoken, ((), astray)])
        for parts in product(*said):
            text = sum((words for words, _ in parts), ())
            joint[place, text] += weight * np.prod([p for _, p in parts])
    marginal = defaultdict(float)
    for (_, text), mass in joint.items():
        marginal[text] += mass
    return entropy([*marginal.values()]) + entropy(weights) - entropy([*joint.values()])


def entropy_of_plans(world, policy):
    """H(Y) where each plan has the words that are likeliest by it, different ones for each."""
    return entropy(plan_distribution(world, policy))


def test_a_world_of_several_hops_has_too_many_contexts(chat_of):
    world = worlds_by_split(3)["IDTest"]
    with pytest.raises(DataError, match=r"has 234375 contexts; .*data.world.hops=one"):
        conditional(chat_of(world.golden), WORLD, world)
