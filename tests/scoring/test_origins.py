"""An adapter goes on the base model that it was trained on, and on no other."""

import json
import shutil

import pytest
import torch

from coevolve.errors import ArtifactError
from coevolve.scoring.models import base_fingerprint, load_model
from coevolve.scoring.origins import (
    CONFIG,
    PARENT,
    WEIGHTS,
    Base,
    Origin,
    adapter_fingerprint,
    check_adapter,
    read_config,
    read_weights,
    require_parent,
    write_parent,
)
from coevolve.scoring.roles import CONNECTOR, ROLES, AdapterRoles, existing_config, lora_config
from coevolve.worlds.tiny import write_tiny_base

OPTIONS = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.1}


def base_at(folder, seed):
    path = str(write_tiny_base(folder, seed=seed, hidden=32, layers=1, heads=2))
    return Base(path, path, base_fingerprint(path))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_at(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return base_at(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def adapter(base, tmp_path):
    """A trained adapter's PEFT directory, as PEFT alone would leave it."""
    roles = AdapterRoles.create(
        load_model(base.path), dict.fromkeys(ROLES, lora_config(OPTIONS)), seed=0
    )
    torch.manual_seed(1)
    weights = {name: torch.randn_like(value) for name, value in roles.weights(CONNECTOR).items()}
    roles.load_weights(CONNECTOR, weights)
    roles.save(CONNECTOR, tmp_path / CONNECTOR)
    return tmp_path / CONNECTOR


def edit(adapter, **values):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **values}))


def test_what_is_saved_has_no_order_of_a_set(adapter):
    """Which differs from process to process."""
    targets = read_config(adapter)["target_modules"]
    assert targets == sorted(targets) and len(targets) == 7, targets


def test_a_recorded_parent_is_accepted_without_a_word(adapter, base):
    write_parent(adapter, Origin(base).parent())
    assert check_adapter(adapter, base, None) == []


def test_another_base_is_refused_with_both_fingerprints(adapter, base, other):
    write_parent(adapter, Origin(base).parent())
    with pytest.raises(ArtifactError) as caught:
        check_adapter(adapter, other, None)
    assert base.fingerprint in str(caught.value) and other.fingerprint in str(caught.value)


def test_another_quantization_is_said(adapter, base):
    write_parent(adapter, Origin(base, "4bit").parent())
    [note] = check_adapter(adapter, base, None)
    assert "quantization 4bit" in note and "goes on with None" in note


def test_without_a_record_the_named_folder_is_compared_by_fingerprint(adapter, base, other):
    [note] = check_adapter(adapter, base, None)  # PEFT wrote the folder of the base
    assert f"no {PARENT}" in note and "fingerprint" in note
    with pytest.raises(ArtifactError) as caught:
        check_adapter(adapter, other, None)
    assert base.fingerprint in str(caught.value) and other.fingerprint in str(caught.value)


def test_without_a_record_a_hub_id_must_be_the_recipes(adapter, base):
    edit(adapter, base_model_name_or_path="some/model")
    [note] = check_adapter(adapter, Base("some/model", base.path, base.fingerprint), None)
    assert "by that name" in note
    with pytest.raises(
        ArtifactError,
        match=r"trained on 'some/model'; the base model is .*set base_model_name_or_path",
    ):
        check_adapter(adapter, base, None)
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(ArtifactError, match="trained on None"):
        check_adapter(adapter, base, None)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "no adapter_config.json, so no PEFT adapter"),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
            "pickled and not read",
        ),
        (lambda folder: (folder / CONFIG).write_text("{"), "not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "accepted is an object"),
        (lambda folder: (folder / PARENT).write_text('{"base": 3}'), "no record of a parent"),
        (lambda folder: edit(folder, peft_type="IA3"), "peft_type is 'IA3'; accepted is 'LORA'"),
        (lambda folder: edit(folder, bias="all"), "bias is 'all'; accepted is 'none'"),
        (lambda folder: edit(folder, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (lambda folder: edit(folder, modules_to_save=["lm_head"]), "modules_to_save"),
    ],
)
def test_an_unusable_adapter_is_named(adapter, base, harm, message):
    write_parent(adapter, Origin(base).parent())
    harm(adapter)
    with pytest.raises(ArtifactError, match=message) as caught:
        check_adapter(adapter, base, None)
    assert str(adapter) in str(caught.value)


def test_the_fingerprint_is_of_what_the_adapter_does(adapter, tmp_path):
    before = adapter_fingerprint(adapter)
    shutil.copytree(adapter, tmp_path / "elsewhere")
    edit(tmp_path / "elsewhere", base_model_name_or_path="moved", inference_mode=True)
    assert adapter_fingerprint(tmp_path / "elsewhere") == before
    edit(tmp_path / "elsewhere", lora_alpha=16)
    assert adapter_fingerprint(tmp_path / "elsewhere") != before


def test_a_checkpoint_of_another_start_is_refused(base, other):
    one, two = (
        Origin(base, adapter="a", adapter_fingerprint="1f"),
        Origin(base, adapter="a", adapter_fingerprint="2f"),
    )
    require_parent("x", one.parent(), one)
    with pytest.raises(
        ArtifactError,
        match="adapter that it continued from has fingerprint 1f; here it would be 2f",
    ):
        require_parent("x", one.parent(), two)
    with pytest.raises(ArtifactError, match="fingerprint 1f; here it would be none"):
        require_parent("x", one.parent(), Origin(base))
    with pytest.raises(
        ArtifactError, match=f"base model has fingerprint {base.fingerprint}.*{other.fingerprint}"
    ):
        require_parent("x", Origin(base).parent(), Origin(other))


def test_going_on_begins_with_the_adapters_own_weights_and_settings(adapter, base):
    config = existing_config(adapter)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    roles = AdapterRoles.create(load_model(base.path), {CONNECTOR: config}, seed=5)
    roles.load_weights(CONNECTOR, read_weights(adapter))
    saved = read_weights(adapter)
    assert all(torch.equal(value, saved[name]) for name, value in roles.weights(CONNECTOR).items())
    assert all(
        p.requires_grad == (f".{CONNECTOR}." in n)
        for n, p in roles.module(CONNECTOR).named_parameters()
    )


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_whole(adapter, base, change):
    roles = AdapterRoles.create(
        load_model(base.path), {CONNECTOR: existing_config(adapter)}, seed=5
    )
    before, weights = roles.weights(CONNECTOR), read_weights(adapter)
    name = next(iter(weights))
    if change == "missing":
        del weights[name]
    elif change == "unknown":
        weights["x.lora_A.weight"] = torch.zeros(1)
    else:
        weights[name] = weights[name][:-1]
    with pytest.raises(ArtifactError, match="connector: the weights do not fit the model"):
        roles.load_weights(CONNECTOR, weights)
    assert all(torch.equal(value, before[name]) for name, value in roles.weights(CONNECTOR).items())
