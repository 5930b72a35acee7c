"""An estimator in a world of its own, in memory and exported."""

import pytest
import torch

from coevolve import ProbabilityEstimator
from coevolve.prompts import Renderer, prompt_set
from coevolve.recipe import check_recipe
from coevolve.scoring.models import base_fingerprint, load_model, load_tokenizer
from coevolve.scoring.origins import Base, Origin
from coevolve.scoring.roles import ROLES, AdapterRoles, SeparateRoles, lora_config
from coevolve.training.export import export_estimator
from coevolve.worlds.corpus import world_corpus
from coevolve.worlds.tiny import write_tiny_base

RECIPE = {
    "name": "test",
    "prompts": "world",
    "data": {"world": {"train": 8, "test": 8}},
    "model": {"base": "tiny", "tuning": "full"},
    "cold_start": {role: {"steps": 1, "learning_rate": 0.1} for role in ROLES},
    "rounds": {"count": 0},
}


@pytest.fixture(scope="module")
def examples():
    return list(world_corpus(0, train=2, test=7).require("IDTest"))


@pytest.fixture(scope="module")
def responses(examples):
    return [example.golden_response for example in examples]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="module")
def build(base_folder):
    """Makes an estimator whose two roles differ from the base and from each other."""

    def make(tuning):
        model = load_model(str(base_folder))
        if tuning == "lora":
            options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.1}
            roles = AdapterRoles.create(
                model, {role: lora_config(options) for role in ROLES}, seed=0
            )
        else:
            roles = SeparateRoles.create(model, keep_base=False)
        torch.manual_seed(1)
        for role in ROLES:
            weights = roles.weights(role)
            roles.load_weights(
                role,
                {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()},
            )
        render = Renderer(prompt_set("world"), load_tokenizer(str(base_folder)))
        return ProbabilityEstimator(roles, render, max_new_tokens=16)

    return make


@pytest.fixture(scope="module", params=["lora", "full"])
def exported(request, build, base_folder, tmp_path_factory):
    """The estimator in memory, and the folder that it was exported to."""
    estimator = build(request.param)
    folder = tmp_path_factory.mktemp("export") / "estimator"
    base = Base(str(base_folder), str(base_folder), base_fingerprint(str(base_folder)))
    origins = dict.fromkeys(ROLES, Origin(base))
    export_estimator(
        folder, estimator, check_recipe(RECIPE, "test"), origins, {"training": {"note": "random"}}
    )
    return estimator, folder
