"""The bounds against exact EMID: never violated on random worlds, violated where the docstring says
so, certified.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from coevolve.errors import DataError
from coevolve.information.bound import (
    Bound,
    Divergences,
    published_bound,
    scale_adjusted_bound,
)
from coevolve.information.discrete import entropy, jensen_shannon, row_entropies

INPUTS = ("user", "character", "dialogue")


@dataclass(frozen=True)
class CertifiedBound:
    """The split of the published bound with constants that can be proved, wherever user, character
    and dialogue are independent and p(y | x) does not shift; nats per response.

        spread sum_z min(1, sqrt(2 JSD(P_z || Q_z)))
            + gap(JSD(P_theta || P_Y)) + gap(JSD(Q_theta || Q_Y))

    as E_P g - E_Q g <= (max g - min g) TV(P_x, Q_x), TV of independent inputs is at most the sum of
    theirs, and |H(p) - H(q)| <= TV log(K - 1) + h(TV) for K possible responses (Audenaert, 2007).

    Attributes:
        spread: max_x g(x) - min_x g(x) of g(x) = H(Y | x) - H(theta(. | x)).
        responses: K.
    """

    divergences: Divergences
    spread: float
    responses: int

    @property
    def inputs(self):
        jsds = self.divergences.inputs.items()
        return {name: self.spread * largest_total_variation(jsd) for name, jsd in jsds}

    @property
    def total(self):
        outputs = (self.divergences.output_p, self.divergences.output_q)
        gaps = (largest_entropy_gap(jsd, self.responses) for jsd in outputs)
        return sum(self.inputs.values()) + sum(gaps)


def largest_total_variation(jsd):
    """The most that two distributions' total variation can be, given their JSD in nats, by
    Pinsker's inequality for either against their mixture, from which they are half as far as from
    each other.
    """
    return float(min(1.0, np.sqrt(2 * jsd)))


def largest_entropy_gap(jsd, outcomes):
    """The most, in nats, that the entropies of two distributions over `outcomes` outcomes can
    differ, given their JSD.

    T log(K - 1) + h(T) for total variation T up to 1 - 1/K, log K beyond (Audenaert: A sharp
    continuity estimate for the von Neumann entropy, J. Phys. A 40, 2007).
    """
    distance = largest_total_variation(jsd)
    if distance == 0:
        return 0.0
    if distance >= 1 - 1 / outcomes:
        return float(np.log(outcomes))
    between = distance * np.log(outcomes - 1) - distance * np.log(distance)
    return float(between - (1 - distance) * np.log1p(-distance))


def joint_information(joint):
    """I(A; B) of a joint distribution (A, B), nats."""
    return entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint)


@dataclass(frozen=True)
class Case:
    """A small world written out: inputs of u, c and d values, K responses.

    Attributes:
        p, q: input -> its distribution, in distribution and shifted.
        golden: (u, c, d, K) p(y | x), the same in both.
        model: (u, c, d, K) theta(y | x).
    """

    p: dict[str, np.ndarray]
    q: dict[str, np.ndarray]
    golden: np.ndarray
    model: np.ndarray

    def joint(self, inputs, responses):
        x = np.einsum("u,c,d->ucd", *(inputs[name] for name in INPUTS))
        return (x[..., None] * responses).reshape(x.size, -1)

    def emi(self, inputs):
        return joint_information(self.joint(inputs, self.model)) - joint_information(
            self.joint(inputs, self.golden)
        )

    @property
    def emid(self):
        return self.emi(self.p) - self.emi(self.q)

    @property
    def divergences(self):
        outputs = [
            jensen_shannon(*(self.joint(inputs, y).sum(axis=0) for y in (self.model, self.golden)))
            for inputs in (self.p, self.q)
        ]
        return Divergences(
            {name: jensen_shannon(self.p[name], self.q[name]) for name in INPUTS}, *outputs
        )

    @property
    def published(self) -> Bound:
        total = row_entropies(self.golden) + row_entropies(self.model)
        return published_bound(self.divergences, float(total.max()))

    @property
    def certified(self) -> CertifiedBound:
        difference = row_entropies(self.golden) - row_entropies(self.model)
        return CertifiedBound(self.divergences, float(np.ptp(difference)), self.golden.shape[-1])


def random_case(rng, *, alpha=None):
    sizes, count = rng.integers(2, 4, size=3), int(rng.integers(2, 13))

    def dirichlet(*shape):
        return rng.dirichlet(
            np.full(shape[-1], alpha or 10 ** rng.uniform(-1.5, 1)), size=shape[:-1]
        )

    p = {name: dirichlet(size) for name, size in zip(INPUTS, sizes, strict=True)}
    q = {
        name: dirichlet(size) if rng.random() < 0.6 else p[name]
        for name, size in zip(INPUTS, sizes, strict=True)
    }
    golden = dirichlet(*sizes, count)
    noise = rng.random((*sizes, 1))
    model = (1 - noise) * golden + noise * dirichlet(*sizes, count)
    return Case(p, q, golden, model / model.sum(axis=-1, keepdims=True))


def counterexample(count, answer):
    """z = 0 in P, 1 in Q; the golden response is a function of c; for z = 1 the model gives
    `answer`, (K,).
    """
    uniform, here, there = np.full(count, 1 / count), np.array([1.0, 0]), np.array([0, 1.0])
    inputs = {"character": uniform, "dialogue": np.ones(1)}
    golden = np.broadcast_to(np.eye(count), (2, count, count))[:, :, None]
    model = golden.copy()
    model[1] = answer
    return Case({"user": here, **inputs}, {"user": there, **inputs}, golden, model)


def test_never_violated_on_200_random_worlds_and_policies():
    rng = np.random.default_rng(0)
    cases = [random_case(rng) for _ in range(200)]
    for case in cases:
        for bound in (case.published, case.certified):
            assert case.emid <= bound.total + 1e-9, (bound, case.emid)
    emids = np.array([case.emid for case in cases])
    assert emids.max() > 0.3 and emids.min() < -0.3, "otherwise there is nothing to bound"


def test_certified_bound_holds_around_the_counterexamples_of_the_published_one():
    rng = np.random.default_rng(1)
    published_fails = 0
    for _ in range(100):
        count, mixed = int(rng.integers(2, 60)), 10 ** rng.uniform(-6, -1)
        case = counterexample(count, np.full(count, 1 / count))
        blurred = {
            name: (1 - mixed) * values
            + mixed * rng.dirichlet(np.ones(values.shape[-1]), size=values.shape[:-1])
            for name, values in {"golden": case.golden, "model": case.model}.items()
        }
        sides = {
            side: {
                name: (1 - mixed) * p + mixed * rng.dirichlet(np.ones(len(p)))
                for name, p in inputs.items()
            }
            for side, inputs in {"p": case.p, "q": case.q}.items()
        }
        case = Case(**sides, **blurred)
        assert case.emid <= case.certified.total + 1e-9
        published_fails += case.emid > case.published.total
    assert 10 < published_fails < 100, "the counterexample is not a single point"


@pytest.mark.parametrize("count", [2, 5, 50])
def test_published_bound_fails_where_a_shift_makes_the_model_ignorant(count):
    case = counterexample(count, np.full(count, 1 / count))
    assert case.emid == pytest.approx(np.log(count))
    expected = np.sqrt(2 / 3 * np.log(2)) * np.log(count)
    assert case.published.total == pytest.approx(expected, abs=2e-3), (
        "the fourth root of a rounding error is 1e-4"
    )
    assert case.published.total < case.emid
    in_bits = np.sqrt(2 / 3 * case.divergences.inputs["user"] / np.log(2)) * np.log2(count)
    assert in_bits < case.emid / np.log(2)
    assert case.emid <= case.certified.total + 1e-9


def test_published_bound_fails_where_there_are_many_responses():
    for count in (35, 36, 1469):
        case = counterexample(count, np.eye(count)[0])
        assert case.emid == pytest.approx(np.log(count))
        assert (case.published.total < case.emid) == (count >= 36)
        divergences = case.divergences
        together = 8 * (divergences.output_p + divergences.output_q) ** 0.25
        assert (together < case.emid) == (count >= 1469)
        assert case.emid == pytest.approx(case.certified.total), "nothing smaller would do"


def test_terms_are_the_formulas_written_out():
    divergences = Divergences({"user": 0.2, "character": 0.0, "dialogue": 0.05}, 0.01, 0.3)
    bound = published_bound(divergences, 3.0)
    assert bound.inputs["user"] == pytest.approx((2 / 3) ** 0.5 * 3 * 0.2**0.5)
    assert bound.inputs["character"] == 0
    assert (bound.output_p, bound.output_q) == pytest.approx((4 * 0.01**0.25, 4 * 0.3**0.25))
    assert bound.total == pytest.approx(
        sum(bound.inputs.values()) + bound.output_p + bound.output_q
    )
    adjusted = scale_adjusted_bound(divergences)
    assert adjusted.total == pytest.approx(0.2**0.5 + 0.05**0.5 + 0.01**0.25 + 0.3**0.25)
    assert bound.total <= (2 / 3) ** 0.5 * 3 * (0.2**0.5 + 0.05**0.5) + 8 * 0.31**0.25


def test_without_shift_and_mismatch_every_bound_is_zero():
    none = Divergences(dict.fromkeys(INPUTS, 0.0), 0.0, 0.0)
    for bound in (
        published_bound(none, 5.0),
        scale_adjusted_bound(none),
        CertifiedBound(none, 5.0, 100),
    ):
        assert bound.total == 0


def test_jsd_of_independent_inputs_is_at_most_the_sum():
    """What adding the inputs' shifts presumes, and that it fails where they are not independent."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        case = random_case(rng)
        joints = [
            np.einsum("u,c,d->ucd", *(side[name] for name in INPUTS)) for side in (case.p, case.q)
        ]
        assert jensen_shannon(*joints) <= sum(case.divergences.inputs.values()) + 1e-12
    same, opposite = np.eye(2) / 2, np.eye(2)[::-1] / 2  # equal marginals, disjoint joints
    assert jensen_shannon(same, opposite) == pytest.approx(np.log(2))
    assert jensen_shannon(same.sum(axis=0), opposite.sum(axis=0)) == 0


