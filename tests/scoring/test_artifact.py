"""An estimator directory is what its manifest says, or it is refused."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from coevolve import ProbabilityEstimator
from coevolve.cli import main
from coevolve.errors import ArtifactError, CoevolveError
from coevolve.files import sha256_file
from coevolve.scoring.artifact import identity, read_manifest, write_manifest
from coevolve.scoring.models import base_fingerprint, load_model
from coevolve.scoring.origins import PARENT, adapter_fingerprint, base_settings
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.worlds.tiny import write_tiny_base


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_manifest(folder, change):
    edit_json(folder / "manifest.json", change)


def weights(folder, where):
    return next((folder / where).glob("*.safetensors"))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# The adversary: each change is made by (directory, random generator).


def in_tensors(change):
    """A change of the tensors of a role or of the base model, by (tensors, random generator)."""

    def mutate(folder, rng):
        files = sorted(folder.glob("*/*.safetensors"))
        edit_tensors(rng.choice(files), lambda tensors: change(tensors, rng))

    return mutate


def pick(tensors, rng):
    return rng.choice(sorted(tensors))


def nudge(tensors, rng):
    tensors[pick(tensors, rng)].view(-1)[0] += 0.5


def scale(tensors, rng):
    tensors[pick(tensors, rng)] *= 2


def zero(tensors, rng):
    tensors[pick(tensors, rng)] *= 0


def swap_tensors(tensors, rng):
    name = pick(tensors, rng)
    same = [
        other
        for other in sorted(tensors)
        if tensors[other].shape == tensors[name].shape and other != name
    ]
    other = rng.choice(same) if same else name
    tensors[name], tensors[other] = tensors[other], tensors[name]


def drop_tensor(tensors, rng):
    del tensors[pick(tensors, rng)]


def drop_half(tensors, rng):
    for name in rng.sample(sorted(tensors), (len(tensors) + 1) // 2):
        del tensors[name]


def rename_tensor(tensors, rng):
    name = pick(tensors, rng)
    tensors[name + ".old"] = tensors.pop(name)


def reshape_tensor(tensors, rng):
    name = pick(tensors, rng)
    tensors[name] = tensors[name][:-1].contiguous()


def not_a_number(tensors, rng):
    tensors[pick(tensors, rng)].view(-1)[-1] = rng.choice([float("nan"), float("inf")])


def round_tensors(tensors, rng):
    for name in tensors:
        tensors[name] = tensors[name].half()


def swap_roles(folder, rng):
    (folder / CONNECTOR).rename(folder / "x")
    (folder / ESTIMATOR).rename(folder / CONNECTOR)
    (folder / "x").rename(folder / ESTIMATOR)


def one_role_for_both(folder, rng):
    shutil.copy(weights(folder, CONNECTOR), weights(folder, ESTIMATOR))


def delete_file(folder, rng):
    rng.choice(sorted(path for path in folder.glob("*/*") if path.is_file())).unlink()


def rename_file(folder, rng):
    path = rng.choice(sorted(path for path in folder.glob("*/*") if path.is_file()))
    path.rename(path.with_name("old-" + path.name))


def cut_file(folder, rng):
    path = rng.choice(sorted(folder.glob("*/*")))
    path.write_bytes(path.read_bytes()[:-20])


def other_file(folder, rng):
    """A file that loading could read, where none was."""
    places = sorted(path.name for path in folder.iterdir() if path.is_dir())
    name = rng.choice([*EXTRA, "model.safetensors.index.json", "special_tokens_map.json"])
    (folder / rng.choice(places) / name).write_text("{}")


def adapter_on_a_whole_model(folder, rng):
    """Which transformers would put on by itself."""
    whole = folder / "base" if (folder / "base").exists() else folder / ESTIMATOR
    (whole / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    )


def in_config(name, *values):
    """Another value in the configurations that have this field."""

    def mutate(folder, rng):
        value = rng.choice(values)
        for path in sorted(folder.glob("*/*.json")):
            found = json.loads(path.read_text())
            if isinstance(found, dict) and name in found:
                path.write_text(json.dumps({**found, name: value}))

    return mutate


def other_rope(folder, rng):
    for path in sorted(folder.glob("*/config.json")):
        edit_json(path, lambda config: config["rope_parameters"].update(rope_theta=500.0))


def swap_words(folder, rng):
    def swap(value):
        words = value["model"]["vocab"]
        first, second = rng.sample(sorted(words), 2)
        words[first], words[second] = words[second], words[first]

    edit_json(folder / ESTIMATOR / "tokenizer.json", swap)


def other_normaliser(folder, rng):
    edit_json(
        folder / ESTIMATOR / "tokenizer.json",
        lambda value: value.update(normalizer={"type": "Lowercase"}),
    )


def other_template(folder, rng):
    path = folder / ESTIMATOR / "chat_template.jinja"
    path.write_text(path.read_text().replace("message['role'] + ' '", "''"))


def in_manifest(change):
    return lambda folder, rng: edit_manifest(folder, lambda manifest: change(manifest, rng))


def for_a_role(change):
    return in_manifest(lambda manifest, rng: change(manifest["roles"][rng.choice(ROLES)], rng))


def other_prompts(manifest, rng):
    name = rng.choice(["context", "estimator_user", "connector_user", "direct_user"])
    manifest["prompts"][name] = "User: " + manifest["prompts"][name]


def base_elsewhere(folder, rng):
    other = write_tiny_base(folder.parent / "elsewhere", seed=5)
    where = rng.choice([f"../{other.name}", str(other), "other"])
    if where == "other":
        shutil.copytree(other, folder / "other")
    edit_manifest(
        folder, lambda m: [m["roles"][role]["base"].update(folder=where) for role in ROLES]
    )


EXTRA = [
    "added_tokens.json",
    "generation_config.json",
    "x.safetensors",
    "chat_template.jinja",
    "x.py",
    "x.bin",
    "x.pt",
]

CHANGES = [
    *map(
        in_tensors,
        (nudge, scale, zero, swap_tensors, drop_tensor, drop_half, rename_tensor, reshape_tensor),
    ),
    *map(in_tensors, (not_a_number, round_tensors)),
    *(
        swap_roles,
        one_role_for_both,
        delete_file,
        rename_file,
        cut_file,
        other_file,
        adapter_on_a_whole_model,
    ),
    in_config("lora_alpha", 1, 64),
    in_config("r", 2, 8),
    in_config("use_rslora", True),
    in_config("use_dora", True),
    in_config("fan_in_fan_out", True),
    in_config("target_modules", ["q_proj"], [".*"]),
    in_config("rank_pattern", {"q_proj": 2}),
    in_config("alpha_pattern", {"q_proj": 2}),
    in_config("init_lora_weights", "pissa", "olora"),
    in_config("layer_replication", [[0, 1], [0, 1]]),
    in_config("bias", "all"),
    in_config("rms_norm_eps", 0.1),
    in_config("hidden_act", "relu"),
    in_config("num_hidden_layers", 1),
    in_config("tie_word_embeddings", True),
    in_config("eos_token_id", 5),
    in_config("model_max_length", 8),
    *(other_rope, swap_words, other_normaliser, other_template, base_elsewhere),
    in_manifest(other_prompts),
    in_manifest(
        lambda manifest, rng: manifest["reasoning"].update(max_new_tokens=rng.choice([1, 2, 3]))
    ),
    in_manifest(
        lambda manifest, rng: manifest.update(
            roles={role: manifest["roles"][other] for role, other in (ROLES, ROLES[::-1])}
        )
    ),
    in_manifest(lambda manifest, rng: manifest.update(version=rng.choice([1, 2]))),
    in_manifest(lambda manifest, rng: manifest.update(files={})),
    for_a_role(
        lambda entry, rng: entry.update(tuning="none" if entry["tuning"] == "lora" else "lora")
    ),
    for_a_role(lambda entry, rng: entry.update(tokenizer="base")),
    for_a_role(lambda entry, rng: entry.update(chat_template="{{ messages[0]['content'] }}")),
    for_a_role(lambda entry, rng: entry["base"].update(quantization="8bit")),
    for_a_role(lambda entry, rng: entry["base"].update(source="some/other", folder=None)),
    for_a_role(lambda entry, rng: entry["base"].update(fingerprint="0" * 64)),
]


def rehash_files(folder):
    """Whoever knows that a manifest lists the files' hashes."""
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / "manifest.json"
    }
    edit_manifest(folder, lambda manifest: manifest["files"] and manifest.update(files=files))


