"""A synthetic world as a corpus: IDTrain with the teacher's traces, a test split per shift."""

from dataclasses import replace

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, TRAIN_SPLIT, Corpus
from coevolve.worlds.world import World, WorldSpec


def world_of(seed: int) -> World:
    """The in-distribution world P of a seed."""
    return World.draw(WorldSpec(seed=seed))


def worlds_by_split(seed: int, *, strength: float = 1.0) -> dict[str, World]:
    """Split -> the world that its examples are drawn from."""
    world = world_of(seed)
    return {
        split: world if shift is None else world.shifted(shift, seed, strength)
        for split, shift in SHIFT_OF_SPLIT.items()
    }


def world_corpus(seed: int, *, train: int, test: int, strength: float = 1.0) -> Corpus:
    """`train` examples in IDTrain, each with the teacher's trace, and `test` in each test split."""
    splits = {}
    for index, (split, world) in enumerate(worlds_by_split(seed, strength=strength).items()):
        rng = np.random.default_rng([seed, index])
        subset = SHIFT_OF_SPLIT[split] or split
        examples = world.sample(
            train if split == TRAIN_SPLIT else test, rng, subset=subset, prefix=split
        )
        if split == TRAIN_SPLIT:
            examples = [replace(x, trace=world.trace(x, teacher=True, rng=rng)) for x in examples]
        splits[split] = tuple(examples)
    return Corpus(splits=splits, source=f"synthetic world {seed}")