def test_total_variation_and_entropy_gap_are_never_exceeded_and_can_be_attained():
    rng = np.random.default_rng(3)
    for _ in range(300):
        count = int(rng.integers(2, 20))
        p, q = rng.dirichlet(np.full(count, 10 ** rng.uniform(-2, 1)), size=2)
        jsd = jensen_shannon(p, q)
        assert np.abs(p - q).sum() / 2 <= largest_total_variation(jsd) + 1e-12
        assert abs(entropy(p) - entropy(q)) <= largest_entropy_gap(jsd, count) + 1e-12
    point, uniform = np.eye(5)[0], np.full(5, 0.2)
    gap = largest_entropy_gap(jensen_shannon(point, uniform), 5)
    assert gap == pytest.approx(entropy(uniform) - entropy(point))


def test_what_is_no_divergence_or_entropy_is_refused():
    with pytest.raises(DataError, match="JSD of user is 1"):
        Divergences({"user": 1.0}, 0.0, 0.0)
    with pytest.raises(DataError, match="at least one input"):
        Divergences({}, 0.0, 0.0)
    with pytest.raises(DataError, match="entropy is -1"):
        published_bound(Divergences({"user": 0.1}, 0.0, 0.0), -1.0)


# The role-play worlds of `coevolve.worlds`: larger, with policies that fail in known ways.


