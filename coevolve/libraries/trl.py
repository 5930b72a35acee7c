"""TRL: what its SFT, DPO and GRPO trainers keep to themselves, and the head they put on a model."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, GRPOTrainer, SFTTrainer

from coevolve.libraries.hooks import Hook, hooks, hooks_of, overridden, require, warn_of_untested
from coevolve.libraries.transformers import OpenTrainer

_UTILS, _SFT, _GRPO = "trl.trainer.utils", "trl:SFTTrainer", "trl:GRPOTrainer"
_DPO = "trl:DPOTrainer"

HEAD = (
    *hooks(_UTILS, "a CPU computes logits only where they are asked for", "_use_triton(device)"),
    *hooks(_UTILS, "a reference has the policy's head", "add_fused_lm_head(model, temperature)"),
)
SCORED, REWARDED, LOG_PROBS = METHODS = (
    *hooks(_GRPO, "PPO and RLOO put in advantages", "_generate_and_score_completions(inputs)"),
    *hooks(
        _GRPO,
        "a divided model is gathered once for all rewards, and PPO and RLOO see what they gave",
        "_calculate_rewards(inputs, prompts, completions, completion_ids_list)",
    ),
    *hooks(
        _GRPO,
        "a shared prompt is run once, and PPO reads values in the policy's own pass",
        "_get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, "
        "batch_size, compute_entropy, compute_aux_loss)",
    ),
)
PAIRS, REFERENCE = (
    *hooks(
        _DPO,
        "pairs come as token ids",
        "_prepare_dataset(dataset, processing_class, args, dataset_name)",
    ),
    *hooks(
        _DPO,
        "pairs come with the reference's log-probabilities",
        "_precompute_ref_logps(dataset, name, batch_size)",
    ),
)
ROLLOUT = Hook(_GRPO, "rollout_func", "completions follow from seed, place and weights only")
"""It is public, but experimental."""
RATIO, DIFFERENCE = "importance_sampling_ratio", "sampling/sampling_logp_difference/mean"
"""Of what another engine sampled from and what is trained: in a batch, and in the log."""


@contextmanager
def only_asked_for(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the fused head computes only the positions that have a label, on a CPU too, where TRL
    computes all for the sake of accelerators that recompile; after it, the model has no such head.
    """
    require(HEAD)
    from trl.trainer import utils

    use_triton = utils._use_triton
    if next(model.parameters()).device.type == "cpu":
        utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = use_triton
        model.__dict__.pop("forward", None)


def add_head(model: Any, temperature: float) -> None:
    """Let a model beside the trained one give log-probabilities as that one does."""
    from trl.trainer import utils

    utils.add_fused_lm_head(model, temperature=temperature)


def run_head(model: torch.nn.Module, **inputs: Any) -> Any:
    """`log_probs` of the labels, and `entropy`, by the fused head."""
    output = model(**inputs, fused_lm_head=True)
    if getattr(output, "log_probs", None) is None:  # models take any keyword
        raise HEAD[1].lost("no longer makes `fused_lm_head=True` give log-probabilities")
    return output


class Open(OpenTrainer):
    """What both trainers have in common."""

    metrics = Hook(_SFT, "_metrics", "what is measured in a step is in its log")
    total_tokens = 0

    def __init__(self, *args: Any, **kwargs: Any):
        warn_of_untested("accelerate", "peft", "torch", "transformers", "trl")
        super().__init__(*args, **kwargs)
        loop = hooks_of(OpenTrainer)  # which has not begun
        require((hook for hook in hooks_of(type(self)) if hook not in loop), self)

    @property
    def figures(self) -> dict[str, list[float]]:
        """What was gathered for the next line of the log."""
        return self.metrics["train"]


class OpenSFTTrainer(Open, SFTTrainer):
    """TRL's SFTTrainer."""

    total_tokens = Hook(_SFT, "_total_train_tokens", "a phase ends with its budget of tokens")


