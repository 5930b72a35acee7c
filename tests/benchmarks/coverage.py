"""How often the intervals of R-EMI and R-EMID hold what they estimate, on samples of worlds.

    python -m tests.benchmarks.coverage

The exact p(y | x) of the world is q. An interval is of the estimate's expectation for so many
examples, here the mean over the replicates; the truth, which the form misses by its bias, is
another matter (`coevolve truth`). In a sharp world responses say 6 nats of their context, so that
with few examples nearly all of them reach the ceiling; in a blurred one they say 1 to 2 nats, as
those of real dialogues do. Prints a table of the coverage of 95 % intervals, the mean over models
and the lowest one's; `first order` is what a normal approximation by the standard error covers.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from coevolve.information.contrast import Contrast
from coevolve.information.emi import difference, emid
from coevolve.information.estimate import Estimate, mutual_information
from coevolve.information.uncertainty import LEVEL, Sure, standard_error
from coevolve.remid.measures import Measure
from coevolve.scoring.scores import Scores
from coevolve.worlds.audit import exact_matrix
from coevolve.worlds.language import Values
from coevolve.worlds.policies import Policy
from coevolve.worlds.role_players import role_players
from coevolve.worlds.truth import RESPONSE_TOKENS
from coevolve.worlds.world import World, WorldSpec

SHARPNESS = {"sharp": WorldSpec.sharpness, "blurred": 0.4}
MODELS = ("perfect", "noise_0.4", "unsure_of_user", "unsure_of_dialogue", "ignores_everything")
NORMAL = 1.96
LOSS = 0.1  # nats per response


def information(
    world: World, policy: Policy, inputs: Values, rng: np.random.Generator, form: str
) -> Estimate:
    """Of a policy's fresh responses, read by the world's p(y | x), nats per response."""
    matrix = exact_matrix(world.golden, inputs, policy.sample_words(inputs, rng))
    scores = Scores(matrix, np.array(RESPONSE_TOKENS))
    return mutual_information(Contrast.from_matrix(scores, "per_response"), form)


def estimates(
    world: World, policies: Mapping[str, Policy], count: int, rng: np.random.Generator, form: str
) -> dict[str, Estimate]:
    """Model -> R-EMI by `count` fresh examples, nats per response."""
    inputs = world.sample_inputs(count, rng)
    golden = information(world, world.golden, inputs, rng, form)
    every = {name: information(world, one, inputs, rng, form) for name, one in policies.items()}
    return {name: difference(one, golden) for name, one in every.items()}


def replicated(
    kind: str, seed: int, count: int, replicates: int, form: str
) -> Iterator[tuple[dict[str, Estimate], dict[str, Estimate]]]:
    """(in distribution, under a shift of the user) of fresh examples, model by model."""
    world = World.draw(WorldSpec(seed, sharpness=SHARPNESS[kind]))
    shifted, known = world.shifted("user", seed), role_players(world)
    policies = {name: known[name] for name in MODELS}
    for replicate in range(replicates):
        rng = np.random.default_rng([seed, count, replicate])
        p, q = (estimates(one, policies, count, rng, form) for one in (world, shifted))
        yield p, q


def coverage(
    kind: str, seed: int, count: int, replicates: int, form: str
) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
    """Of R-EMI and of R-EMID (name, coverage of each model's intervals, that to first order, median
    width of the intervals).
    """
    found: dict[str, list[list[tuple[float, float, float, float]]]] = {"R-EMI": [], "R-EMID": []}
    for p, q in replicated(kind, seed, count, replicates, form):
        of_p, of_q = [], []
        for name in MODELS:
            a, b = (Sure.of(x[name].value, x[name].influence, x[name].reach, subset)
                    for subset, x in enumerate((p, q)))  # fmt: skip
            loss = Sure.combined([1, -1], [a, b])
            of_p.append((a.value, *a.interval(), standard_error(p[name].influence)))
            of_q.append((loss.value, *loss.interval(), emid(p[name], q[name]).standard_error))
        found["R-EMI"].append(of_p)
        found["R-EMID"].append(of_q)
    rows = []
    for name, listed in found.items():
        value, low, high, error = np.array(listed).transpose(2, 0, 1)
        mean = value.mean(axis=0)
        held = (low <= mean) & (mean <= high)
        to_first_order = np.abs(value - mean) <= NORMAL * error
        width = float(np.median(high - low))
        rows.append((name, held.mean(axis=0), to_first_order.mean(axis=0), width))
    return rows


def needed(name: str, form: str, count: int = 256, samples: int = 4) -> str:
    """Examples in each of two subsets for a loss of LOSS to be two standard errors, as a table's
    row: with golden's coefficient 1, and with the one that leaves the least variance.
    """
    world, found = World.draw(WorldSpec(0)), []
    for sample in range(samples):
        rng = np.random.default_rng([9, sample])
        inputs, policy = world.sample_inputs(count, rng), role_players(world)[name]
        golden, model = (
            information(world, one, inputs, rng, form).influence.of_examples()
            for one in (world.golden, policy)
        )
        best = np.cov(model, golden)[0, 1] / golden.var(ddof=1)
        found.append((np.std(model - golden), best, np.std(model - best * golden)))
    usual, best, least = np.mean(found, axis=0)
    examples = [
        f"{deviation:.2f} | {8 * (deviation / LOSS) ** 2:,.0f}" for deviation in (usual, least)
    ]
    return f"| {name} | {examples[0]} | {best:.2f} | {examples[1]} |"


def percent(shares: np.ndarray) -> str:
    """The mean and the lowest."""
    return f"{100 * shares.mean():.1f} | {100 * shares.min():.1f} ({MODELS[shares.argmin()]})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, nargs="+", default=[8, 16, 32, 50, 150])
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--measures", nargs="+", default=["calibrated", "club"])
    parser.add_argument("--worlds", nargs="+", choices=SHARPNESS, default=list(SHARPNESS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--needed", action="store_true", help="how many examples a loss needs")
    given = parser.parse_args(arguments)
    if given.needed:
        print("| model | deviation | examples | best coefficient | deviation | examples |")
        print("|" + " --- |" * 6)
        for name in MODELS[:-1]:  # the last says nothing, which has no variance
            print(needed(name, given.measures[0]), flush=True)
        return
    heading = f"{LEVEL:.0%} intervals hold, % | lowest of the models"
    print(f"| form | world | examples | of | {heading} | first order | lowest | median width |")
    print("|" + " --- |" * 9)
    for form in given.measures:
        for kind in given.worlds:
            for count in given.examples:
                what = (kind, given.seed, count, given.replicates, Measure(form).form)
                for name, held, to_first_order, width in coverage(*what):
                    cells = f"{percent(held)} | {percent(to_first_order)} | {width:.2f}"
                    print(f"| {form} | {kind} | {count} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
