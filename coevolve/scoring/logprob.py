"""Exact log-probabilities of responses under a causal language model.

                 prompt (p tokens)                 response (n tokens, the last one ends the turn)
    ids     [ x0  x1  ...              x_{p-1} ][ y0  y1  ...                y_{n-1} ]
    logits          ...            at p-1 -> y0      at p -> y1   ...   at p+n-2 -> y_{n-1}

Scored are the n response tokens and nothing else. Shapes: B rows of a batch, P padded prompt length, N padded
response length, V vocabulary. Prompts are padded on the left and responses on the right, so that in every batch the
responses begin in the same column; `position_ids` count from each row's own first token. Log-softmax is the chosen
logit minus logsumexp in float32, which on CPU is 50 times closer to float64 than `log_softmax`. Sums are float64.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from coevolve.errors import TooLongError
from coevolve.scoring.batching import TOKEN_BUDGET, Ids, batches_by_tokens, device_of, max_positions, pad, positions
from coevolve.scoring.scores import Scores


def score_rows(
    model: torch.nn.Module,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    pad_id: int,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
    poll: Callable[[], None] | None = None,
) -> list[np.ndarray]:
    """Token log-probabilities of each response after its own prompt.

    Args:
        model: a causal language model in evaluation mode; moved nowhere, run where its parameters are.
        prompts: R prompts, each a non-empty list of ids.
        responses: R responses, each a non-empty list of ids.
        pad_id: any valid id; padded positions are masked.
        token_budget: tokens of one forward pass.
        progress: called with the number of rows done after each pass.
        poll: called before each pass; what it raises ends the scoring.

    Returns:
        R float64 arrays in the order given; array r holds log p(y_t | prompt, y_<t) in nats, length of response r.

    Raises:
        TooLongError: prompt and response do not fit the model's positions.
    """
    check_lengths(model, prompts, responses)
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    results: list[np.ndarray] = [np.empty(0)] * len(lengths)
    for rows in batches_by_tokens(lengths, token_budget):
        if poll is not None:
            poll()
        batch = _forward_rows(model, [prompts[r] for r in rows], [responses[r] for r in rows], pad_id)
        for row, values in zip(rows, batch, strict=True):
            results[row] = values
        if progress is not None:
            progress(len(rows))
    return results


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
) -> list[np.ndarray]:
    """Token log-probabilities of responses[j] after prompts[i] for each pair (i, j); each prompt is computed once.

    Args:
        pairs: integer array (Q, 2) of (prompt index, response index), in any order, repeats allowed.
        Others as in `score_rows`.

    Returns:
        Q float64 arrays, as `score_rows` would return for the pairs written out.
    """
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    check_lengths(model, [prompts[i] for i, _ in pairs], [responses[j] for _, j in pairs])
    by_prompt: dict[int, list[int]] = {}
    for index, (i, _) in enumerate(pairs):
        by_prompt.setdefault(int(i), []).append(index)
    used = list(by_prompt)
    results: list[np.ndarray] = [np.empty(0)] * len(pairs)
    for group in batches_by_tokens([len(prompts[i]) for i in used], token_budget):
        contexts = [used[g] for g in group]
        context = _forward_context(model, [prompts[i] for i in contexts], pad_id)
        row_of = {i: row for row, i in enumerate(contexts)}
        members = [index for i in contexts for index in by_prompt[i]]
        width = max(len(prompts[i]) for i in contexts)
        for chunk in batches_by_tokens([width + len(responses[pairs[m][1]]) for m in members], token_budget):
            if poll is not None:
                poll()
            chosen = [members[c] for c in chunk]
            rows = [row_of[int(pairs[m][0])] for m in chosen]
            batch = _forward_on_context(model, context, rows, [responses[pairs[m][1]] for m in chosen], pad_id)
            for member, values in zip(chosen, batch, strict=True):
                results[member] = values
            if progress is not None:
                progress(len(chosen))
    return results


def to_scores(token_log_probs: Sequence[np.ndarray]) -> Scores:
    """Sums and token counts, shape (R,), of R arrays of token log-probabilities."""
    return Scores(
        sum=np.array([values.sum() for values in token_log_probs], dtype=np.float64),
        tokens=np.array([len(values) for values in token_log_probs], dtype=np.int64),
    )


def check_lengths(model: torch.nn.Module, prompts: Sequence[Ids], responses: Sequence[Ids]) -> None:
    """Raise TooLongError for the first pair that the model's positions cannot hold, ValueError for an empty one."""
    limit = max_positions(model)
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt) or not len(response):
            raise ValueError(f"Pair {index}: prompt and response need at least one token each.")
        if len(prompt) + len(response) > limit:
            raise TooLongError(
                f"Pair {index}: prompt of {len(prompt)} and response of {len(response)} tokens exceed the model's "
                f"{limit} positions. Shorten the dialogue, or drop the example explicitly."
            )


