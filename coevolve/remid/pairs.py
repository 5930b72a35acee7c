"""Mismatched (context, response) pairs, the negatives of contrastive estimates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coevolve.errors import DataError, RecipeError


@dataclass(frozen=True)
class PerContext:
    """So many negatives for each context, at least 1, every response being used equally often; N -
    1 or more gives every pair.
    """

    count: int

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise RecipeError(f"negatives per context: {self.count!r}; accepted is 1 or more.")


Negatives = int | Literal["all"] | PerContext

PUBLISHED_NEGATIVES = 1000


def negative_pairs(
    sample_ids: Sequence[str], negatives: Negatives = PUBLISHED_NEGATIVES, *, seed: int, where: str
) -> np.ndarray:
    """Pairs (i, j), i != j, of the N examples of one subset, (P, 2) int64: context i, response j.

    "all" and `PerContext` are regular designs: the examples are put on a circle at random, and each
    context meets the responses at the distances 1, ..., N - 1 from it, or K of these. A distance is
    a perfect matching of contexts and responses, and the pairs come distance by distance, so that
    the first N k of them are a regular design, too.

    A number is the published sample: drawn without replacement, uniformly over the N (N - 1) pairs,
    or every one of them if there are not more.

    Both are drawn over the examples ordered by sample_id, so that the order of the rows in a file
    changes nothing. `where` is what to call the subset in an error.
    """
    check_negatives(negatives)
    count = len(sample_ids)
    if count < 2:
        found = f"a single example ({sample_ids[0]!r})" if count else "no example"
        raise DataError(
            f"{where}: found {found}, for which there is no mismatched pair; a subset needs 2 or "
            "more examples. Add examples, leave the subset out, or have it listed without numbers "
            "(remid --show-small-subsets)."
        )
    order = np.array(sorted(range(count), key=sample_ids.__getitem__))
    rng = np.random.default_rng(seed)
    pairs: np.ndarray
    if negatives == "all" or isinstance(negatives, PerContext) or negatives >= count * (count - 1):
        wanted = negatives.count if isinstance(negatives, PerContext) else count
        pairs = order[_regular_design(count, min(wanted, count - 1), rng)]
        return pairs
    chosen = rng.choice(count * (count - 1), size=negatives, replace=False)
    context, response = np.divmod(chosen, count - 1)
    response += response >= context  # the pairs are counted row by row without the diagonal
    pairs = np.stack([order[context], order[response]], axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs


def pairs_within(
    half: np.ndarray, sample_ids: Sequence[str], negatives: Negatives, *, seed: int, where: str
) -> np.ndarray:
    """As `negative_pairs`, but a response only meets contexts of its own half, (N,) 0 or 1: equally
    many, which is one fewer than the smaller half has.
    """
    members = [np.flatnonzero(half == number) for number in (0, 1)]
    least = min(map(len, members))
    if least < 2:
        raise DataError(
            f"{where}: found {len(half)} examples; a reader that is fitted to half of them reads "
            "the others, for which it takes 4 or more. Add examples, or leave --fit-reader out."
        )
    if isinstance(negatives, int):
        raise RecipeError(
            f"negatives is {negatives}; halves that are read apart need 'all', or so many per "
            "context."
        )
    wanted = negatives.count if isinstance(negatives, PerContext) else least
    each = PerContext(min(wanted, least - 1))
    parts = []
    for own in members:
        ids = [sample_ids[place] for place in own.tolist()]
        pairs = own[negative_pairs(ids, each, seed=seed, where=where)]
        parts.append(pairs.reshape(-1, own.size, 2))
    # Distance by distance, of both halves.
    return np.concatenate([pairs for both in zip(*parts, strict=True) for pairs in both])


def with_contexts(
    pairs: np.ndarray, count: int, further: int, half: np.ndarray | None = None
) -> np.ndarray:
    """The pairs, and each of `count` responses in `further` more contexts, numbered from `count`;
    with halves, in every other one, which begin with half 0's.
    """
    contexts = np.repeat(np.arange(count, count + further), count)
    responses = np.tile(np.arange(count), further)
    more = np.stack([contexts, responses], axis=1)
    if half is not None:
        more = more[(contexts - count) % 2 == half[responses]]
    return np.concatenate([pairs, more])


def contexts_per_response(pairs: np.ndarray, count: int) -> int:
    """In how many other contexts each of `count` responses was scored, the least of them."""
    return int(np.bincount(pairs[:, 1], minlength=count).min())


def check_negatives(negatives: Negatives) -> None:
    """Raise RecipeError unless `negatives` is "all", a `PerContext`, or a positive integer."""
    if negatives == "all" or isinstance(negatives, PerContext):
        return
    if type(negatives) is not int or negatives < 1:
        raise RecipeError(
            f"negatives is {negatives!r}; accepted are 'all', integers from 1 up (published: "
            "1000), and PerContext(K)."
        )


def chosen_negatives(per_subset: int | Literal["all"] | None, per_context: int) -> Negatives:
    """So many of a subset, or all; by default so many for each context."""
    return PerContext(per_context) if per_subset is None else per_subset


def negatives_value(
    negatives: Negatives,
) -> int | Literal["all"] | dict[Literal["per_context"], int]:
    """For results: "all", a number, or {"per_context": K}."""
    return {"per_context": negatives.count} if isinstance(negatives, PerContext) else negatives


def _regular_design(count: int, distances: int, rng: np.random.Generator) -> np.ndarray:
    """(count * distances, 2) pairs of places 0..count - 1, distance by distance."""
    circle = rng.permutation(count)
    chosen = rng.permutation(np.arange(1, count))[:distances]
    contexts = np.tile(np.arange(count), distances)
    responses = (contexts + np.repeat(chosen, count)) % count
    return np.stack([circle[contexts], circle[responses]], axis=1)
