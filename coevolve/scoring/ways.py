"""In which ways a causal language model may be run so that its numbers are those of a plain pass.

Plain is a row by itself through the model as it stands, `model(input_ids=row)`. All else only saves
time and memory. What a model may be able to do is guessed here, cautiously, from its configuration
and the kinds of layers in its cache. Whether the numbers are the same is found out once, when it is
loaded (`selfcheck`), and the verdict stays on the model: it is of the architecture, and adapters
come and go without changing it.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache, DynamicLayer

from coevolve.libraries.transformers import NOT_CACHED, DynamicSlidingWindowLayer, attention_of
from coevolve.scoring.sharing import MAX_DEPTH

MASKED_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take a mask of every query and key."""

VERDICT = "coevolve_ways"
"""The attribute of a model under which its ways are kept."""


@dataclass(frozen=True)
class Ways:
    """What may be done; as it stands, nothing but plain passes.

    Attributes:
        split: decoder and head apart, so that logits are computed at chosen positions only.
        together: rows of different lengths in one pass.
        depth: how many prefixes may stand on one another, each with a cache for several rows.
        packs: several segments side by side in a row, told apart by a mask.
        generates: in batches; each row alone, with what the model remembers of it; or each alone,
            the whole row run anew for every token.
    """

    split: bool = False
    together: bool = False
    depth: int = 0
    packs: bool = False
    generates: Literal["in batches", "alone", "anew"] = "anew"

    @property
    def scores(self) -> Literal["packed", "on shared prefixes", "in batches", "plain"]:
        """The fastest of its ways to score."""
        if self.packs:
            return "packed"
        if self.depth:
            return "on shared prefixes"
        return "in batches" if self.together else "plain"

    def as_dict(self) -> dict[str, str]:
        """For a manifest."""
        return {"scores": self.scores, "generates": self.generates}


def bare(model: Any) -> Any:
    """The model itself, without the adapters' wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def ways_of(model: torch.nn.Module) -> Ways:
    """What the self-check found; a guess for a model that nobody checked."""
    base = bare(model)
    return base.__dict__.get(VERDICT) or guess(base)


def guess(base: Any) -> Ways:
    """What an architecture can do if it is what it seems to be."""
    config, decoder = base.config.get_text_config(), decoder_of(base)
    takes = parameters_of(base)
    kinds = _layer_kinds(config)
    known = kinds <= {DynamicLayer, DynamicSlidingWindowLayer, NOT_CACHED}
    attends = known and "position_ids" in takes and not _hidden_window(config, kinds)
    shares = attends and decoder is not None and cache_name(base) in takes
    # What a sliding layer keeps of a prefix ends with its window: nothing can be padded behind it.
    full = kinds <= {DynamicLayer, NOT_CACHED}
    batches = {"position_ids", "logits_to_keep", cache_name(base)} <= set(takes)
    return Ways(
        split=decoder is not None,
        together=attends,
        depth=(MAX_DEPTH if full else 1) if shares else 0,
        packs=shares and full and attention_of(config) in MASKED_ATTENTION,
        generates="in batches" if batches else "alone",
    )


def decoder_of(base: Any) -> torch.nn.Module | None:
    """What comes before the head, None where it cannot be told apart."""
    return getattr(base, getattr(base, "base_model_prefix", "") or "-", None)


def parameters_of(module: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    """What `forward` takes, whatever a framework has wrapped around it on this instance."""
    return inspect.signature(type(module).forward).parameters


def cache_name(model: torch.nn.Module) -> str:
    """What `forward` calls its cache; transformers 5.24 renamed it."""
    return "cache" if "cache" in parameters_of(model) else "past_key_values"


def accepts(module: torch.nn.Module, name: str) -> bool:
    """Whether `forward` takes an argument of that name."""
    taken, any_name = parameters_of(module), inspect.Parameter.VAR_KEYWORD
    return name in taken or any(p.kind is any_name for p in taken.values())


def _layer_kinds(config: Any) -> set[type]:
    """The kinds of layers in a model's cache; `object` where they cannot be told."""
    try:
        return {type(layer) for layer in DynamicCache(config=config).layers}
    except (KeyError, AttributeError, ValueError):
        return {object}


def _hidden_window(config: Any, kinds: set[type]) -> bool:
    """Whether a layer sees a window that the cache does not know of, under a mask of the model's
    own.

    It may be counted in columns instead of positions, as GPT-Neo's is, and a real one is longer
    than what a self-check runs.
    """
    if DynamicSlidingWindowLayer in kinds or getattr(config, "layer_types", None):
        return False
    named = config.to_dict().items()
    sizes = [x for name, x in named if "window" in name and "layers" not in name]
    return any(type(size) is int and size > 0 for size in sizes)
