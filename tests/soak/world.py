"""A world so small that a round takes a third of a second: its data, its base model, its recipe."""

import json
import random
from pathlib import Path
from typing import Any

from coevolve.prompts import prompt_set
from coevolve.worlds.tiny import tiny_model, tiny_tokenizer

PROMPTS = prompt_set("brief")
WORDS = (
    *(
        "anchor",
        "bread",
        "candle",
        "dog",
        "ember",
        "flute",
        "garden",
        "harbour",
        "island",
        "jacket",
    ),
    *("kettle", "lantern", "meadow", "needle", "orchard", "parrot", "quilt", "river", "sailor"),
    *("teapot", "umbrella", "violin", "window", "yarn"),
)
NOTHING_TRAINED = {"without_corl": False, "without_reasoning": False}


def make_world(folder: Path, teacher: str, rounds: int, *, vllm: bool = False) -> Path:
    """Write data, base model and recipe; returns the recipe's file.

    Args:
        teacher: the address of its endpoint.
        vllm: whether it generates, under adapters; its attention has heads of 32 or more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = {
        "IDTrain": [_row("IDTrain", number) for number in range(16)],
        "IDTest": [_row("IDTest", number) for number in range(2)],
        "OOD1Test": [_row("OOD1Test", number) for number in range(2)],
    }
    (folder / "dialogues.json").write_text(json.dumps(corpus))
    said = json.dumps(corpus).replace('"', " ").replace("\\n", " ").split()
    prompts = " ".join(str(text) for text in PROMPTS.to_dict().values()).split()
    words = [*said, *prompts, *" ".join(PROMPTS.sections).split(), *WORDS]
    tokenizer = tiny_tokenizer(word for word in words if not word.startswith("<|"))
    tokenizer.save_pretrained(folder / "base")
    shape = {"hidden": 64 if vllm else 16, "layers": 1, "heads": 2, "positions": 512}
    tiny_model(tokenizer, seed=0, **shape).save_pretrained(folder / "base")
    path = folder / "soak.yaml"
    recipe = _recipe(folder, teacher, rounds)
    if vllm:
        recipe["model"] |= {"tuning": "lora", "lora": {"r": 4, "lora_alpha": 8}}
        for name in ("connector_rl", "estimator_rl"):
            recipe[name] |= {"use_vllm": True, "updates_per_generation": 2, "steps": 2}
        recipe["checkpoints"] = {"every_steps": 1}
    path.write_text(json.dumps(recipe, indent=1))
    return path


def _recipe(folder: Path, teacher: str, rounds: int) -> dict[str, Any]:
    # On another number of processes sums are rounded otherwise, and a high rate makes that grow.
    update = {"steps": 1, "learning_rate": 1e-4, "train_batch_size": 4}
    groups = {**update, "num_generations": 2}
    learn = {**update, "steps": 40, "learning_rate": 1e-2}  # reasonings that are well formed
    return {
        "name": "soak",
        "prompts": PROMPTS.name,
        "data": {"path": str(folder / "dialogues.json"), "validation": 4},
        "model": {
            "base": str(folder / "base"),
            "tuning": "full",
            "dtype": "float32",
            "device": "cpu",
            "max_length": 480,
            "max_reasoning_tokens": 24,
        },
        "traces": {"teacher": "endpoint", "model": "m", "base_url": teacher, "max_new_tokens": 32},
        "cold_start": {"connector": learn, "estimator": update},
        "rounds": {"count": rounds,
            "phases": ["connector_rl", "refresh", "estimator_sft", "estimator_rl"]},
        "connector_rl": {**groups, "max_completion_length": 24, "rewards": {"target_words": 5}},
        "refresh": {"temperature": 1.0, "examples": 4},
        "estimator_sft": update,
        "estimator_rl": {
            **groups,
            "max_completion_length": 6,
            "golden_nll_weight": 1.0,
            "rewards": {"judge": "likelihood"},
        },
        "baselines": {**NOTHING_TRAINED, "oracle": True},
        "logging": {"every": 1},
    }  # fmt: skip


def _row(split: str, number: int) -> dict[str, Any]:
    rng = random.Random(f"{split}:{number}")
    persona, character, said, answer = (" ".join(rng.sample(WORDS, 4)) for _ in range(4))
    return {
        "sample_ID": f"{split}-{number:05d}",
        "subset_tag": split,
        "user_persona": persona,
        "agent_character": character,
        "dialogue_context": [{"user_query": said}],
        "agent_golden_response": answer,
    }


def trace_of(question: str) -> str:
    """What the teacher answers, whenever it is asked."""
    rng = random.Random(question)
    connections, features = (" ".join(rng.sample(WORDS, count)) for count in (2, 5))
    return f"{PROMPTS.sections[0]} {connections}\n{PROMPTS.sections[-1]} {features}"
