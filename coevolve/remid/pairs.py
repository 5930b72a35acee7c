"""Mismatched (context, response) pairs, the negatives of contrastive estimates."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from coevolve.errors import DataError, RecipeError

Negatives = int | Literal["all"]

PUBLISHED_NEGATIVES = 1000


def negative_pairs(
    sample_ids: Sequence[str], negatives: Negatives = PUBLISHED_NEGATIVES, *, seed: int, where: str
) -> np.ndarray:
    """Pairs (i, j), i != j, of the examples of one subset.

    A sample is drawn without replacement, uniformly over the N (N - 1) pairs, by a generator of its own. It is drawn
    over the examples ordered by sample_id, so that the order of the rows in a file changes nothing.

    Args:
        sample_ids: of the subset's N examples.
        negatives: how many pairs; "all", or a number not below N (N - 1), gives every one.
        seed: of the generator.
        where: what to call the subset in an error.

    Returns:
        (P, 2) int64: context i, response j, positions in `sample_ids`; in ascending order.

    Raises:
        DataError: fewer than two examples, so that there is no pair.
        RecipeError: `negatives` is neither "all" nor a positive integer.
    """
    check_negatives(negatives)
    count = len(sample_ids)
    if count < 2:
        found = f"a single example ({sample_ids[0]!r})" if count else "no example"
        raise DataError(
            f"{where}: found {found}, for which there is no mismatched pair; a subset needs 2 or more examples. "
            "Add examples or leave the subset out."
        )
    total = count * (count - 1)
    if negatives == "all" or negatives >= total:
        chosen = np.arange(total)
    else:
        chosen = np.random.default_rng(seed).choice(total, size=negatives, replace=False)
    context, response = np.divmod(chosen, count - 1)
    response += response >= context  # the pairs are counted row by row without the diagonal
    order = np.array(sorted(range(count), key=sample_ids.__getitem__))
    pairs = np.stack([order[context], order[response]], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def check_negatives(negatives: Negatives) -> None:
    """Raise RecipeError unless `negatives` is "all" or a positive integer."""
    if negatives == "all" or (type(negatives) is int and negatives > 0):
        return
    raise RecipeError(f"negatives is {negatives!r}; accepted are 'all' and integers from 1 up (published: 1000).")
