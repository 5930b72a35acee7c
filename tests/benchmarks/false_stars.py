"""How many starred R-EMIDs are no loss: the true one below 0, or under 0.05 nats.

    python -m tests.benchmarks.false_stars

Many small worlds, each with a shift of the user, the character, the dialogue and of all at once;
R-EMID of role-playing models as `coevolve remid` gives it. Models that say what golden responses
say are read by the world's exact p(y | x), those that say something else by their own, for the
world's cannot see what they say (`coevolve/remid/README.md`).
"""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, TRAIN_SPLIT
from coevolve.data.example import Example
from coevolve.remid.evaluate import summarise
from coevolve.remid.measures import Measure
from coevolve.remid.pairs import negative_pairs
from coevolve.remid.results import SIGNIFICANT
from coevolve.remid.score import ScoredCorpus, ScoredSubset, Scoring
from coevolve.remid.subsets import Subset
from coevolve.scoring.scores import Scores
from coevolve.worlds import truth
from coevolve.worlds.audit import exact_matrix
from coevolve.worlds.corpus import worlds_by_split
from coevolve.worlds.policies import Policy
from coevolve.worlds.role_players import OTHER_CODE, role_players
from coevolve.worlds.world import World

LEAST_LOSS = 0.05
"""Nats per response: a smaller one is none that a star should stand on."""
MODELS = (
    *("perfect", "noise_0.15", "noise_0.4", "noise_0.8", "temperature_2"),
    *("unsure_of_user", "unsure_of_character", "unsure_of_dialogue", "unsure_of_everything"),
    *("ignores_user", "ignores_dialogue", "misinformed", "shuffled"),
)
SAME, OTHER = "golden words, read by p(y given x)", "own words, read by their own"


def scored_subset(
    split: str, world: World, readers: Mapping[str, tuple[Policy, Policy]], count: int, seed: int
) -> ScoredSubset:
    """Fresh examples of a world; `readers` are of each model what responds, and what reads it."""
    rng = np.random.default_rng([seed, *split.encode(), count])
    inputs, shift = world.sample_inputs(count, rng), SHIFT_OF_SPLIT[split]
    ids = [f"{split}-{index:06d}" for index in range(count)]
    pairs = negative_pairs(ids, "all", seed=seed, where=split)
    golden = world.golden
    matched: dict[str | None, Scores] = {}
    mismatched: dict[str | None, Scores] = {}
    tokens = np.array(truth.RESPONSE_TOKENS)
    of_golden: list[tuple[str | None, tuple[Policy, Policy]]] = [(None, (golden, golden))]
    for name, (policy, reader) in [*of_golden, *readers.items()]:
        matrix = exact_matrix(reader, inputs, policy.sample_words(inputs, rng))
        matched[name] = Scores(matrix.diagonal(), tokens)
        mismatched[name] = Scores(matrix[tuple(pairs.T)], tokens)
    examples = tuple(Example(name, split, "", "", (), None) for name in ids)
    return ScoredSubset(
        Subset(split, split, shift or split, shift, examples), pairs, matched, mismatched
    )


def losses(seed: int, count: int, form: str) -> list[tuple[bool, float, float]]:
    """(whether it says something else, Holm's p of no loss or 1 if none is measured, true R-EMID)
    of every model and shift.
    """
    worlds = worlds_by_split(seed)
    world = worlds.pop(TRAIN_SPLIT)
    policies = {name: policy for name, policy in role_players(world).items() if name in MODELS}
    other = {name: name.startswith(OTHER_CODE) for name in policies}
    readers = {name: (x, x if other[name] else world.golden) for name, x in policies.items()}
    parts = [scored_subset(split, one, readers, count, seed) for split, one in worlds.items()]
    scored = ScoredCorpus(Scoring("all", seed), parts, [], {name: {} for name in (None, *readers)})
    found = []
    for subset in summarise(scored, [Measure(form)]).shifted():
        for name, numbers in subset.models.items():
            exact = truth.emid(world, worlds[subset.split], policies[name])
            lost = numbers is not None and (numbers.remid or 0.0) > 0
            p = numbers.holm_p if numbers and lost and numbers.holm_p is not None else 1.0
            found.append((other[name], p, exact))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--form", default="calibrated")
    given = parser.parse_args(arguments)
    found = [x for seed in range(given.worlds) for x in losses(seed, given.examples, given.form)]
    other, p, exact = map(np.array, zip(*found, strict=True))
    print("| level | models | R-EMIDs | lost | starred | of the lost, % | false stars | % |")
    print("|" + " --- |" * 8)
    for level in dict.fromkeys((0.05, SIGNIFICANT)):
        for kind, chosen in ((SAME, ~other), (OTHER, other), ("all", other | ~other)):
            starred, lost = p[chosen] < level, exact[chosen] >= LEAST_LOSS
            false, right = int(np.sum(starred & ~lost)), np.mean(starred[lost])
            share = f"{100 * false / starred.sum():.1f}" if starred.any() else "-"
            counts = f"{lost.size} | {lost.sum()} | {starred.sum()} | {100 * right:.0f} | {false}"
            print(f"| {level:.0%} | {kind} | {counts} | {share} |")


if __name__ == "__main__":
    main()
