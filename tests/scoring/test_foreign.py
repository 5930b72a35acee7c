"""What others made and cannot be used: each is one sentence that names it and says what to do."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coevolve.errors import ArtifactError, OutOfMemoryError, RecipeError
from coevolve.scoring import models
from coevolve.scoring.foreign import explained
from coevolve.scoring.models import (
    base_fingerprint,
    choose_device,
    load_model,
    load_tokenizer,
    resolve_base,
    snapshot,
)
from coevolve.scoring.roles import existing_config, put_on

PATTERNS = ["*.safetensors", "*.json"]


def load(base):
    """All that is done with a base model, in the order of a run."""
    path = resolve_base(base)
    base_fingerprint(path)
    load_tokenizer(path)
    load_model(path)
    snapshot(path, PATTERNS)


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(size):
    return lambda folder: os.truncate(folder / "model.safetensors", size)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def in_two_files(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / models.INDEX).write_text(json.dumps(index))


def a_tensor_less(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(sorted(weights)[-1])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


OWN_CODE = {
    "model_type": "mine",
    "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
}
DAMAGE = {
    "weights cut at the head": (
        cut(100),
        "model.safetensors cannot be read: its weights are damaged",
    ),
    "weights cut at the end": (
        cut(9_000),
        "model.safetensors cannot be read: its weights are damaged",
    ),
    "weights of no bytes": (cut(0), "its weights are damaged"),
    "no weights": (
        without("model.safetensors"),
        "no \\*.safetensors files. Save it with save_pretrained",
    ),
    "pickled weights": (pickled, "no \\*.safetensors files \\(pickled ones are not read\\)"),
    "a file of weights missing": (in_two_files, "model-2.safetensors: listed in .* but missing"),
    "a damaged index": (
        write(models.INDEX, b"{}"),
        "index.json cannot be read: KeyError: 'weight_map'",
    ),
    "a tensor missing": (a_tensor_less, "its weights lack 1 tensors of the model"),
    "other shapes": (config(hidden_size=16), "its weights have another shape for"),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        "tokenizer.json is missing",
    ),
    "a damaged tokenizer": (
        write("tokenizer.json", b"{"),
        "its tokenizer: a file of it is damaged",
    ),
    "a tokenizer of another kind": (
        write("tokenizer.json", b"[1]"),
        "cannot be loaded with its tokenizer: ",
    ),
    "no configuration": (without("config.json"), "config.json is missing, or names no model_type"),
    "a damaged configuration": (write("config.json", b"{"), "not a valid JSON file"),
    "a configuration that is a list": (write("config.json", b"[]"), "cannot be loaded"),
    "an unknown model type": (
        config(model_type="nope", architectures=["Nope"]),
        "names no model_type that the inst",
    ),
    "another kind of model": (config(model_type="vit"), "it is no causal language model"),
    "code of its own": (config(**OWN_CODE), "code of its own.*model.trust_remote_code in a recipe"),
    "a word for a number": (config(hidden_size="wide"), "Field 'hidden_size' expected int"),
    "an unknown activation": (config(hidden_act="nope"), "cannot be loaded: KeyError: 'nope'"),
    "no heads": (config(num_attention_heads=0), "cannot be loaded"),
    "an unknown quantization": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_model_that_cannot_be_used_is_one_sentence(base_folder, tmp_path, kind):
    damage, words = DAMAGE[kind]
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    damage(folder)
    with pytest.raises(ArtifactError, match=words) as caught:
        load(str(folder))
    said = str(caught.value)
    assert str(folder) in said and "\n" not in said and said.endswith(".") and len(said) < 700


def test_a_whole_model_is_loaded(base_folder):
    load(str(base_folder))
    load_model(str(base_folder), attention="eager")


NAMES = {
    "./nope": "'./nope': there is no such folder",
    "/nope/x": "'/nope/x': there is no such folder",
    "a/b/c": "'a/b/c': there is no such folder",
    "": "'': there is no such folder",
    "a\0b": "there is no such folder",
    "x" * 5_000: "cannot be loaded",
    "a name": "'a name': there is no such folder",
    "someone/nothing": (
        "'someone/nothing' cannot be loaded: there is no such folder here, it is not in the hub's "
        "cache"
    ),
    "nothing": (
        "it is not in the hub's cache, and the hub cannot be reached. Check the name and the "
        "connection"
    ),
    "~/nope": "there is no such folder",
    __file__: "is no folder",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("use", [resolve_base, base_fingerprint, load_tokenizer, load_model, load])
def test_a_name_that_leads_nowhere_is_one_sentence(name, use):
    with pytest.raises(
        ArtifactError, match=NAMES[name] if use in (resolve_base, load) else None
    ) as caught:
        use(name)
    assert "\n" not in str(caught.value)


def test_a_hub_that_refuses_is_told_from_one_that_is_not_there(monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    for error, words in (
        (GatedRepoError, "have accepted its terms. Accept them on its page and log in"),
        (
            RepositoryNotFoundError,
            "the hub has no such model, or does not show it to you. Check the name",
        ),
    ):
        failure = error.__new__(error)
        failure.args = ("401 Client Error.\n\nA page of words.",)

        def fail(*_, failure=failure, **__):
            raise OSError("transformers has words of its own") from failure

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        for use in (resolve_base, base_fingerprint):
            with pytest.raises(ArtifactError, match=words):
                use("someone/nothing")


def test_the_home_folder_may_be_written_short(base_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(base_folder.parent))
    assert resolve_base(f"~/{base_folder.name}") == str(base_folder)


@pytest.mark.parametrize(
    "name",
    ["qpu", "cuda:99", "cuda:-1", "cuda:99999999999", "0", "", "meta", "hpu", "cpu:1", "a:b"],
)
def test_a_device_that_is_not_there_is_an_error(name):
    with pytest.raises(
        RecipeError,
        match=rf"device: found {re.escape(repr(name))}, which .* Accepted here are auto, cpu",
    ):
        choose_device(name)


def test_a_device_of_this_machine_is_taken():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.cuda.is_available():
        assert choose_device("cuda:0") == torch.device("cuda:0")
    else:
        with pytest.raises(RecipeError, match="found 'cuda'"):
            choose_device("cuda")


def test_attention_and_dtype_that_are_not_there_are_errors(base_folder):
    for attention in ("nope", "flash_attention_2"):
        with pytest.raises(
            ArtifactError,
            match="attention implementation is unknown here, or its package is not ins",
        ):
            load_model(str(base_folder), attention=attention)
    with pytest.raises(
        RecipeError, match="dtype: found 'float8'; accepted are float32, bfloat16, float16"
    ):
        load_model(str(base_folder), dtype="float8")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60), lambda: bytearray(2**60)])
def test_what_does_not_fit_the_memory_is_told_apart(allocate):
    told = pytest.raises(
        OutOfMemoryError, match=r"^The model: it does not fit the memory .*smaller dtype or model"
    )
    with told, explained("The model", "Never mind"):
        allocate()


@pytest.fixture
def adapter(build, base_folder, tmp_path):
    estimator = build("lora")
    estimator.roles.save("estimator", tmp_path / "estimator")
    return tmp_path / "estimator"


def adapter_config(**changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def other_tensors(folder):
    save_file({"x": torch.zeros(2)}, folder / "adapter_model.safetensors")


ADAPTERS = {
    "weights cut": (
        lambda folder: os.truncate(folder / "adapter_model.safetensors", 99),
        "its weights are damaged",
    ),
    "no weights": (without("adapter_model.safetensors"), "no adapter_model.safetensors"),
    "no configuration": (
        without("adapter_config.json"),
        "no adapter_config.json, so no PEFT adapter",
    ),
    "a damaged configuration": (
        write("adapter_config.json", b"{"),
        "adapter_config.json:1: not JSON",
    ),
    "a configuration without a kind": (
        write("adapter_config.json", b"{}"),
        "KeyError: 'peft_type'",
    ),
    "an unknown kind": (adapter_config(peft_type="NOPE"), "KeyError: 'NOPE'"),
    "a field of a newer PEFT": (
        adapter_config(new=3),
        "new is 3, which PEFT .* would leave out",
    ),
    "another rank": (adapter_config(r=8), "cannot be put on .*size mismatch"),
    "a word for a rank": (adapter_config(r="a"), "cannot be put on"),
    "targets that are not there": (
        adapter_config(target_modules=["nope"]),
        "not found in the base model",
    ),
    "tensors of something else": (
        other_tensors,
        "missing adapter keys|lacks the tensor 'base_model",
    ),
}


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_that_cannot_be_used_is_one_sentence(adapter, base_folder, kind, place):
    damage, words = ADAPTERS[kind]
    model = load_model(str(base_folder))
    if place == "second":
        model = put_on(model, Path(shutil.copytree(adapter, adapter.with_name("whole"))), "first")
    damage(adapter)
    with pytest.raises(ArtifactError, match=words) as caught:
        put_on(model, adapter, place)
    assert str(adapter) in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_newer_peft_has_switched_off_changes_nothing(adapter, base_folder):
    adapter_config(new=None, newer=False, newest=[])(adapter)
    assert existing_config(adapter).r == 4
    assert put_on(load_model(str(base_folder)), adapter).peft_config["default"].r == 4
