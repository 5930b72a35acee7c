"""Generating texts in batches, greedily or by seeded sampling whose result does not depend on the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from coevolve.errors import TooLongError
from coevolve.scoring.batching import TOKEN_BUDGET, Ids, batches_by_tokens, device_of, max_positions, pad


@dataclass(frozen=True)
class Generation:
    """Generated ids, the end of turn excluded, and whether the end of turn was reached."""

    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """Sampling from softmax(logits / temperature). `seed` with the row's own key decides the noise."""

    seed: int
    temperature: float = 1.0


def generate(
    model: torch.nn.Module,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    stop_id: int,
    pad_id: int,
    sampling: Sampling | None = None,
    keys: Sequence[int] | None = None,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
    poll: Callable[[], None] | None = None,
) -> list[Generation]:
    """One continuation of each prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompts: R non-empty lists of ids.
        max_new_tokens: a continuation that has not ended by then is returned with `finished=False`.
        stop_id: the token that ends a turn.
        sampling: None for greedy decoding.
        keys: R integers that, with the seed, decide each row's noise; its index by default.
        poll: called before each token; what it raises ends the generation.

    Raises:
        TooLongError: a prompt leaves no room for `max_new_tokens` in the model's positions.
    """
    limit = max_positions(model)
    for index, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > limit:
            raise TooLongError(
                f"Prompt {index} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the model's "
                f"{limit} positions. Shorten the dialogue, or drop the example explicitly."
            )
    keys = list(range(len(prompts))) if keys is None else list(keys)
    results: list[Generation | None] = [None] * len(prompts)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop_id, pad_token_id=pad_id, use_cache=True
    )
    for rows in batches_by_tokens([len(prompt) + max_new_tokens for prompt in prompts], token_budget):
        processors: list[LogitsProcessor] = [] if poll is None else [_Poll(poll)]
        if sampling is not None:
            processors.append(_GumbelNoise(sampling, [keys[row] for row in rows]))
        for row, generation in zip(
            rows, _generate_batch(model, [prompts[row] for row in rows], config, processors), strict=True
        ):
            results[row] = generation
        if progress is not None:
            progress(len(rows))
    return results


@torch.no_grad()
def _generate_batch(
    model: torch.nn.Module, prompts: Sequence[Ids], config: GenerationConfig, processors: list[LogitsProcessor]
) -> list[Generation]:
    device = device_of(model)
    ids_BP, mask_BP = pad(prompts, config.pad_token_id, left=True)
    output_BT = model.generate(
        input_ids=ids_BP.to(device),
        attention_mask=mask_BP.to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        synced_gpus=False,  # the model is whole here; waiting for processes that have less to generate would never end
    )
    generations = []
    for ids in output_BT[:, ids_BP.shape[1] :].tolist():
        finished = config.eos_token_id in ids
        generations.append(Generation(ids[: ids.index(config.eos_token_id)] if finished else ids, finished))
    return generations


class _Poll(LogitsProcessor):
    """Lets somebody look in before each token."""

    def __init__(self, poll: Callable[[], None]):
        self.poll = poll

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.poll()
        return scores


class _GumbelNoise(LogitsProcessor):
    """Makes greedy decoding a sample: argmax(logits / T + Gumbel noise) is distributed as softmax(logits / T).

    Each row draws from a generator of its own, so its sample is the same in any batch.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[int]):
        self.temperature = sampling.temperature
        self.generators = [torch.Generator().manual_seed(_mix(sampling.seed, key)) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform_BV = torch.stack(
            [torch.rand(scores.shape[-1], generator=g, dtype=torch.float32) for g in self.generators]
        ).to(scores.device)
        tiny = torch.finfo(torch.float32).tiny
        gumbel_BV = -torch.log((-torch.log(uniform_BV.clamp(min=tiny))).clamp(min=tiny))
        return scores.float() / self.temperature + gumbel_BV


def _mix(seed: int, key: int) -> int:
    """One 63-bit seed from two numbers, so that neighbouring seeds and keys give unrelated streams (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + key + 1) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
