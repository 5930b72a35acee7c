"""The table of memory in launch/README.md, as it stands there: what `coevolve validate --launch`
counts for Qwen3 with the published settings, without a GPU and without weights. GB = 10^9 bytes.

    python -m tests.benchmarks.memory_table [MODEL ...]

Several minutes, and a column for each model. Totals are of bytes, not of what is rounded above.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
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
COLUMNS = ("Qwen3-4B", "Qwen3-8B", "Qwen3-14B")
RL = ("connector_rl", "estimator_rl")
LESS = [
    *(f"{name}.per_device_train_batch_size=1" for name in RL),
    *(f"cold_start.{role}.per_device_train_batch_size=1" for role in ROLES),
    "estimator_sft.per_device_train_batch_size=1",
    "evaluation.token_budget=16384",
]
SETTINGS = {
    "**in all**": [],
    "with vLLM in 0.3 of each GPU beside it, which holds the base once more and 5,120 tokens": [
        "connector_rl.use_vllm=true"
    ],
    "1 row at once, `evaluation.token_budget=16384`": LESS,
    "the same with `model.quantization=4bit`": [*LESS, "model.quantization=4bit"],
    "1 row at once, `model.sharded=true` on 8 GPUs": [*LESS, "model.sharded=true"],
}
PARTS = {
    "base, bfloat16, frozen": ("frozen base",),
    "two adapters, float32; gradient and Adam's two moments of one": (
        *("weights of both roles", "gradient and optimizer of one role"),
    ),
    "the largest backward pass (connector RL, its logits included), or 65,536 tokens of keys and "
    "values, whichever is more": ("connector_rl", "keys and values"),
    "CUDA": ("CUDA",),
}
"""Of the first line's parts, those that begin so."""


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


def gigabytes(parts: Iterable[Part]) -> float:
    return round(sum(part.bytes for part in parts) / 1e9, 1)


def lines(name: str) -> dict[str, float]:
    """What stands in the table for a model, by its line."""
    whole = counted(name, [])
    found = {
        line: gigabytes(part for part in whole if part.what.startswith(begins))
        for line, begins in PARTS.items()
    }
    return found | {line: gigabytes(counted(name, how)) for line, how in SETTINGS.items()}


def rows(columns: Sequence[Mapping[str, float]]) -> list[str]:
    """The table's lines, of each model's."""
    return [
        "| " + " | ".join([line, *(f"{column[line]:.1f}" for column in columns)]) + " |"
        for line in columns[0]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    names = argv or COLUMNS
    print("\n".join(["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]))
    print(*rows([lines(name) for name in names]), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:] or None)