class OpenDPOTrainer(Open, DPOTrainer):
    """TRL's DPOTrainer on pairs that are token ids, with the reference's log-probabilities."""

    total_tokens = Hook(_DPO, "_total_train_tokens", "a phase ends with its budget of tokens")
    _prepare_dataset = overridden(PAIRS, "as_it_is")
    _precompute_ref_logps = overridden(REFERENCE, "as_it_is")

    def __init__(self, *args: Any, **kwargs: Any):
        require((PAIRS, REFERENCE))
        model = kwargs["model"]
        configs = getattr(model, "peft_config", {})
        if configs:  # it makes a reference of an adapter called `default`, which nobody asks
            configs["default"] = configs[model.active_adapter]
        super().__init__(*args, **kwargs)
        if configs:
            del configs["default"]
            model.delete_adapter("ref")
        for hook in (PAIRS, REFERENCE):
            if hook.name not in self.called:
                raise hook.lost("is no longer called")

    def as_it_is(self, dataset: Any, *_: Any) -> Any:
        """The dataset needs no preparation."""
        return dataset


class OpenGRPOTrainer(Open, GRPOTrainer):
    """TRL's GRPOTrainer, to be overridden in `write`, `scored`, `rewarded` and `log_probs`."""

    micro_step = Hook(_GRPO, "_step", "a phase goes on in the middle of a batch of completions")
    batch_in_parts = Hook(_GRPO, "_buffered_inputs", "what updates are over outlasts a pause")
    written = Hook(_GRPO, "_logs", "samples are shown, with the advantages that were used")
    kl_term = Hook(_GRPO, "beta", "the loss has a KL term, though TRL looks for no reference")
    reference = Hook(_GRPO, "ref_model", "the reference is the role as the phase began")
    stop_ids = Hook(_GRPO, "eos_token_ids", "what ends a turn elsewhere ends a completion")
    writes = ROLLOUT

    _generate_and_score_completions = overridden(SCORED, "scored")
    _calculate_rewards = overridden(REWARDED, "rewarded")
    _get_per_token_logps_and_entropies = overridden(LOG_PROBS, "log_probs")

    def __init__(self, *args: Any, **kwargs: Any):
        require(METHODS)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func")  # that it is experimental
            super().__init__(*args, rollout_func=_write, **kwargs)
        self.begun_inside = False

    def write(self, prompts: list[str]) -> dict[str, Any]:
        """`prompt_ids`, `completion_ids` and `logprobs` of a completion of each prompt."""
        raise NotImplementedError

    def sampled_by(self, sync: Callable[[], None]) -> None:
        """From now on `write` gives log-probabilities of what another engine sampled. What they
        differ by from this model's is logged, and corrected as the arguments say. TRL calls `sync`
        before it asks for completions of weights that are new.
        """
        self.use_vllm, self._last_loaded_step = True, -1
        engine: Any = SimpleNamespace(sync_weights=sync)
        self.vllm_generation = engine

    def scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of completions with their advantages."""
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        corrected = self.use_vllm and self.args.vllm_importance_sampling_correction
        if corrected and not (RATIO in batch and self.figures[DIFFERENCE]):
            raise SCORED.lost(f"no longer corrects what vLLM samples by {RATIO}")
        return batch

    def rewarded(self, *args: Any) -> Tensor:
        """(completions of all processes, reward functions): what each of them gave."""
        return super()._calculate_rewards(*args)

    def log_probs(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Of completions, (B, T) in nats; then, where asked for, entropies and experts' loss."""
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(*args, **kwargs)
        self._require_called(LOG_PROBS)
        return loss

    def check_called(self) -> None:
        if ROLLOUT.name in self.called or not self.begun_inside:
            self._require_called(ROLLOUT, SCORED, REWARDED)

    def go_on_with(self, batch_in_parts: list[dict[str, Tensor]]) -> None:
        """Begin in the middle of a batch of completions."""
        self.batch_in_parts, self.begun_inside = batch_in_parts, True

    def _require_called(self, *found: Hook) -> None:
        for hook in found:
            if hook.name not in self.called:
                raise hook.lost("is no longer called")


def _write(prompts: list[str], trainer: OpenGRPOTrainer) -> dict[str, Any]:
    trainer.called.add(ROLLOUT.name)
    return trainer.write(prompts)
