"""Baselines are trained as long as the pair, and like it left where they were best."""

import pytest

from coevolve.training.run import train

BOTH = {"without_corl": True, "without_reasoning": True}
SFT = {"learning_rate": 0.01, "steps": 3, "train_batch_size": 8}


@pytest.fixture
def perplexities(recipe_of, tmp_path):
    """A function from a name and changes of the recipe to (perplexities, what the run said)."""

    def run(name, capsys, **changes):
        changes = {"baselines": BOTH, "refresh": {}, "p_none": 0.0, **changes}
        results = train(recipe_of(**changes), tmp_path / name)
        return results["perplexity"], capsys.readouterr()

    return run


def test_what_the_last_updates_spoil_is_undone(perplexities, capsys):
    """As a run without rounds, whose baselines end with the cold start."""
    cold, _ = perplexities("cold", capsys, rounds={"count": 0})
    rounds = {"count": 1, "phases": ["refresh", "estimator_sft"]}
    spoiling = {"learning_rate": 1.0, "max_grad_norm": 1e9, "steps": 3, "train_batch_size": 8}
    spoiled, said = perplexities("spoiled", capsys, rounds=rounds, estimator_sft=spoiling)
    for name in ("full", "without_corl", "without_reasoning"):
        assert spoiled[name] == cold[name]
    for name in BOTH:
        assert f"{name}: held-out perplexity" in said.out + said.err
    better, _ = perplexities("better", capsys, rounds=rounds, estimator_sft=SFT)
    assert better["without_reasoning"]["IDTest"] < cold["without_reasoning"]["IDTest"]
