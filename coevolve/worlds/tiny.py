"""A tiny random Qwen3-architecture model and its word-level tokenizer: no download."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from coevolve.errors import DataError
from coevolve.worlds.language import vocabulary

START, END, PAD, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|pad|>", "<|unk|>"
SPECIAL_TOKENS = (PAD, UNKNOWN, START, END)
ROLES = ("system", "user", "assistant")

# ChatML in words: a turn costs two tokens before its content and one after. Whitespace separates,
# and is no token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|> ' + message['role'] + ' ' + message['content'] + ' <|im_end|> ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)


def tiny_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, between spaces; any other word becomes `<|unk|>`.

    As in every chat tokenizer, the special tokens are recognised inside a text unless it is called
    with `split_special_tokens=True`.
    """
    words = tuple(dict.fromkeys((*ROLES, *words)))
    for word in words:
        if word.split() != [word] or word in SPECIAL_TOKENS:
            special = ", ".join(SPECIAL_TOKENS)
            raise DataError(f"vocabulary: {word!r} has whitespace, or is one of {special}.")
    # The markers must not be words of the model: as text (`split_special_tokens=True`) they are
    # unknown words.
    word_ids = {word: index for index, word in enumerate((UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(word_ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, START, END])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(tokenizer: PreTrainedTokenizerFast, *, seed: int, **shape: Any) -> Qwen3ForCausalLM:
    """A random Qwen3 in float32, `shape` as for `tiny_config`; no global random state moves."""
    config = tiny_config(tokenizer, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model.eval()


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 8,
    positions: int = 256,
    rope_theta: float = 10_000.0,
) -> Qwen3Config:
    """The configuration of `tiny_model`."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        # Tied, the tables of the world take several times as many steps to learn.
        tie_word_embeddings=False,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def write_tiny_base(folder: str | Path, seed: int, **shape: int) -> Path:
    """Save the world's tokenizer and a random model (`shape` of `tiny_config`) in a folder."""
    tokenizer = tiny_tokenizer(vocabulary())
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, seed=seed, **shape).save_pretrained(folder)
    return Path(folder)
