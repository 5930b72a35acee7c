"""A run so small that it takes seconds: two or three steps of everything, on the synthetic world."""

import copy

import pytest

from coevolve.recipe import check_recipe

SFT = {"steps": 3, "learning_rate": 2e-3, "train_batch_size": 8}
GRPO = {"steps": 2, "learning_rate": 1e-3, "train_batch_size": 8, "num_generations": 4}

VALUES = {
    "name": "tiny",
    "prompts": "world",
    "data": {"world": {"train": 40, "test": 6}, "validation": 8},
    "model": {
        "base": "tiny",
        "tiny": {"hidden_size": 32, "layers": 1, "heads": 2},
        "tuning": "full",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 96,
        "max_reasoning_tokens": 24,
    },
    "traces": {"teacher": "dataset"},
    "cold_start": {"connector": SFT, "estimator": SFT},
    "rounds": {"count": 1},
    "connector_rl": {**GRPO, "max_completion_length": 24, "rewards": {"target_words": 5}},
    "refresh": {"temperature": 1.0},
    "estimator_sft": SFT,
    "estimator_rl": {
        **GRPO,
        "max_completion_length": 8,
        "golden_nll_weight": 1.0,
        "rewards": {"judge": "likelihood"},
    },
    "baselines": {"without_corl": True, "without_reasoning": True},
    "evaluation": {"marginal_samples": 2},
}

LORA = {
    "tuning": "lora",
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
}

ROLES = {
    "mixed": {"estimator": {"tuning": "full"}},
    "ranks": {"connector": {"lora": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "lora_dropout": 0.3}}},
}


def values(tuning="full", **sections):
    """The recipe's values, with whole sections or parts of them replaced.

    `tuning` is that of both roles. `mixed` is an adapter for the connector and a whole model for the estimator;
    `ranks` is two adapters, the connector's of another rank, on other modules, with more dropout.
    """
    merged = copy.deepcopy(VALUES)
    if tuning != "full":
        merged["model"].update(copy.deepcopy(LORA))
    merged["model"].update(ROLES.get(tuning, {}))
    for name, section in sections.items():
        merged[name] = {**merged.get(name, {}), **section} if isinstance(section, dict) else section
    return merged


@pytest.fixture(scope="session")
def values_of():
    """A function from changes to a recipe's values, to be written to a file."""
    return values


@pytest.fixture(scope="session")
def recipe_of():
    """A function from changes to a checked recipe."""
    return lambda tuning="full", **sections: check_recipe(values(tuning, **sections), "tiny")
