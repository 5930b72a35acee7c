"""How many models there are in memory, and who acts as whom, for every way in which two roles can
differ.
"""

import pytest
import torch

from coevolve.errors import ArtifactError
from coevolve.scoring.models import load_model
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, AdapterRoles
from coevolve.training.setup import build_roles, prepare_origins
from coevolve.worlds.tiny import write_tiny_base

SHAPE = {"hidden": 32, "layers": 1, "heads": 2}
IDS = torch.tensor([[5, 6, 7]])
KINDS = {
    "shared": ({}, 1),
    "ranks": ({"connector": {"lora": {"r": 2}}}, 1),
    "connector full": ({"connector": {"tuning": "full"}}, 2),
    "estimator full": ({"estimator": {"tuning": "full"}}, 2),
    "other base": ({"connector": {"base": "OTHER"}}, 2),
    "other base, connector full": ({"connector": {"base": "OTHER", "tuning": "full"}}, 2),
    "other base, estimator full": (
        {"connector": {"base": "OTHER"}, "estimator": {"tuning": "full"}},
        3,
    ),
    "full": ({"tuning": "full"}, 3),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return [
        str(write_tiny_base(tmp_path_factory.mktemp(f"base{seed}"), seed=seed, **SHAPE))
        for seed in range(2)
    ]


@pytest.fixture
def build(recipe_of, bases, tmp_path):
    """A function from a kind, and whether the base judges, to the roles."""

    def built(kind, judge="base"):
        own = KINDS[kind][0]
        if own.get("connector", {}).get("base"):
            own = {**own, "connector": {**own["connector"], "base": bases[1]}}
        recipe = recipe_of(
            "lora", model={"base": bases[0], **own}, estimator_rl={"rewards": {"judge": judge}}
        )
        return build_roles(recipe, prepare_origins(recipe, tmp_path), torch.device("cpu"))

    return built


def logits(roles, actor):
    with roles.acting(actor) as model, torch.no_grad():
        assert not model.training
        return model(input_ids=IDS).logits


def spoil(roles, role):
    torch.manual_seed(0)
    roles.load_weights(
        role, {name: x + 0.5 * torch.randn_like(x) for name, x in roles.weights(role).items()}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_no_more_models_than_needed(build, kind):
    """A third one only where both roles, or the only one of the judge's base, are trained whole."""
    roles = build(kind)
    parts = [roles] if isinstance(roles, AdapterRoles) else [*roles.parts.values(), roles.base]
    modules = {id(part.model): part.model for part in parts}
    assert len(modules) == KINDS[kind][1]
    storages = [
        {p.data_ptr() for n, p in m.named_parameters() if "lora_" not in n}
        for m in modules.values()
    ]
    assert len(set.union(*storages)) == sum(map(len, storages))  # and no weight belongs to two


@pytest.mark.parametrize("kind", KINDS)
def test_the_untouched_base_is_the_estimators(build, bases, kind):
    roles = build(kind)
    assert roles.has_base
    with torch.no_grad():
        expected = load_model(bases[0])(input_ids=IDS).logits
    for role in ROLES:
        spoil(roles, role)
    assert torch.equal(logits(roles, None), expected)
    assert not torch.equal(logits(roles, ESTIMATOR), expected)
    assert not torch.equal(logits(roles, CONNECTOR), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_moves_alone_and_its_frozen_copy_stays(build, kind, role):
    roles = build(kind)
    other = ESTIMATOR if role == CONNECTOR else CONNECTOR
    before = {each: logits(roles, each) for each in ROLES}
    with roles.frozen(role, roles.weights(role)) as copy:
        assert (copy is None) == (roles.tuning[role] == "lora")
        spoil(roles, role)
        assert torch.equal(logits(roles, "ref"), before[role])
        assert not torch.equal(logits(roles, role), before[role])
        assert torch.equal(logits(roles, other), before[other])
        trained = {name for name, p in roles.module(role).named_parameters() if p.requires_grad}
        assert trained and not any(".ref." in name or f".{other}." in name for name in trained)
    assert torch.equal(logits(roles, other), before[other])


def test_without_a_judge_no_base_is_kept_for_it(build):
    roles = build("full", judge="overlap")
    assert not roles.has_base
    with pytest.raises(ArtifactError, match="was not kept in memory"):
        roles.acting(None)
