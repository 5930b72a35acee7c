"""Log-probabilities of responses: of each prompt's own, or of any pairs of prompt and response.

How they are computed stands in `coevolve.scoring.scorer`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from coevolve.errors import TooLongError
from coevolve.scoring.backbone import Backbone
from coevolve.scoring.batching import TOKEN_BUDGET, Ids, max_positions
from coevolve.scoring.scorer import Scorer
from coevolve.scoring.scores import Scores


def score_rows(
    model: torch.nn.Module, prompts: Sequence[Ids], responses: Sequence[Ids], **options: Any
) -> list[np.ndarray]:
    """Token log-probabilities of each response after its own prompt.

    What several prompts begin with is computed once.

    Args:
        model: a causal language model in evaluation mode, run where its parameters are.
        prompts, responses: R non-empty lists of ids each.
        pad_id: any valid id; padded positions are masked.
        token_budget: tokens of one forward pass, cached ones included; halved when the memory does
            not hold them.
        progress: called with the number of rows done after each pass.
        poll: called before each pass; what it raises ends the scoring.

    Returns:
        R float64 arrays, log p(y_t | prompt, y_<t) in nats of each token of the response.

    Raises:
        TooLongError: prompt and response do not fit the model's positions.
        OutOfMemoryError: a row alone does not fit the memory.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses.")
    pairs = np.stack([np.arange(len(prompts))] * 2, axis=1)
    return score_pairs(model, prompts, responses, pairs, **options)


def score_pairs(
    model: torch.nn.Module,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    pairs: np.ndarray,
    *,
    pad_id: int,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
    poll: Callable[[], None] | None = None,
    found: Callable[[list[tuple[int, np.ndarray]]], None] | None = None,
) -> list[np.ndarray]:
    """As `score_rows`, of responses[j] after prompts[i] for each (i, j) of `pairs` (Q, 2), in any
    order, repeats allowed; each prompt is computed once. `found` is called after each pass with
    (index of a pair, its scores) of those that are known now.
    """
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    check_lengths(model, [prompts[i] for i, _ in pairs], [responses[j] for _, j in pairs])
    if not len(pairs):
        return []
    used, own_prompts = _different(prompts, pairs[:, 0])
    told, own_responses = _different(responses, pairs[:, 1])
    places: dict[tuple[int, int], list[int]] = {}
    for place, pair in enumerate(zip(own_prompts, own_responses, strict=True)):
        places.setdefault(pair, []).append(place)
    scorer = Scorer(Backbone(model), used, told, list(places), pad_id, token_budget)
    if poll is not None:
        scorer.poll = poll

    def report(done: Sequence[tuple[int, int]]) -> None:
        known = [(place, scorer.values[pair]) for pair in done for place in places[pair]]
        if found is not None:
            found(known)
        if progress is not None:
            progress(len(known))

    scorer.report = report
    values = scorer.score()
    results: list[np.ndarray] = [np.empty(0)] * len(pairs)
    for pair, same in places.items():
        for place in same:
            results[place] = values[pair].copy()
    return results


def to_scores(token_log_probs: Sequence[np.ndarray]) -> Scores:
    """Sums and token counts, shape (R,), of R arrays of token log-probabilities."""
    return Scores(
        sum=np.array([values.sum() for values in token_log_probs], dtype=np.float64),
        tokens=np.array([len(values) for values in token_log_probs], dtype=np.int64),
    )


def check_lengths(model: torch.nn.Module, prompts: Sequence[Ids], responses: Sequence[Ids]) -> None:
    """Raise TooLongError for the first pair beyond the model's positions."""
    limit = max_positions(model)
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt) or not len(response):
            raise ValueError(f"Pair {index}: prompt and response need at least one token each.")
        if len(prompt) + len(response) > limit:
            raise TooLongError(
                f"Pair {index}: prompt of {len(prompt)} and response of {len(response)} tokens "
                f"exceed the model's {limit} positions. Shorten the dialogue."
            )


def _different(rows: Sequence[Ids], indices: np.ndarray) -> tuple[list[Ids], list[int]]:
    """The different rows that `indices` asks for, and for each index its row's place in them."""
    number: dict[bytes, int] = {}
    found: list[Ids] = []
    place: dict[int, int] = {}
    for index in dict.fromkeys(indices.tolist()):
        key = np.asarray(rows[index], dtype=np.int64).tobytes()
        if key not in number:
            number[key] = len(found)
            found.append(rows[index])
        place[index] = number[key]
    return found, [place[index] for index in indices.tolist()]