def role_play_bounds(seed):
    """(EMID, published, certified) of a random policy of a random world under a random shift, all
    exact.
    """
    from coevolve.worlds.language import RESPONSE_VOCABULARY, SLOTS
    from coevolve.worlds.role_players import role_players
    from coevolve.worlds.truth import emid, response_distribution
    from coevolve.worlds.world import SHIFTS, World, WorldSpec

    rng = np.random.default_rng([seed, 1])
    spec = WorldSpec(seed=seed, sharpness=rng.uniform(0.3, 0.99), skew=rng.uniform(0.2, 2.0))
    world = World.draw(spec)
    shifted = world.shifted(str(rng.choice(list(SHIFTS))), seed, rng.uniform(0.3, 1))
    policies = list(role_players(world).values())
    policy = policies[rng.integers(len(policies))]
    outputs = [
        jensen_shannon(*(response_distribution(one, said) for said in (policy, one.golden)))
        for one in (world, shifted)
    ]
    factors = {name: jensen_shannon(p, shifted.factors[name]) for name, p in world.factors.items()}
    divergences = Divergences(factors, *outputs)
    largest = entropies_of(shifted, policy, (1, 1)).max()
    published = published_bound(divergences, float(largest))
    spread = float(np.ptp(entropies_of(shifted, policy, (1, -1))))
    certified = CertifiedBound(divergences, spread, len(RESPONSE_VOCABULARY) ** SLOTS)
    return emid(world, shifted, policy), published, certified


def entropies_of(world, policy, signs):
    """H(Y | x) and H(theta(. | x)) with these signs, added, of all contexts."""
    from coevolve.worlds.language import INPUT_WORDS

    grid = np.meshgrid(
        *(np.arange(len(words)) for words in INPUT_WORDS.values()), indexing="ij", sparse=True
    )
    total = np.zeros(())
    for sign, speaker in zip(signs, (world.golden, policy), strict=True):
        entropies = row_entropies(speaker.slot_emissions())
        manner, *features = speaker.plan(dict(zip(INPUT_WORDS, grid, strict=True)))
        for slot, feature in enumerate(features):
            total = total + sign * entropies[slot][manner, feature]
    return total


def check_role_play_worlds(count):
    found = [role_play_bounds(seed) for seed in range(count)]
    for emid, published, certified in found:
        assert emid <= published.total + 1e-9
        assert emid <= certified.total + 1e-9
    return found


def test_never_violated_on_role_play_worlds():
    check_role_play_worlds(12)


@pytest.mark.slow(seconds=45)
def test_how_loose_it_is_on_200_role_play_worlds(capsys):
    """`pytest -m slow tests/information/test_bound.py` prints the README's figures."""
    found = check_role_play_worlds(200)
    emids = np.array([emid for emid, _, _ in found])
    positive = emids > 0.1
    with capsys.disabled():
        print(
            f"\n200 worlds: EMID {emids.min():.2f} to {emids.max():.2f} nats, {positive.sum()} "
            "above 0.1"
        )
        for name, bounds in (
            ("published", [b for _, b, _ in found]),
            ("certified", [b for _, _, b in found]),
        ):
            total = np.array([bound.total for bound in bounds])
            inputs = np.array([sum(bound.inputs.values()) for bound in bounds])
            print(
                f"{name}: median of bound - EMID {np.median(total - emids):.2f} nats; where EMID > "
                f"0.1, median of bound / EMID {np.median(total[positive] / emids[positive]):.1f}, "
                f"least {np.min(total[positive] / emids[positive]):.1f}; median share of the "
                f"inputs' terms {np.median(inputs / total):.2f}"
            )
    assert positive.sum() >= 10