@torch.no_grad()
def _forward_rows(
    model: torch.nn.Module, prompts: Sequence[Ids], responses: Sequence[Ids], pad_id: int
) -> list[np.ndarray]:
    device = device_of(model)
    prompt_ids_BP, prompt_mask_BP = pad(prompts, pad_id, left=True)
    response_ids_BN, response_mask_BN = pad(responses, pad_id, left=False)
    mask_BT = torch.cat([prompt_mask_BP, response_mask_BN], dim=1)
    width = response_ids_BN.shape[1]
    logits_BNV = model(
        input_ids=torch.cat([prompt_ids_BP, response_ids_BN], dim=1).to(device),
        attention_mask=mask_BT.to(device),
        position_ids=positions(mask_BT).to(device),
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]
    return _unpad(_log_prob(logits_BNV, response_ids_BN.to(device)), responses)


@torch.no_grad()
def _forward_context(model: torch.nn.Module, prompts: Sequence[Ids], pad_id: int) -> tuple:
    """(cache, mask (B, P), logits that predict each response's first token (B, 1, V))."""
    device = device_of(model)
    ids_BP, mask_BP = pad(prompts, pad_id, left=True)
    output = model(
        input_ids=ids_BP.to(device),
        attention_mask=mask_BP.to(device),
        position_ids=positions(mask_BP).to(device),
        use_cache=True,
        logits_to_keep=1,
    )
    return output.past_key_values, mask_BP, output.logits


@torch.no_grad()
def _forward_on_context(
    model: torch.nn.Module, context: tuple, rows: Sequence[int], responses: Sequence[Ids], pad_id: int
) -> list[np.ndarray]:
    device = device_of(model)
    cache, mask_BP, first_logits_B1V = context
    index = torch.tensor(rows)
    ids_BN, response_mask_BN = pad(responses, pad_id, left=False)
    log_prob_BN = _log_prob(first_logits_B1V[index.to(device)], ids_BN[:, :1].to(device))
    if ids_BN.shape[1] > 1:
        # The last token predicts nothing that is scored, so it is not run.
        ids_BM, response_mask_BM = ids_BN[:, :-1], response_mask_BN[:, :-1]
        mask_BT = torch.cat([mask_BP[index], response_mask_BM], dim=1)
        logits_BMV = model(
            input_ids=ids_BM.to(device),
            attention_mask=mask_BT.to(device),
            position_ids=positions(mask_BT)[:, -ids_BM.shape[1] :].to(device),
            # A forward pass writes into the cache it is given, hence a copy of the rows it needs.
            past_key_values=_select_rows(cache, index.to(device)),
            use_cache=True,
        ).logits
        log_prob_BN = torch.cat([log_prob_BN, _log_prob(logits_BMV, ids_BN[:, 1:].to(device))], dim=1)
    return _unpad(log_prob_BN, responses)


def _select_rows(cache, index: Tensor):
    """A new cache that holds the rows `index` of `cache`, which stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(index)
    return selected


def _log_prob(logits_BNV: Tensor, ids_BN: Tensor) -> Tensor:
    logits_BNV = logits_BNV.float()
    chosen_BN = logits_BNV.gather(-1, ids_BN.unsqueeze(-1)).squeeze(-1)
    return chosen_BN - torch.logsumexp(logits_BNV, dim=-1)


def _unpad(log_prob_BN: Tensor, responses: Sequence[Ids]) -> list[np.ndarray]:
    values_BN = log_prob_BN.double().cpu().numpy()
    return [values_BN[index, : len(response)].copy() for index, response in enumerate(responses)]
