"""Exact information-theoretic truth of a world, by enumeration: nothing here is an estimate. Nats,
per response.

A response depends on x through its plan (manner, feature per slot), and given the plan its words
are independent. So p(plan) is one pass over all contexts, and p(y) = sum over plans of p(plan)
prod_i emission_i(y_i) contracts one slot at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coevolve.information.discrete import entropy, row_entropies
from coevolve.worlds.language import FACTORS, INPUT_WORDS, SLOTS, VALUES, Values
from coevolve.worlds.policies import Policy
from coevolve.worlds.world import World

RESPONSE_TOKENS = SLOTS + 1  # a word per slot, and the end of turn, which is certain


@dataclass(frozen=True)
class Information:
    """What responses of a policy say about the context: H(Y) and H(Y | X), nats per response."""

    response_entropy: float
    conditional_entropy: float

    @property
    def mutual_information(self) -> float:
        """I(X; Y) = H(Y) - H(Y | X)."""
        return self.response_entropy - self.conditional_entropy

    @property
    def perplexity_floor(self) -> float:
        """exp(H(Y | X) / tokens): the perplexity that no estimator can beat on average."""
        return float(np.exp(self.conditional_entropy / RESPONSE_TOKENS))


def information(world: World, policy: Policy | None = None) -> Information:
    """H(Y) and H(Y | X) for contexts of `world` and responses of `policy` (golden)."""
    policy = policy or world.golden
    plans = plan_distribution(world, policy)
    marginals = _plan_marginals(plans)  # (slot, manner, feature)
    conditional = float(np.sum(marginals * row_entropies(policy.slot_emissions())))
    return Information(entropy(response_distribution(world, policy)), conditional)


def emi(world: World, policy: Policy) -> float:
    """Effective mutual information, I(X; Y_theta) - I(X; Y), nats per response (2502.00577)."""
    return information(world, policy).mutual_information - information(world).mutual_information


def emid(world: World, shifted: World, policy: Policy) -> float:
    """EMI on `world` minus EMI on the shifted one: exact EMID, and R-EMID, as x gives r."""
    return emi(world, policy) - emi(shifted, policy)


def readable_information(world: World, policy: Policy) -> float:
    """E_{p(x) p_theta(y | x)} log p(y | x) / p(y), nats per response, with the golden p.

    What the ideal estimator of golden responses can read in a policy's: at most I(X; Y_theta),
    equal to it for golden responses, and far below 0 where the policy says surely what golden
    responses do not. `barber_agakov` (`coevolve.information.density_ratio`) estimates this.
    """
    manner, *features = policy.plan(_all_inputs())
    golden_manner, *golden_features = world.golden.plan(_all_inputs())
    weights, matched = _context_distribution(world), 0.0
    emissions = zip(policy.slot_emissions(), world.golden.slot_emissions(), strict=True)
    for slot, (says, reads) in enumerate(emissions):
        agreement = np.einsum("mfw,ngw->mfng", says, np.log(reads))
        cells = agreement[manner, features[slot], golden_manner, golden_features[slot]]
        matched += float(np.sum(weights * cells))
    marginal = np.log(response_distribution(world, world.golden))
    return matched - float(np.sum(response_distribution(world, policy) * marginal))


def response_distribution(world: World, policy: Policy) -> NDArray[np.float64]:
    """p_theta(y) with one axis per slot, each as long as the vocabulary of responses."""
    plans, emissions = plan_distribution(world, policy), policy.slot_emissions()
    total: NDArray[np.float64] = np.zeros(())
    for manner, mass in enumerate(plans):
        # Each contraction takes the first feature axis away and puts a word axis last.
        for slot in range(SLOTS):
            mass = np.tensordot(mass, emissions[slot, manner], axes=([0], [0]))
        total = total + mass
    return total


def plan_distribution(world: World, policy: Policy) -> NDArray[np.float64]:
    """p(manner, feature of slot 1, ..., feature of the last slot) for contexts of `world`."""
    shape = (policy.emission.shape[1], *(VALUES,) * SLOTS)
    cell = np.zeros((), dtype=np.int64)
    for size, values in zip(shape, policy.plan(_all_inputs()), strict=True):
        cell = cell * size + values
    weights = _context_distribution(world)
    cells = np.broadcast_to(cell, weights.shape)
    counts = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=int(np.prod(shape)))
    return counts.reshape(shape)


def _plan_marginals(plans: NDArray[np.float64]) -> NDArray[np.float64]:
    axes = range(1, SLOTS + 1)
    return np.stack([plans.sum(axis=tuple(x for x in axes if x != axis)) for axis in axes])


def _context_distribution(world: World) -> NDArray[np.float64]:
    """p(x) with one axis per input, in the order of `language.FACTORS`."""
    user, character, dialogue = (world.factors[name] for name in FACTORS)
    return np.multiply.outer(np.multiply.outer(user, character), dialogue)


def _all_inputs() -> Values:
    """Every context as an open grid: input name -> indices along that input's own axis."""
    grid = np.ogrid[tuple(slice(len(words)) for words in INPUT_WORDS.values())]
    return dict(zip(INPUT_WORDS, grid, strict=True))
