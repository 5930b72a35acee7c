"""A causal language model taken apart: its decoder, its head, a prefix's cache for many rows."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

from coevolve.libraries.torch import with_part
from coevolve.libraries.transformers import NOT_CACHED, DynamicSlidingWindowLayer
from coevolve.scoring.batching import device_of
from coevolve.scoring.cost import Cost
from coevolve.scoring.ways import Ways, accepts, bare, cache_name, decoder_of, ways_of

LENGTH_DEPENDENT_POSITIONS = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the longest row of a pass."""


class Backbone:
    """A model's decoder and head apart, so that logits are computed at chosen positions only."""

    def __init__(self, model: torch.nn.Module, ways: Ways | None = None):
        self.model = base = bare(model)
        self.config = base.config.get_text_config()
        self.device = device_of(base)
        self.ways = ways_of(base) if ways is None else ways
        self.decoder = decoder_of(base) if self.ways.split else None
        self.runner = base if self.decoder is None else self.decoder
        self.dtype = next(p.dtype for p in self.runner.parameters() if p.is_floating_point())
        self.cost = Cost.of(self.runner, self.config, self.device, self.dtype)
        self._cache_name = cache_name(base)
        self._output_type: Any = None

    def plain_from(self) -> int | None:
        """Tokens from which on a row's angles depend on its length; None if they never do."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
        if any(kind.get("rope_type") in LENGTH_DEPENDENT_POSITIONS for kind in kinds):
            original = [kind.get("original_max_position_embeddings") for kind in kinds]
            return min((n for n in original if n), default=self.config.max_position_embeddings) + 1
        return None

    def run(
        self, ids_BW: Tensor, mask: Tensor | None, positions_BW: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Hidden states (B, W, H) for `logits`; logits where the decoder cannot be told apart."""
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None}
        options = {name: value for name, value in options.items() if accepts(self.runner, name)}
        # A row by itself counts for itself, and some begin elsewhere than at 0.
        if self.ways.together:
            options["position_ids"] = positions_BW
        if cache is not None:
            options[self._cache_name] = cache
        output = self.runner(input_ids=ids_BW, **options)
        if self.decoder is None:
            return output.logits
        self._output_type = type(output)
        return output.last_hidden_state

    def logits(self, hidden_KH: Tensor) -> Tensor:
        """(K, V) by the model's own way from hidden states to logits, scale and cap included."""
        if self.decoder is None:
            return hidden_KH
        # The model's own head, behind a decoder that gives back what was computed.
        computed = _Computed(self._output_type(last_hidden_state=hidden_KH[None]), self.decoder)
        view = with_part(self.model, self.model.base_model_prefix, computed)
        nothing = torch.zeros((1, 1), dtype=torch.long, device=hidden_KH.device)
        return view.forward(input_ids=nothing, use_cache=False).logits[0]


@dataclass(frozen=True)
class Frame:
    """R prefixes that were computed, padded to P tokens, for rows to stand on.

    Attributes:
        cache: their keys and values; never written to.
        mask_RP: which of its positions hold a token.
        last_RH: the decoder's output at each prefix's last token.
    """

    cache: Cache
    mask_RP: Tensor
    lengths_R: Tensor
    last_RH: Tensor

    def read(self, rows: Tensor) -> Cache:
        """The cache of `rows`, B of them, for one pass that leaves nothing behind in it."""
        kinds: dict[type, Any] = {DynamicLayer: _ReadLayer}
        kinds |= {DynamicSlidingWindowLayer: _ReadSlidingLayer, NOT_CACHED: lambda x, rows: x}
        return Cache(layers=[kinds[type(x)](x, rows) for x in self.cache.layers])

    def copied(self, rows: Tensor) -> Cache:
        """A cache of its own that begins with that of `rows`."""
        selected = copy.copy(self.cache)
        selected.layers = [copy.copy(layer) for layer in self.cache.layers]
        selected.batch_select_indices(rows)
        return selected


class _Reading:
    """A cache layer that joins the rows it was asked for with new keys and values, and keeps
    neither: a pass holds one layer's joined keys at a time, and the prefix's cache stays as it is.
    """

    def __init__(self, layer: DynamicLayer, rows: Tensor):
        self.keys: Any
        self.values: Any
        self.__dict__.update(layer.__dict__)
        self._rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, cached: Tensor, new: Tensor) -> Tensor:
        alone = cached.shape[0] == 1
        own = cached.expand(len(self._rows), -1, -1, -1) if alone else cached[self._rows]
        return torch.cat([own, new], dim=-2)


class _ReadLayer(_Reading, DynamicLayer):
    pass


class _ReadSlidingLayer(_Reading, DynamicSlidingWindowLayer):
    pass


class _Computed(torch.nn.Module):
    """Stands for a decoder, and gives back an output that it has; the rest is the decoder's."""

    def __init__(self, output: Any, decoder: torch.nn.Module):
        super().__init__()
        self.output = output
        # Past `Module.__setattr__`, for it is no part of this one.
        self.__dict__["_stands_for"] = decoder

    @property
    def decoder(self) -> "_Computed":
        """Of models that wrap their decoder once more, whose heads run what is inside."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stands_for, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output
