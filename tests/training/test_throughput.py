"""Options that change what a step costs, and not what it does."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from coevolve.errors import RecipeError
from coevolve.recipe.optimization import Sft
from coevolve.scoring.roles import ESTIMATOR
from coevolve.training import phases
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.run import train
from coevolve.training.schedule import Budget

NOTHING_ELSE = {
    "rounds": {"count": 0},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
}


def test_rows_without_padding_train_alike(recipe_of, tmp_path, build):
    context, state = build(recipe_of("full"), tmp_path)
    before = state.pair[ESTIMATOR]
    shown = [text if place % 3 else None for place, text in enumerate(context.traces)]
    rows = phases.estimator_rows(context.estimator, context.train, shown)
    assert len({len(rows[i].prompt) + len(rows[i].response) for i in range(4)}) > 1
    found = []
    for padding_free in (False, True):
        context.roles.load_weights(ESTIMATOR, before)
        settings = Sft(steps=4, learning_rate=1e-3, train_batch_size=8, padding_free=padding_free)
        name, budget = f"sft-{padding_free}", Budget(4, 4)
        own = context, state, ESTIMATOR, "sft", name, rows, settings, budget
        phases.sft(*own, carry=False)
        state.progress.pop("sft")
        found.append(context.roles.weights(ESTIMATOR))
    padded, free = found
    for name, weight in padded.items():
        torch.testing.assert_close(free[name], weight, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(before[name], weight) for name, weight in padded.items())


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs: pip install 'coevolve[quantization]'",
)
def test_moments_in_8_bits_go_on_as_they_were(recipe_of, stop_at_checkpoint, tmp_path):
    sft = {"steps": 4, "learning_rate": 2e-3, "train_batch_size": 8, "optim": "adamw_8bit"}
    cold = {"connector": sft, "estimator": {**sft, "steps": 1}}
    shape = {"hidden_size": 64, "layers": 1, "heads": 2}
    recipe = recipe_of(
        "full",
        **NOTHING_ELSE,
        cold_start=cold,
        checkpoints={"every_steps": 1},
        model={"tiny": shape},
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(recipe, whole)
    with pytest.raises(Interrupted):
        train(recipe, run, stop=stop_at_checkpoint(run, "step-2"))
    (held,) = run.glob("checkpoints/*step-2")
    state = {name: x for path in held.rglob("*.safetensors") for name, x in load_file(path).items()}
    assert any(x.dtype == torch.uint8 for x in state.values())
    train(recipe, run)
    files = [
        json.loads((x / "estimator" / "manifest.json").read_text())["files"] for x in (whole, run)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"top_p": 0.9}, "top_p has vLLM sample from some tokens only.*correction: false"),
        ({"min_p": 0.1}, "min_p has vLLM sample from some tokens only"),
        ({"vllm_structured_outputs_regex": "a+"}, "regex has vLLM sample from some tokens only"),
        ({"vllm_structured_outputs_regex": "("}, r"found '\(', which is no regular expression"),
        ({"vllm_structured_outputs_regex": "a", "use_vllm": False}, "needs use_vllm: true"),
    ],
)
def test_ratios_are_of_what_was_sampled_from(recipe_of, settings, problem):
    off = {"vllm_importance_sampling_correction": False}
    with pytest.raises(RecipeError, match=problem):
        recipe_of(connector_rl={"use_vllm": True, **settings})
    if "only" in problem:
        recipe_of(connector_rl={"use_vllm": True, **settings, **off})
        if "regex" not in problem:
            recipe_of(connector_rl=settings)
