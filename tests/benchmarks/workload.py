"""Models and inputs that the benchmarks share, and what their arithmetic needs."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig

from coevolve.scoring.models import load_model, load_tokenizer, resolve_base
from coevolve.worlds.language import INPUT_WORDS
from coevolve.worlds.tiny import tiny_model, tiny_tokenizer
from tests.benchmarks.harness import synchronise

WORDS = sorted({word for words in INPUT_WORDS.values() for word in words})


def base_folder(base: str, scratch: Path) -> str:
    """A model's folder: `tiny` is made anew, anything else is what a recipe's
    `model.base` may be.
    """
    if base != "tiny":
        return resolve_base(base)
    folder = scratch / "tiny"
    tokenizer = tiny_tokenizer(WORDS)
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, seed=0, hidden=64, heads=2, positions=4096).save_pretrained(folder)
    return str(folder)


def load(folder: str, dtype: str = "float32") -> tuple[torch.nn.Module, Any]:
    """(model, tokenizer) on the GPU, if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(folder, device=device, dtype=dtype), load_tokenizer(folder)


def config(folder: str) -> PretrainedConfig:
    """Of the model there."""
    return AutoConfig.from_pretrained(folder)


def lengths(count: int, mean: int, rng: np.random.Generator) -> list[int]:
    """Whole numbers spread evenly from 0.75 to 1.25 times the mean, in random order."""
    spread = np.linspace(0.75 * mean, 1.25 * mean, count) if count > 1 else np.array([mean])
    return np.maximum(1, np.rint(rng.permutation(spread))).astype(int).tolist()


def random_ids(count: int, mean: int, vocabulary: int, rng: np.random.Generator) -> list[list[int]]:
    """`count` lists of token ids. What they say does not matter to what they cost."""
    return [
        rng.integers(0, vocabulary, size=length).tolist() for length in lengths(count, mean, rng)
    ]


def text_of(tokens: int, tokenizer: Any, rng: np.random.Generator) -> str:
    """Words that make about so many tokens."""
    words = rng.choice(WORDS, size=tokens).tolist()
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"][:tokens]
    return tokenizer.decode(ids).strip()


def linear_shapes(config: PretrainedConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the matrix products of one layer of a Llama or Qwen model."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    return [
        (hidden, queries),
        (hidden, keys),
        (hidden, keys),
        (queries, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]


FLOPS_FORMULA = (
    "2 * (weights of the layers' matrices) * (context tokens + response tokens - responses) "
    "+ 4 * layers * heads * head_dim * (pairs of a token with one that it attends to) "
    "+ 2 * hidden * vocabulary * (scored tokens, the first of each context's responses once)"
)
"""A context is run once and a response's last token predicts nothing, so neither is counted where
it is not needed.
"""


def flops_needed(
    config: PretrainedConfig, contexts: Sequence[int], responses: Sequence[Sequence[int]]
) -> float:
    """Floating point operations that exact scores cannot do without, by `FLOPS_FORMULA`.

    Args:
        contexts: tokens of each context.
        responses: for each context, tokens of each response that is scored on it.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = attended = scored = 0
    for context, own in zip(contexts, responses, strict=True):
        tokens += context + sum(n - 1 for n in own)
        attended += context * (context + 1) // 2 + sum(
            (n - 1) * context + n * (n - 1) // 2 for n in own
        )
        scored += 1 + sum(n - 1 for n in own)
    weights = config.num_hidden_layers * sum(a * b for a, b in linear_shapes(config))
    per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * head
    return (
        2.0 * weights * tokens
        + per_pair * attended
        + 2.0 * config.hidden_size * config.vocab_size * scored
    )


def matmul_work(
    config: PretrainedConfig, rows: int, *, dtype: torch.dtype, device: str
) -> Callable[[float], float]:
    """A function that does about so many operations, in one layer's matrix products of `rows`
    tokens at once.

    What it returns is how many it did: whole rounds of all products.
    """
    shapes = linear_shapes(config)
    inputs = {a: torch.randn(rows, a, dtype=dtype, device=device) for a, _ in shapes}
    weights = [torch.randn(b, a, dtype=dtype, device=device) for a, b in shapes]
    flops = 2.0 * rows * sum(a * b for a, b in shapes)

    def work(wanted: float) -> float:
        rounds = max(1, round(wanted / flops))
        for _ in range(rounds):
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        synchronise()
        return rounds * flops

    return work


def matmul_rate(
    config: PretrainedConfig, rows: int, *, dtype: torch.dtype, device: str, repeats: int = 5
) -> float:
    """FLOP/s of this machine on the products of `matmul_work`: the median of `repeats`."""
    work = matmul_work(config, rows, dtype=dtype, device=device)

    def once() -> float:
        begin, done = time.perf_counter(), 0.0
        while time.perf_counter() - begin < 0.2:
            done += work(0.0)
        return done / (time.perf_counter() - begin)

    once()
    return statistics.median(once() for _ in range(repeats))


@torch.no_grad()
def plain_log_probs(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    precision: torch.dtype = torch.float32,
) -> list[float]:
    """log p(response | prompt) in nats as one writes it down: a padded batch, the log-softmax of
    all its logits, in some precision.
    """
    device = next(model.parameters()).device
    whole = [
        torch.tensor([*prompt, *response])
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    ids_BT = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=pad_id).to(
        device
    )
    mask_BT = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(ids) for ids in whole], batch_first=True
    ).to(device)
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
    log_probs_BT = (
        torch.log_softmax(logits_BTV.to(precision), dim=-1)
        .gather(-1, ids_BT[:, 1:, None])
        .squeeze(-1)
    )
    return [
        float(row[len(prompt) - 1 : len(ids) - 1].double().sum())
        for row, prompt, ids in zip(log_probs_BT, prompts, whole, strict=True)
    ]
