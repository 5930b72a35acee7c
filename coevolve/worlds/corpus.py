"""A synthetic world as a corpus: IDTrain with the teacher's traces, a test split per shift."""

from dataclasses import replace

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, TRAIN_SPLIT, Corpus
from coevolve.worlds.world import Hops, World, WorldSpec

DRAWS = 6  # a stream of its own: the rows of an audit have 5, and are streams of [seed, 5, split]


def world_of(seed: int, hops: Hops = "several") -> World:
    """The in-distribution world P of a seed."""
    return World.draw(WorldSpec(seed=seed, hops=hops))


def worlds_by_split(
    seed: int, *, strength: float = 1.0, hops: Hops = "several"
) -> dict[str, World]:
    """Split -> the world that its examples are drawn from."""
    world = world_of(seed, hops)
    return {
        split: world if shift is None else world.shifted(shift, seed, strength)
        for split, shift in SHIFT_OF_SPLIT.items()
    }


def world_corpus(
    seed: int,
    *,
    train: int,
    test: int,
    strength: float = 1.0,
    hops: Hops = "several",
    draw: int = 0,
) -> Corpus:
    """`train` examples in IDTrain, each with the teacher's trace, and `test` in each test split.

    Another `draw` has other examples in IDTrain, and the same ones to test.
    """
    splits = {}
    worlds = worlds_by_split(seed, strength=strength, hops=hops)
    for index, (split, world) in enumerate(worlds.items()):
        redrawn = split == TRAIN_SPLIT and draw
        rng = np.random.default_rng([seed, index, DRAWS, draw] if redrawn else [seed, index])
        subset, count = SHIFT_OF_SPLIT[split] or split, train if split == TRAIN_SPLIT else test
        prefix = f"{split}-{draw}" if redrawn else split
        examples = world.sample(count, rng, subset=subset, prefix=prefix)
        if split == TRAIN_SPLIT:
            examples = [replace(x, trace=world.trace(x, teacher=True, rng=rng)) for x in examples]
        splits[split] = tuple(examples)
    return Corpus(splits=splits, source=f"synthetic world {seed}")
