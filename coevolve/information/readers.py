"""Of several conditionals that read the same responses, the one that reads them best.

E log g of `coevolve.information.density_ratio` bounds I(X; Y) from below for *any* q, so that of
several the one with the largest bound says most. But the largest of several estimates is too large:
it was chosen for its luck, too. So the reader of each half of the responses is chosen on the other
half (cross-fitting; Chernozhukov et al., Double/Debiased Machine Learning, 2018), and the estimate
is over both.

An estimate is a mean of what each response adds, the pairs that it is in as a response included;
their contexts have no half, for nothing is known of them but that they are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from coevolve.errors import DataError
from coevolve.information.estimate import Estimate
from coevolve.information.influence import Influence

Chosen = tuple[str, str]
"""The readers of the responses of half 0 and of half 1."""


def halves(ids: Sequence[str], seed: int) -> np.ndarray:
    """(N,) 0 or 1 at random, equally often up to one; the order of the examples changes nothing."""
    half = np.empty(len(ids), dtype=np.int64)
    by_name = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    half[by_name] = np.random.default_rng(seed).permutation(len(ids)) % 2
    return half


def shares_of_responses(estimate: Estimate) -> np.ndarray:
    """(N,) what each response adds to an estimate, which is their mean."""
    influence = estimate.influence
    response, count = influence.pairs[:, 1], influence.matched.size
    gathered = np.bincount(response, weights=influence.mismatched, minlength=count)
    return estimate.value + influence.matched + gathered


def best_readers(bounds: Mapping[str, Estimate], half: np.ndarray) -> Chosen:
    """For each half of the responses the reader with the largest bound on the other half; of equal
    ones the first.
    """
    shares = {reader: shares_of_responses(bound) for reader, bound in bounds.items()}
    if min(np.bincount(half, minlength=2)) == 0:
        raise DataError(
            f"a reader is chosen on one half of {half.size} examples and used on the other; give 2 "
            "or more."
        )
    first, second = (max(shares, key=lambda x: shares[x][half != own].mean()) for own in (0, 1))
    return first, second


def read_by(estimates: Mapping[str, Estimate], chosen: Chosen, half: np.ndarray) -> Estimate:
    """The estimate over both halves, each by its reader; to the bit that of a reader of both."""
    first, second = (estimates[reader] for reader in chosen)
    if chosen[0] == chosen[1]:
        return first
    pairs, of_second = first.influence.pairs, half == 1
    if not np.array_equal(pairs, second.influence.pairs):
        raise DataError("readers scored different mismatched pairs; let them read the same.")
    shares = np.where(of_second, shares_of_responses(second), shares_of_responses(first))
    value = float(shares.mean())
    own = [one.value - value + one.influence.matched for one in (first, second)]
    matched = np.where(of_second, own[1], own[0])
    # An influence has a mean of 0 in either part.
    off = float(matched.mean())
    of_pairs = [one.influence.mismatched for one in (first, second)]
    mismatched = np.where(of_second[pairs[:, 1]], of_pairs[1], of_pairs[0])
    if mismatched.size:
        mismatched = mismatched + off * half.size / mismatched.size
    influence = Influence(matched - off, mismatched, pairs)
    reach, at_floor = max(first.reach, second.reach), first.at_floor or second.at_floor
    return replace(first, value=value, influence=influence, reach=reach, at_floor=at_floor)
