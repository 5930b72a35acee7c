"""Rows of token ids in batches; where a model runs, and how much it holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Ids = Sequence[int]

TOKEN_BUDGET = 16_384
"""Tokens of one forward pass, padding and cached context included, by default."""


def batches_by_tokens(
    lengths: Sequence[int], budget: int, *, cached: int = 0, enough: int | None = None
) -> list[list[int]]:
    """Indices grouped so that rows times longest row stays within `budget`; a row alone may exceed
    it.

    Longest first, so that a batch that does not fit the memory fails at once and not after an hour.
    `cached` tokens stand in front of every row; beyond `enough` others, a batch is not filled up.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches:
            rows, longest = len(batches[-1]) + 1, lengths[batches[-1][0]]
            if rows * (cached + longest) <= budget and (enough is None or rows * longest <= enough):
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


UNLIMITED = 1 << 62
"""Positions of a model that does not say how many it has."""


def max_positions(model: torch.nn.Module) -> int:
    """The number of positions that the model was made for."""
    return positions_of(model.config)


def positions_of(config: Any) -> int:
    """The number of positions that a model of this configuration was made for."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "max_target_positions")
    limits = [getattr(text, name, None) or 0 for name in names]
    return next((limit for limit in limits if limit > 0), UNLIMITED)


def pad(rows: Sequence[Ids], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids (B, width) and a 0/1 mask of the same shape."""
    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BT[index, place] = torch.tensor(row, dtype=torch.long)
        mask_BT[index, place] = 1
    return ids_BT, mask_BT


def positions(mask_BT: Tensor) -> Tensor:
    """Each real token's place in its own row; padding gets 0, which nothing attends to."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
