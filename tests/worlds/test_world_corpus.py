"""A world as a corpus: splits, tags, traces, and that the same seed gives the same examples."""

import numpy as np
import pytest

from coevolve.data.corpus import SHIFT_OF_SPLIT
from coevolve.worlds.corpus import world_corpus, world_of, worlds_by_split
from coevolve.worlds.language import FACTORS, parse_all


@pytest.fixture(scope="module")
def corpus():
    return world_corpus(2, train=300, test=400)


def test_splits_tags_and_traces(corpus):
    assert tuple(corpus.splits) == tuple(SHIFT_OF_SPLIT)
    for split, examples in corpus.splits.items():
        assert len(examples) == (300 if split == "IDTrain" else 400)
        assert {example.subset for example in examples} == {SHIFT_OF_SPLIT[split] or split}
        assert all((example.trace is not None) == (split == "IDTrain") for example in examples)
        assert all(example.golden_response for example in examples)
    ids = [example.sample_id for examples in corpus.splits.values() for example in examples]
    assert len(set(ids)) == len(ids)


def test_a_seed_names_one_corpus(corpus):
    assert world_corpus(2, train=300, test=400).fingerprint == corpus.fingerprint
    assert world_corpus(3, train=300, test=400).fingerprint != corpus.fingerprint


def test_each_split_is_drawn_from_the_world_that_its_name_says(corpus):
    worlds, home = worlds_by_split(2), world_of(2)
    for split, shift in SHIFT_OF_SPLIT.items():
        if shift is None:
            continue
        inputs = parse_all(corpus.splits[split])
        for factor, names in FACTORS.items():
            cells = tuple(inputs[name] for name in names)
            gain = np.log(worlds[split].factors[factor][cells]) - np.log(
                home.factors[factor][cells]
            )
            if shift in (factor, "all"):
                assert gain.mean() > 0.05  # an estimate of KL(Q || P)
            else:
                assert not gain.any()
