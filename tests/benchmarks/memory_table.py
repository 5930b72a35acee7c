"""The table of memory in launch/README.md: what `coevolve validate --launch` counts for Qwen3 of
four sizes with the published settings, without a GPU and without weights.

    python -m tests.benchmarks.memory_table
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import Qwen3Config

from coevolve.preflight.models import BaseFacts
from coevolve.recipe import load_recipe
from coevolve.scoring.roles import ROLES
from coevolve.training.memory import Longest, Part, memory_of

RECIPE = Path(__file__).parents[2] / "recipes" / "qwen3-8b"
# hidden, feed-forward, layers, heads; all have 8 key-value heads of 128.
SHAPES = {
    "Qwen3-4B": (2560, 9728, 36, 32),
    "Qwen3-8B": (4096, 12288, 36, 32),
    "Qwen3-14B": (5120, 17408, 40, 40),
    "Qwen3-32B": (5120, 25600, 64, 64),
}
RL = ("connector_rl", "estimator_rl")
LESS = [
    *(f"{name}.per_device_train_batch_size=1" for name in RL),
    *(f"cold_start.{role}.per_device_train_batch_size=1" for role in ROLES),
    "estimator_sft.per_device_train_batch_size=1",
    "evaluation.token_budget=16384",
]
SETTINGS = {
    "as the recipe has it": [],
    "with vLLM beside": ["connector_rl.use_vllm=true"],
    "1 row at once": LESS,
    "1 row, base in 4 bits": [*LESS, "model.quantization=4bit"],
    "1 row, base in 8 parts": [*LESS, "model.sharded=true"],
}


def config_of(name: str) -> Qwen3Config:
    hidden, inner, layers, heads = SHAPES[name]
    return Qwen3Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=name == "Qwen3-4B",
    )


def counted(name: str, overrides: Sequence[str]) -> list[Part]:
    """Memory of one GPU for a model, the recipe changed so."""
    recipe = load_recipe(RECIPE, overrides)
    # Prompts as long as they may be beside reasonings of 2,048 tokens and responses of 512.
    longest = Longest(3072, 2560, 512)
    base = BaseFacts(name, config_of(name), None)
    return memory_of(recipe, dict.fromkeys(ROLES, base), longest, "ddp", 8)[0]


def main(argv: Sequence[str] | None = None) -> None:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in argv or SHAPES:
        for what, overrides in SETTINGS.items():
            parts = counted(name, overrides)
            gigabytes = {part.what: round(part.bytes / 1e9, 1) for part in parts}
            table.setdefault(name, {})[what] = gigabytes | {
                "in all": round(sum(gigabytes.values()), 1)
            }
            print(name, what, table[name][what], file=sys.stderr, flush=True)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:] or None)
