"""An imported estimator is the release's models; export and import change no score; what is
malformed is named.
"""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from coevolve import ProbabilityEstimator
from coevolve.cli import export
from coevolve.cli import import_reference as import_command
from coevolve.errors import ArtifactError, OutputError, RecipeError
from coevolve.prompts import Renderer, prompt_set
from coevolve.recipe import check_recipe
from coevolve.reference.adapters import add_adapters, read_adapter
from coevolve.reference.exporting import export_reference
from coevolve.reference.importing import import_reference
from coevolve.reference.layout import find_release
from coevolve.scoring.models import base_fingerprint, load_model, load_tokenizer
from coevolve.scoring.origins import Base, Origin, read_parent, write_parent
from coevolve.scoring.roles import ESTIMATOR, ROLES, AdapterRoles, SeparateRoles, lora_config
from coevolve.training.export import export_estimator
from coevolve.worlds.tiny import tiny_model

RECIPE = {
    "name": "test",
    "prompts": "brief",
    "data": {"path": "unused.json"},
    "model": {"base": "unused"},
    "cold_start": {role: {"steps": 1, "learning_rate": 0.1} for role in ROLES},
    "rounds": {"count": 0},
}


def command(module, *arguments):
    """A command as `coevolve` runs it."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))


def logits(model, seed=0):
    ids = torch.randint(0, 256, (3, 50), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def trained(release, tmp_path_factory):
    """A function from tuning to an estimator directory as a run leaves it, prompts of our own."""

    def write(tuning):
        model = load_model(release.base)
        if tuning == "lora":
            options = lora_config({"r": 3, "lora_alpha": 5, "target_modules": "all-linear"})
            roles = AdapterRoles.create(model, dict.fromkeys(ROLES, options), seed=0)
        else:
            roles = SeparateRoles.create(model, keep_base=False)
        torch.manual_seed(1)
        for role in ROLES:
            weights = roles.weights(role)
            roles.load_weights(
                role, {name: x + 0.1 * torch.randn_like(x) for name, x in weights.items()}
            )
        render = Renderer(prompt_set("brief"), load_tokenizer(release.base))
        estimator = ProbabilityEstimator(roles, render, max_new_tokens=16)
        folder = tmp_path_factory.mktemp(tuning) / "estimator"
        origin = Origin(Base(release.base, release.base, base_fingerprint(release.base)))
        export_estimator(
            folder, estimator, check_recipe(RECIPE, "test"), dict.fromkeys(ROLES, origin), {}
        )
        return folder

    return write


@pytest.mark.parametrize("number", [2, 1, 0])
def test_the_imported_models_are_the_releases(release, tmp_path, number):
    """The SFT adapter merged into the base model, the RL adapter on top, both by PEFT."""
    import_reference(release.checkout, release.base, tmp_path / "out", number=number)
    found = ProbabilityEstimator.from_pretrained(tmp_path / "out", device="cpu")
    for role in ROLES:
        sft, grpo = release.folders(release.checkout, max(number, 1))[role]
        model = PeftModel.from_pretrained(load_model(release.base), sft).merge_and_unload()
        if number:
            model = PeftModel.from_pretrained(model, grpo)
        expected = logits(model.eval())
        with found.roles.acting(role) as ours:
            assert (logits(ours) - expected).abs().max() < 1e-5
        assert (
            logits(load_model(release.base)) - expected
        ).abs().max() > 0.1  # the adapters do something


def test_the_last_round_is_imported_unless_another_is_named(release, imported):
    manifest = json.loads((imported / "manifest.json").read_text())
    assert manifest["imported"]["round"] == 2
    assert manifest["imported"]["name"] == release.name
    assert [len(paths) for paths in manifest["imported"]["adapters"].values()] == [2, 2]


def test_the_sum_has_no_approximation_in_it(release):
    """Of every module, also those that one of the two leaves alone, by the definition of LoRA."""
    adapters = [
        read_adapter(folder) for folder in release.folders(release.checkout, 1)["connector"]
    ]
    total = add_adapters(adapters)
    scales = (8 / 4, 3 / 2**0.5)
    for module, (a, b) in total.matrices.items():
        expected = sum(
            scale * adapter.matrices[module][1] @ adapter.matrices[module][0]
            for scale, adapter in zip(scales, adapters, strict=True)
            if module in adapter.matrices
        )
        assert a.shape[0] == b.shape[1] == 4 + 2
        assert (total.scale * b @ a - expected).abs().max() < 1e-5


@pytest.mark.parametrize("source", ["lora", "imported"])
def test_export_and_import_change_no_score(release, trained, imported, corpus, tmp_path, source):
    folder = imported if source == "imported" else trained("lora")
    written = export_reference(folder, tmp_path / "checkout", name=release.name)
    assert written.exact_prompts == (source == "imported")
    import_reference(tmp_path / "checkout", release.base, tmp_path / "back")
    before, after = (
        ProbabilityEstimator.from_pretrained(path, device="cpu")
        for path in (folder, tmp_path / "back")
    )
    assert after.renderer.prompts == before.renderer.prompts
    for role in ROLES:
        records = [read_parent(path / role) for path in (folder, tmp_path / "back")]
        assert (
            records[0]["base"]["fingerprint"]
            == records[1]["base"]["fingerprint"]
            == base_fingerprint(release.base)
        )
    examples = corpus.examples[:5]
    responses = [example.golden_response for example in examples]
    reasoning = before.reason(examples)
    assert after.reason(examples) == reasoning
    scores = [each.log_prob(examples, responses, reasoning) for each in (before, after)]
    assert np.abs(scores[0].sum - scores[1].sum).max() < 1e-5
    assert np.array_equal(scores[0].tokens, scores[1].tokens)


def test_the_public_evaluation_finds_an_export_as_sft_adapters_of_the_raw_base_model(
    release, trained, tmp_path
):
    """It loads `estimator_training/$PXY_LLM_MODE` onto the base model, as long as no "GRPO" is in
    that name.
    """
    folder = trained("lora")
    written = export_reference(folder, tmp_path / "checkout", name=release.name)
    assert "GRPO" not in written.environment["PXY_LLM_MODE"]
    adapter = tmp_path / "checkout" / "estimator_training" / written.environment["PXY_LLM_MODE"]
    expected = logits(PeftModel.from_pretrained(load_model(release.base), adapter).eval())
    with ProbabilityEstimator.from_pretrained(folder, device="cpu").roles.acting(
        ESTIMATOR
    ) as model:
        assert (logits(model) - expected).abs().max() < 1e-6


def test_another_base_model_than_the_exports_is_refused(release, trained, tmp_path):
    export_reference(trained("lora"), tmp_path / "checkout", name=release.name)
    other = release.write_base(tmp_path / "other", seed=5)
    with pytest.raises(
        ArtifactError, match=r"other: this base model's fingerprint is \w+, but the adapters"
    ):
        import_reference(tmp_path / "checkout", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_was_put_there_from_another_base_is_refused(release, trained, tmp_path):
    written = export_reference(trained("lora"), tmp_path / "checkout", name=release.name)
    adapter = tmp_path / "checkout" / "estimator_training" / written.environment["THOUGHT_LLM_MODE"]
    record = read_parent(adapter)
    write_parent(adapter, {**record, "base": {**record["base"], "fingerprint": "0" * 64}})
    with pytest.raises(ArtifactError) as caught:
        import_reference(tmp_path / "checkout", release.base, tmp_path / "out")
    assert "0" * 64 in str(caught.value) and base_fingerprint(release.base) in str(caught.value)


def test_a_base_model_that_is_not_copied_must_stay_the_same(release, tmp_path):
    base = shutil.copytree(release.base, tmp_path / "base")
    import_reference(release.checkout, str(base), tmp_path / "out", copy_base=False)
    assert not (tmp_path / "out" / "base").exists()
    ProbabilityEstimator.from_pretrained(tmp_path / "out", device="cpu")
    release.write_base(base, seed=5)
    with pytest.raises(ArtifactError, match="fingerprint"):
        ProbabilityEstimator.from_pretrained(tmp_path / "out", device="cpu")


def test_what_cannot_be_exported_is_refused(release, trained, imported, tmp_path):
    with pytest.raises(ArtifactError, match="trained in full"):
        export_reference(trained("full"), tmp_path / "a")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(
        OutputError, match=r"notes.txt is there already and is not an estimator in the reference"
    ):
        export_reference(imported, tmp_path / "own")
    with pytest.raises(ArtifactError, match=r"--name 'a\[b': accepted is text without brackets"):
        export_reference(imported, tmp_path / "b", name="a[b")
    with pytest.raises(ArtifactError, match=r"no manifest.json"):
        export_reference(tmp_path / "none", tmp_path / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["own", "notes.txt"]


def test_the_commands(release, imported, tmp_path, capsys):
    command(
        export, imported, "--out", tmp_path / "checkout", "--layout", "reference", "--name", "Toy"
    )
    shown = capsys.readouterr().out
    assert 'export PXY_LLM_MODE="ckpt_SFT/METHOD[RLMid_SFT_model_pxy]-BASED[Toy]#ProbLLM"' in shown
    assert "note:" not in shown
    command(
        import_command, tmp_path / "checkout", "--base", release.base, "--out", tmp_path / "back"
    )
    assert "METHOD[thought_completion]-BASED[Toy]" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "back" / "manifest.json").read_text())["reasoning"]["max_new_tokens"]
        == 24
    )
    with pytest.raises(RecipeError, match="--max-new-tokens 0"):
        command(
            import_command, release.checkout, "--base", "x", "--out", "y", "--max-new-tokens", 0
        )
    with pytest.raises(RecipeError, match="--name belongs to"):
        command(export, imported, "--out", "y", "--name", "x")


def test_what_is_no_estimator_is_not_replaced(release, tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(
        OutputError, match=r"precious\.txt is there already and is not an exported estimator"
    ):
        import_reference(release.checkout, release.base, tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_the_base_models_name_is_asked_for_where_there_are_two(release, copied):
    for folder in list((copied / "estimator_training" / "ckpt_SFT").iterdir()):
        shutil.copytree(folder, folder.with_name(folder.name.replace("Toy-1B", "Toy-8B")))
    with pytest.raises(
        ArtifactError, match=r"no --name was given; adapters are there for Toy-1B, Toy-8B"
    ):
        find_release(copied)
    with pytest.raises(ArtifactError, match=r"--name is 'Toy'"):
        find_release(copied, name="Toy")
    assert find_release(copied, name="Toy-8B").round == 0
    assert find_release(copied, name="Toy-1B").round == 2


def damage(kind, checkout, folders):
    """Make one thing wrong; returns what the message says."""
    sft, grpo = folders["estimator"]
    config = json.loads((sft / "adapter_config.json").read_text())
    if kind == "no checkout":
        shutil.rmtree(checkout / "estimator_training")
        return "estimator_training: no such folder"
    if kind == "no SFT":
        shutil.rmtree(checkout / "estimator_training" / "ckpt_SFT")
        return r"ckpt_SFT: holds no METHOD"
    if kind == "one role":
        shutil.rmtree(grpo)
        return r"ITER\[2\].*: no such folder. .* thought_policy \[1, 2\], pxy_policy \[1\]"
    if kind == "no config":
        (grpo / "adapter_config.json").unlink()
        return "no adapter_config.json"
    if kind == "pickled":
        (grpo / "adapter_model.safetensors").rename(grpo / "adapter_model.bin")
        return "adapter_model.bin is pickled"
    if kind == "no weights":
        (grpo / "adapter_model.safetensors").unlink()
        return "no adapter_model.safetensors"
    if kind == "cut off":
        (grpo / "adapter_model.safetensors").write_bytes(
            (grpo / "adapter_model.safetensors").read_bytes()[:100]
        )
        return "adapter_model.safetensors: no safetensors file"
    if kind == "no JSON":
        (grpo / "adapter_config.json").write_text("{")
        return r"adapter_config.json:1: not JSON"
    if kind == "DoRA":
        (sft / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
        return r"adapter_config.json: use_dora is True; accepted is False"
    if kind == "rank":
        (sft / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
        return r"has shape .*, the rank is 8"
    if kind == "negative rank":
        (sft / "adapter_config.json").write_text(json.dumps({**config, "r": -1}))
        return r"r is -1; accepted is a positive number"
    tensors = load_file(sft / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    if kind == "half a pair":
        del tensors[first]
    elif kind == "another tensor":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(3, 3)
    else:  # another model's
        tensors = {
            name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()
        }
    save_file(tensors, sft / "adapter_model.safetensors")
    return {
        "half a pair": "has one of two matrices",
        "another tensor": r"tensor 'base_model.model.lm_head.weight' is none of",
        "another model's": r"the base model \S+ has no module 'model.layers.7.\S+'",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "no checkout", "no SFT", "one role", "no config", "pickled", "no weights", "cut off",
        "no JSON", "DoRA", "rank",
        "negative rank", "half a pair", "another tensor", "another model's",
    ],
)  # fmt: skip
def test_a_malformed_checkout_is_refused_by_name(release, copied, tmp_path, kind):
    message = damage(kind, copied, release.folders(copied, 2))
    with pytest.raises(ArtifactError, match=message):
        import_reference(copied, release.base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_shape_is_refused(release, tmp_path):
    wide = tmp_path / "wide"
    tokenizer = load_tokenizer(release.base)
    tokenizer.save_pretrained(wide)
    tiny_model(tokenizer, seed=0, hidden=64, layers=2, heads=2).save_pretrained(wide)
    with pytest.raises(
        ArtifactError, match=r"module '\S+' is 32 x 64, in the base model \S+wide 64 x 128"
    ):
        import_reference(release.checkout, str(wide), tmp_path / "out")


def test_a_damaged_export_is_refused(release, imported, tmp_path):
    export_reference(imported, tmp_path / "checkout", name="Toy")
    path = tmp_path / "checkout" / "templates.py"
    path.write_text(path.read_text().replace('"fingerprint"', '"finger"'))
    with pytest.raises(
        ArtifactError, match=r"coevolve_export is damaged \(KeyError\('fingerprint'\)\)"
    ):
        import_reference(tmp_path / "checkout", release.base, tmp_path / "out")
