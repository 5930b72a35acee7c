"""A corpus small enough to check by plain loops, and a probability model of responses in closed
form.
"""

import random

import numpy as np
import pytest

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example, Turn
from coevolve.scoring.scores import Scores

STOP = 0.25  # probability that a response ends after the words so far
UNIFORM = 0.3  # share of the uniform distribution in a word's probability


class UnigramEstimator:
    """q(y | x, r): each word is drawn from the words of x and r, or uniformly from the vocabulary.

    A distribution over all word sequences (it sums to 1), so that perplexity and information mean
    what they say.
    """

    def __init__(self, vocabulary: set[str]) -> None:
        self.vocabulary = vocabulary
        self.reasoned: list[str] = []  # sample_IDs in the order in which reasoning was asked for
        self.contexts: list[str] = []  # sample_IDs of the contexts given to be scored
        self.pairs = 0  # scored in all
        self.renderer = self  # its own tokeniser: a token per word, and the end

    def response_ids(self, response):
        return [*response.split(), "<end>"]

    def reason(self, examples, seed=None):
        self.reasoned += [example.sample_id for example in examples]
        rng = random.Random(seed)
        return [
            " ".join(self._chosen(sorted(set(x.user_persona.split())), seed, rng)) for x in examples
        ]

    def _chosen(self, words, seed, rng):
        return words if seed is None else [rng.choice(words)]

    def log_prob(self, example: Example, response: str, reasoning: str | None) -> float:
        """Nats per response, the end of it included."""
        given = reasoning or ""
        context = (
            f"{example.user_persona} {example.agent_character} {example.dialogue[-1].text} {given}"
        ).split()
        value = np.log(STOP)
        for word in response.split():
            drawn = (1 - UNIFORM) * context.count(word) / len(context) + UNIFORM / len(
                self.vocabulary
            )
            value += np.log((1 - STOP) * drawn)
        return float(value)

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        assert (
            pairs.shape[1] == 2
            and pairs[:, 0].max() < len(examples)
            and pairs[:, 1].max() < len(responses)
        )
        self.contexts += [example.sample_id for example in examples]
        self.pairs += len(pairs)
        values = [self.log_prob(examples[i], responses[j], reasoning[i]) for i, j in pairs]
        return Scores(np.array(values), np.array([len(responses[j].split()) + 1 for _, j in pairs]))


def make_example(sample_id: str, subset: str, persona: str, query: str, golden: str) -> Example:
    return Example(sample_id, subset, persona, "a friend", (Turn("user", query),), golden)


def vocabulary_of(corpus: Corpus) -> set[str]:
    return {
        word
        for example in corpus.examples
        for text in (
            example.user_persona,
            "a friend",
            example.dialogue[-1].text,
            example.golden_response,
        )
        for word in text.split()
    }


@pytest.fixture(autouse=True)
def two_are_enough(monkeypatch):
    """To say how sure a number is: the corpus here has no more in a subset."""
    monkeypatch.setattr("coevolve.information.uncertainty.LEAST", 2)


@pytest.fixture
def corpus() -> Corpus:
    rows = {
        "IDTrain": [("t1", "IDTrain", "tea", "hello", "tea then")],
        "IDTest": [
            ("i1", "mild", "likes tea", "what now", "tea now"),
            ("i2", "bold", "likes chess", "who wins", "chess wins again"),
            ("i3", "mild", "likes rain", "is it wet", "rain is wet"),
        ],
        "OOD1Test": [
            ("g1", "german", "mag tee", "was nun", "tee nun"),
            ("f1", "french", "aime le vin", "et puis", "le vin puis"),
            ("g2", "german", "mag regen", "was kommt", "regen kommt bald"),
            ("f2", "french", "aime la mer", "ou aller", "la mer"),
        ],
        "OOD3Test": [
            ("w1", "word_composition", "likes tea", "now what", "tea now"),
            ("w2", "word_composition", "likes chess", "wins who", "chess wins"),
        ],
    }
    return Corpus(
        {split: tuple(make_example(*row) for row in given) for split, given in rows.items()},
        "by hand",
    )


@pytest.fixture
def estimator(corpus) -> UnigramEstimator:
    return UnigramEstimator(vocabulary_of(corpus))


@pytest.fixture
def responses(corpus) -> dict[str, dict[str, str]]:
    """Two models' responses by sample_ID: one echoes the user,
    the other has read the persona only.
    """
    tests = [example for split in corpus.test_splits for example in corpus.splits[split]]
    return {
        "echo": {example.sample_id: example.dialogue[-1].text for example in tests},
        "persona": {example.sample_id: f"{example.user_persona} again" for example in tests},
    }
