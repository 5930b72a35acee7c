"""A random model of a real shape, dialogues of made words, and a recipe of one round."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from coevolve.libraries import vllm
from coevolve.prompts import prompt_set
from coevolve.worlds.tiny import tiny_tokenizer
from tests.soak.world import WORDS

PROMPTS = prompt_set("brief")
SIZES: dict[str, dict[str, Any]] = {
    "0.6b": {
        "shape": {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
                  "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
                  "head_dim": 128},
        "dtype": "bfloat16", "dialogue": 700, "response": 60, "reasoning": 128, "rows": 16,
        "pairs": 12, "context": 800,
    },
    "tiny": {
        "shape": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
                  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                  "head_dim": 32},
        "dtype": "float32", "dialogue": 30, "response": 4, "reasoning": 16, "rows": 4,
        "pairs": 3, "context": 40,
    },
}  # fmt: skip


def config_of(size: str) -> Qwen3Config:
    shape = SIZES[size]["shape"]
    return Qwen3Config(**shape, max_position_embeddings=4096, tie_word_embeddings=True)


def make_base(folder: Path, size: str) -> Path:
    """Random weights, and a tokenizer with a token for each word."""
    words = " ".join(str(text) for text in PROMPTS.to_dict().values()).split()
    words = [word for word in (*words, *WORDS) if not word.startswith("<|")]
    tokenizer = tiny_tokenizer([*words, *" ".join(PROMPTS.sections).split()])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config_of(size)).to(getattr(torch, SIZES[size]["dtype"]))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    return folder


def _row(split: str, number: int, size: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(f"{split}:{number}")

    def said(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    return {
        "sample_ID": f"{split}-{number}",
        "subset_tag": split,
        "user_persona": said(size["dialogue"] // 4),
        "agent_character": said(size["dialogue"] // 4),
        "dialogue_context": [{"user_query": said(size["dialogue"] // 2)}],
        "agent_golden_response": said(size["response"]),
    }


def recipe_values(folder: Path, name: str, *, with_vllm: bool) -> dict[str, Any]:
    """One round of everything, over adapters; the data is written beside it."""
    size, data = SIZES[name], folder / "dialogues.json"
    counts = {"IDTrain": 40, "IDTest": 4, "OOD1Test": 4}
    rows = {split: [_row(split, i, size) for i in range(n)] for split, n in counts.items()}
    data.write_text(json.dumps(rows), encoding="utf-8")
    room = size["dialogue"] + size["reasoning"] + size["response"] + 200
    sft = {"steps": 4, "learning_rate": 1e-4, "train_batch_size": size["rows"]}
    rl: dict[str, Any] = {**sft, "num_generations": 4, "max_completion_length": size["reasoning"]}
    if with_vllm and vllm.missing() is None:
        rl |= {"use_vllm": True, "vllm_enable_sleep_mode": torch.cuda.is_available()}
    cuda = torch.cuda.is_available()
    return {
        "name": "gpu",
        "prompts": PROMPTS.name,
        "data": {"path": str(data), "validation": 8},
        "model": {
            "base": str(folder / "base"),
            "dtype": size["dtype"],
            "device": "auto" if cuda else "cpu",
            "max_length": room,
            "max_reasoning_tokens": size["reasoning"],
        },
        "cold_start": {"connector": sft, "estimator": sft},
        "rounds": {"count": 1},
        "connector_rl": {**rl, "rewards": {"target_words": 5}},
        "refresh": {"temperature": 1.0, "examples": 16},
        "estimator_sft": sft,
        "estimator_rl": {**rl, "golden_nll_weight": 1.0, "rewards": {"judge": "likelihood"}},
        "baselines": {"without_corl": False, "without_reasoning": False},
        "evaluation": {"marginal_samples": 0},
        "logging": {"report_to": []},
    }