def rewrite(folder):
    """Whoever lets our own code write the manifest again."""
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))


def rehash_everything(folder):
    """Whoever computes anew all that there is to compute."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for role, entry in manifest["roles"].items():
        base = entry["base"]
        if base["folder"] is not None:
            place = str(folder / base["folder"])
            base.update(fingerprint=base_fingerprint(place), settings=base_settings(place))
        if entry["tuning"] == "lora":
            parent = json.loads((folder / role / PARENT).read_text())
            parent["base"]["fingerprint"] = base["fingerprint"]
            (folder / role / PARENT).write_text(json.dumps(parent))
            entry["fingerprint"] = adapter_fingerprint(folder / role)
        elif entry["tuning"] == "full":
            entry["fingerprint"] = base_fingerprint(str(folder / role))
        entry["chat_template"] = (folder / entry["tokenizer"] / "chat_template.jinja").read_text()
    del manifest["identity"]
    write_manifest(folder, manifest)


def scored(folder, examples, responses):
    """(identity, reasonings, log-probabilities) of a few examples."""
    estimator = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    reasoning = estimator.reason(examples[:2])
    scores = estimator.log_prob(examples[:2], responses[:2], reasoning)
    return estimator.manifest["identity"], reasoning, scores.sum


def is_same(found, expected):
    return found[1] == expected[1] and np.abs(found[2] - expected[2]).max() < 1e-9


@pytest.mark.parametrize("share", [len(CHANGES), pytest.param(200, marks=pytest.mark.slow)])
def test_no_change_scores_differently_without_an_error(
    exported, examples, responses, tmp_path, share
):
    """By adversaries who compute the hashes of the files anew."""
    _, folder = exported
    expected, refused = scored(folder, examples, responses), 0
    for number in range(share):
        copy = shutil.copytree(folder, tmp_path / str(number) / "copy")
        change, rng = CHANGES[number % len(CHANGES)], random.Random(number)
        change(copy, rng)
        rng.choice([rehash_files, rewrite])(copy)
        try:
            assert is_same(scored(copy, examples, responses), expected), change
        except CoevolveError:
            refused += 1
    assert refused > 0.7 * share


@pytest.mark.slow
def test_with_everything_computed_anew_it_is_another_estimator(
    exported, examples, responses, tmp_path
):
    """No directory can vouch for itself. That the same changes do change scores shows what the test
    above is worth.
    """
    _, folder = exported
    expected, another = scored(folder, examples, responses), 0
    for number in range(2 * len(CHANGES)):
        copy = shutil.copytree(folder, tmp_path / str(number) / "copy")
        CHANGES[number % len(CHANGES)](copy, random.Random(number))
        try:
            rehash_everything(copy)
        except Exception:
            continue  # there is nothing left to compute it from
        try:
            found = scored(copy, examples, responses)
        except CoevolveError:
            continue
        if not is_same(found, expected):
            assert found[0] != expected[0], number
            another += 1
    assert another > len(CHANGES) / 2


NEVER = {
    "a tensor is missing": in_tensors(drop_tensor),
    "half of them are missing": in_tensors(drop_half),
    "a tensor has another name": in_tensors(rename_tensor),
    "a tensor has another shape": in_tensors(reshape_tensor),
    "a value is no number": in_tensors(not_a_number),
    "an adapter lies on a whole model": adapter_on_a_whole_model,
    "a file is pickled": lambda folder, rng: (folder / CONNECTOR / "x.bin").write_bytes(b"x"),
    "the base lies outside": in_manifest(
        lambda manifest, rng: [
            manifest["roles"][role]["base"].update(folder="../x") for role in ROLES
        ]
    ),
    "there is room for no reasoning": in_manifest(
        lambda manifest, rng: manifest["reasoning"].update(max_new_tokens=0)
    ),
    "a role is missing": in_manifest(lambda manifest, rng: manifest["roles"].pop(CONNECTOR)),
    "the tokenizer is another folder": for_a_role(
        lambda entry, rng: entry.update(tokenizer="tokenizers")
    ),
    "a field is unknown": for_a_role(lambda entry, rng: entry.update(tunning="lora")),
}


@pytest.mark.parametrize("change", NEVER.values(), ids=NEVER)
def test_some_directories_are_no_estimator_whatever_is_computed_anew(exported, tmp_path, change):
    _, folder = exported
    for seed in range(3):
        copy = shutil.copytree(folder, tmp_path / str(seed))
        change(copy, random.Random(seed))
        try:
            rehash_everything(copy)
        except Exception:  # there is nothing left to compute it from
            rewrite(copy)
        with pytest.raises(CoevolveError):
            ProbabilityEstimator.from_pretrained(copy, device="cpu")


@pytest.mark.parametrize("name", [*EXTRA, "model.safetensors.index.json", ".hidden.json"])
def test_a_file_that_is_not_listed_is_refused_by_name(exported, tmp_path, name):
    copy = shutil.copytree(exported[1], tmp_path / "copy")
    (copy / ESTIMATOR / f"x-{name}").write_text("{}")
    with pytest.raises(ArtifactError, match=rf"estimator/x-{name}: (not listed|may be pickled)"):
        read_manifest(copy, verify=False)


def test_what_loading_never_reads_may_lie_there(exported, examples, responses, tmp_path):
    _, folder = exported
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in (
        "README.md",
        ".gitattributes",
        "estimator/LICENSE",
        ".git/config",
        ".cache/huggingface/x.bin",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    edit_manifest(copy, lambda manifest: None)  # another layout of the same JSON
    before, after = (scored(place, examples, responses) for place in (folder, copy))
    assert before[0] == after[0] and is_same(before, after)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a//b", "./a", "a/../b", "a\\b", ""])
def test_names_stay_inside(exported, tmp_path, name):
    copy = shutil.copytree(exported[1], tmp_path / "copy")
    edit_manifest(copy, lambda manifest: manifest["files"].update({name: "0" * 64}))
    edit_manifest(copy, lambda manifest: manifest.update(identity=identity(manifest)))
    with pytest.raises(ArtifactError, match="accepted are plain paths inside"):
        read_manifest(copy, verify=False)


def test_links_lead_nowhere_else_but_for_the_hubs_cache(exported, tmp_path):
    folder = exported[1]
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.move(copy / CONNECTOR, tmp_path / CONNECTOR)
    (copy / CONNECTOR).symlink_to(tmp_path / CONNECTOR)
    with pytest.raises(ArtifactError, match="connector: is a link"):
        read_manifest(copy)
    snapshot = shutil.copytree(folder, tmp_path / "models--x" / "snapshots" / "1")
    (tmp_path / "models--x" / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.rglob("*.json"))):
        blob = tmp_path / "models--x" / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(blob)
    assert read_manifest(snapshot) == read_manifest(folder)
    shutil.copytree(snapshot, tmp_path / "linked", symlinks=True)
    with pytest.raises(ArtifactError, match="is a link"):
        read_manifest(tmp_path / "linked")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("files",), []),
        (("files",), {"x": "1"}),
        (("prompts",), None),
        (("reasoning", "max_new_tokens"), True),
        (("reasoning", "max_new_tokens"), 10**9),
        (("reasoning", "no_repeat_ngram"), -1),
        (("reasoning", "no_repeat_ngram"), "3"),
        (("roles",), [1]),
        (("roles", "estimator", "tuning"), "ia3"),
        (("roles", "estimator", "tokenizer"), "../tokenizer"),
        (("roles", "estimator", "chat_template"), 1),
        (("roles", "estimator", "fingerprint"), "abc"),
        (("roles", "estimator", "base"), None),
        (("roles", "estimator", "base", "quantization"), "2bit"),
        (("roles", "estimator", "base", "source"), 1),
        (("roles", "estimator", "base", "settings"), {"config.json": 1}),
        (("identity",), None),
        (("version",), 5),
    ],
)
def test_a_field_of_another_kind_is_named(exported, tmp_path, place, value):
    copy = shutil.copytree(exported[1], tmp_path / "copy")

    def change(manifest):
        *parents, last = place
        for name in parents:
            manifest = manifest[name]
        manifest[last] = value

    edit_manifest(copy, change)
    if place != ("identity",):
        edit_manifest(copy, lambda manifest: manifest.update(identity=identity(manifest)))
    with pytest.raises(CoevolveError, match=rf"manifest.json: .*{place[-1]}"):
        read_manifest(copy)


def test_a_manifest_of_version_2_is_checked_by_what_it_records(
    exported, examples, responses, tmp_path
):
    estimator, folder = exported
    old = shutil.copytree(folder, tmp_path / "old")

    def downgrade(manifest):
        manifest["version"] = 2
        del manifest["identity"], manifest["reasoning"]["no_repeat_ngram"]
        for entry in manifest["roles"].values():
            del entry["fingerprint"], entry["base"]["settings"]

    edit_manifest(old, downgrade)
    found, now = scored(old, examples, responses), scored(folder, examples, responses)
    assert is_same(found, now) and found[0] != now[0]
    if estimator.roles.tuning[ESTIMATOR] == "full":
        return  # such a manifest says nothing of whole weights but the hashes of their files
    edit_tensors(weights(old, "base"), lambda tensors: nudge(tensors, random.Random(0)))
    rehash_files(old)
    with pytest.raises(ArtifactError, match=r"base: its fingerprint is \w+; the manifest's entry"):
        read_manifest(old)


def test_the_guard_against_loops_is_the_estimators_own(exported, examples, tmp_path):
    _, folder = exported
    guarded = shutil.copytree(folder, tmp_path / "guarded")

    def guard(manifest):
        manifest["reasoning"]["no_repeat_ngram"] = 1
        manifest["identity"] = identity(manifest)

    edit_manifest(guarded, guard)
    free, other = (
        ProbabilityEstimator.from_pretrained(path, device="cpu") for path in (folder, guarded)
    )
    words = [text.split() for text in free.reason(examples)]
    assert any(len(set(text)) < len(text) for text in words)
    assert all(len(set(text.split())) == len(text.split()) for text in other.reason(examples))
    # A sample is drawn from q1 as it is; what was kept without the guard is not its.
    assert other.reason(examples, seed=0) == free.reason(examples, seed=0)
    alone = other.reason(examples)
    for each in (free, other):
        each.use_cache(tmp_path / "cache")
        each.reason(examples)
    assert other.reason(examples) == alone != free.reason(examples)


def test_a_base_elsewhere_is_compared_whole(exported, base_folder, tmp_path):
    """Its weights, and its settings, which change scores as much."""
    estimator, folder = exported
    if estimator.roles.tuning[ESTIMATOR] == "full":
        return  # it has none
    base = shutil.copytree(base_folder, tmp_path / "base")
    (base / "README.md").write_text("x")
    edit_json(base / "config.json", lambda config: config.update(transformers_version="0"))
    ProbabilityEstimator.from_pretrained(folder, device="cpu", base=str(base))
    other_rope(tmp_path, None)
    with pytest.raises(
        ArtifactError, match=r"base: config\.json differs from what the estimator was exported with"
    ):
        ProbabilityEstimator.from_pretrained(folder, device="cpu", base=str(base))


def test_a_base_model_without_training_is_an_estimator(
    base_folder, examples, responses, tmp_path, capsys
):
    out = tmp_path / "estimator"
    options = ["--prompts", "world", "--max-new-tokens", "16"]
    assert main(["export", "--base", str(base_folder), *options, "--out", str(out)]) == 0
    estimator = ProbabilityEstimator.from_pretrained(out, device="cpu")
    assert estimator.roles.tuning == dict.fromkeys(ROLES, "none") and estimator.roles.has_base
    assert estimator.roles.module(CONNECTOR) is estimator.roles.module(
        ESTIMATOR
    )  # one model in memory
    reasoning = ["[Features] a"] * len(examples)
    scores = estimator.log_prob(examples, responses, reasoning)
    model = AutoModelForCausalLM.from_pretrained(base_folder).double().eval()
    for example, response, text, total in zip(
        examples, responses, reasoning, scores.sum, strict=True
    ):
        prompt = estimator.renderer.prompt_ids(estimator.renderer.estimator(example, text))
        target = estimator.renderer.response_ids(response)
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + target])).logits[0].log_softmax(dim=-1)
        assert (
            abs(
                log_probs[range(len(prompt) - 1, len(prompt) + len(target) - 1), target].sum()
                - total
            )
            < 1e-4
        )
    assert len(estimator.reason(examples[:2])) == 2
    estimator.use_cache(tmp_path / "cache")
    assert np.array_equal(estimator.log_prob(examples, responses, reasoning).sum, scores.sum)
    assert (
        main(["export", str(out), "--layout", "reference", "--out", str(tmp_path / "reference")])
        == 2
    )
    assert "connector and estimator was not trained" in capsys.readouterr().err
    assert main(["export", "x", "--prompts", "world", "--out", str(tmp_path / "other")]) == 2
    swapped = shutil.copytree(out, tmp_path / "swapped")
    edit_tensors(weights(swapped, "base"), lambda tensors: nudge(tensors, random.Random(0)))
    edit_manifest(swapped, lambda manifest: manifest.pop("identity"))
    rewrite(swapped)
    with pytest.raises(ArtifactError, match="base: its fingerprint is"):
        ProbabilityEstimator.from_pretrained(swapped, device="cpu")


def test_one_role_may_be_the_base_model_as_it_is(exported, examples, responses, tmp_path):
    estimator, folder = exported
    if estimator.roles.tuning[ESTIMATOR] == "full":
        return  # the directory holds no base model
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    shutil.rmtree(mixed / ESTIMATOR)
    edit_manifest(
        mixed, lambda manifest: manifest["roles"][ESTIMATOR].update(tuning="none", fingerprint=None)
    )
    edit_manifest(mixed, lambda m: [m["roles"][role].update(tokenizer=CONNECTOR) for role in ROLES])
    edit_manifest(mixed, lambda manifest: manifest.pop("identity"))
    rewrite(mixed)
    found = ProbabilityEstimator.from_pretrained(mixed, device="cpu")
    assert found.roles.tuning == {CONNECTOR: "lora", ESTIMATOR: "none"}
    assert found.reason(examples) == estimator.reason(examples)
    with (
        estimator.roles.acting(None) as expected,
        found.roles.acting(ESTIMATOR) as model,
        torch.no_grad(),
    ):
        ids = torch.arange(20)[None]
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_model_is_loaded_whole_or_not_at_all(base_folder, tmp_path):
    for number, (change, message) in enumerate(
        [
            (drop_tensor, "its weights lack 1 tensors"),
            (reshape_tensor, "its weights have another shape for 1 tensors"),
            (not_a_number, "holds a value that is no finite number"),
            (
                lambda tensors, rng: tensors.update(x=torch.ones(1)),
                "its weights go beyond, with 1 tensors .* 'x'",
            ),
        ]
    ):
        copy = shutil.copytree(base_folder, tmp_path / str(number))
        edit_tensors(
            weights(tmp_path, str(number)),
            lambda tensors, change=change: change(tensors, random.Random(3)),
        )
        with pytest.raises(ArtifactError, match=message):
            load_model(str(copy), exact=True)
    load_model(str(copy))  # published weights have tensors for other uses as well
