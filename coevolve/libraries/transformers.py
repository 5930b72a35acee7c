"""transformers: its caches' layers, what configurations keep private, a Trainer's loop."""

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicLayer, cache_utils

from coevolve.libraries.hooks import Hook, hooks, require, warn_of_untested

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # what it is a mixin before

_CACHE, _LOOP = "transformers.cache_utils", "transformers:Trainer"
_LAYER, _TOP = f"{_CACHE}:DynamicLayer", "transformers:PreTrained"

MODELS = (
    *hooks(_LAYER, "rows read a prefix's keys and leave none", "update(key_states, value_states)"),
    *hooks(_LAYER, "rows that have ended leave a batch", "batch_select_indices(indices)"),
    Hook(f"{_TOP}Model", "_hf_peft_config_loaded", "an adapter inside a base model is refused"),
    Hook(
        f"{_TOP}Config", "_attn_implementation", "it is known whether a mask tells segments apart"
    ),
)
"""What scoring reaches."""

FLOAT32 = hooks(
    f"{_TOP}Model",
    "weights are read in the dtype that they are held in",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
)

FILLED_LAYER = (
    *hooks(_LAYER, "a prefix's keys and values are read", "keys", "values"),
    *hooks(_LAYER, "a layer with room is made like a plain one", "device", "is_initialized"),
)

GRADIENT, *_ = hooks(
    _LOOP, "no step is taken on a gradient that is no number", "_get_grad_norm(model, grad_norm)"
)
"""`on_pre_optimizer_step` is public, but is not told the norm."""
FIRST_STEP, *_ = hooks(_LOOP, "a phase begins at any step", "create_scheduler(num_training_steps)")
"""Public itself; when it is called is not."""

DynamicSlidingWindowLayer = Hook(
    _CACHE, "DynamicSlidingWindowLayer", "prefixes are shared under a sliding window"
).find()

NOT_CACHED = getattr(cache_utils, "DummyLayer", type(None))
"""What stands in the cache for a layer that reads the keys of another one; not in every version."""


def check_models() -> None:
    """Raise LibraryError unless what scoring reaches is as it was."""
    require(MODELS)
    layer, nothing = DynamicLayer(), torch.zeros(1, 1, 1, 1)
    layer.update(nothing, nothing)
    require(FILLED_LAYER, layer)
    warn_of_untested("peft", "torch", "transformers")


def attention_of(config: Any) -> str | None:
    """The attention implementation that a model of this configuration runs."""
    return config._attn_implementation


def holds_adapter(model: Any) -> bool:
    """Whether an adapter was loaded into a model together with its weights."""
    return bool(model._hf_peft_config_loaded)


def mixes_precision(model: Any, dtype: torch.dtype) -> bool:
    """Whether some of its weights stay float32 in a model of that dtype."""
    kept = [*(x.find(model) or () for x in FLOAT32)]
    return dtype != torch.float32 and any(kept)


class OpenTrainer(_Trainer):
    """A mixin before a Trainer: the state of its loop under names of our own, the hooks that the
    library has `called`, and the norm of this step's `gradient` before clipping, once known.
    """

    args: Any
    model: Any
    processing_class: Any
    gradient: float | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        require((GRADIENT, FIRST_STEP))
        self.called: set[str] = set()
        super().__init__(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.gradient = math.nan if norm is None else float(norm)
        return norm

    def take_gradient(self) -> float:
        """The gradient's norm, just before the step; LibraryError if the loop did not ask."""
        gradient, self.gradient = self.gradient, None
        if gradient is None:
            raise GRADIENT.lost("is no longer called")
        return gradient

    def check_called(self) -> None:
        """Raise LibraryError where a step went by without what is overridden; at its end."""
