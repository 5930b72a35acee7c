"""Runs whose roles differ: in rank, in how they are tuned, in what they start from, in the base
model itself.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coevolve import ProbabilityEstimator
from coevolve.data.corpus import read_corpus
from coevolve.errors import ArtifactError
from coevolve.preflight.dialogues import load_corpus
from coevolve.scoring.models import base_fingerprint, load_tokenizer
from coevolve.scoring.origins import PARENT, WEIGHTS, adapter_fingerprint
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training.checkpoints import CHECKPOINTS
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.export import export_checkpoint
from coevolve.training.phases import connector_rows, estimator_rows
from coevolve.training.rewards.batches import ConnectorBatch
from coevolve.training.run import train
from coevolve.training.setup import build_estimator, build_renderers, prepare_origins
from coevolve.worlds.language import vocabulary
from coevolve.worlds.tiny import tiny_model, tiny_tokenizer

SHORT = {
    "data": {"world": {"train": 24, "test": 4}, "validation": 6},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
    "checkpoints": {"keep": 99},
}
KINDS = ("ranks", "mixed", "bases")


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    """A base model of another size, with other ids for the same words and another way to end a
    turn.
    """
    folder = tmp_path_factory.mktemp("other") / "base"
    tokenizer = tiny_tokenizer(reversed(vocabulary()))
    said = "('user assistant' if message['role'] == 'assistant' else message['role'])"
    template = tokenizer.chat_template.replace(
        "<|im_start|> assistant", "<|im_start|> user assistant"
    )
    tokenizer.chat_template = template.replace("message['role']", said)
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, seed=3, hidden=48, layers=1, heads=2, positions=128).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def recipe_for(recipe_of, other_base):
    """A function from the kind of run to its recipe."""

    def recipe(kind, **changes):
        if kind == "bases":
            changes["model"] = {"connector": {"base": str(other_base)}}
        return recipe_of("lora" if kind == "bases" else kind, **{**SHORT, **changes})

    return recipe


@pytest.fixture(scope="module", params=KINDS)
def finished(request, recipe_for, tmp_path_factory):
    """(kind, recipe, folder, results) of a run without interruption."""
    recipe = recipe_for(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, recipe, folder, train(recipe, folder)


def weights_of(estimator, role):
    [path] = (estimator / role).glob("*.safetensors")
    return load_file(path)


def test_each_role_is_what_the_recipe_says(finished):
    kind, _, folder, _ = finished
    roles = ProbabilityEstimator.from_pretrained(folder / "estimator", device="cpu").roles
    entries = json.loads((folder / "estimator" / "manifest.json").read_text())["roles"]
    assert {role: entry["tuning"] for role, entry in entries.items()} == roles.tuning
    connector = weights_of(folder / "estimator", CONNECTOR)
    assert {tensor.shape[0] for name, tensor in connector.items() if "lora_A" in name} == {
        2 if kind == "ranks" else 4
    }
    if kind == "ranks":
        assert all("q_proj" in name for name in connector)
        assert roles.module(CONNECTOR) is roles.module(ESTIMATOR)  # one base in memory
        config = roles.model.peft_config
        assert (config[CONNECTOR].lora_dropout, config[ESTIMATOR].lora_dropout) == (0.3, 0.1)
    elif kind == "mixed":
        assert not any("lora" in name for name in weights_of(folder / "estimator", ESTIMATOR))
    else:
        assert (
            entries[CONNECTOR]["base"]["fingerprint"] != entries[ESTIMATOR]["base"]["fingerprint"]
        )
        assert entries[CONNECTOR]["base"]["folder"] == "connector-base"


def test_a_phase_trains_its_own_role(finished):
    """By the tensors of the checkpoints before and after the estimator's cold start."""
    _, _, folder, _ = finished
    before, after = (
        next((folder / CHECKPOINTS).glob(f"*-cold-start-{name}"))
        for name in ("connector", "estimator")
    )
    for role in ROLES:
        start, end = (
            load_file(checkpoint / f"{role}.safetensors") for checkpoint in (before, after)
        )
        assert any(not torch.equal(start[name], end[name]) for name in start) == (role == ESTIMATOR)


def test_the_export_scores_as_the_run_did(finished):
    _, _, folder, results = finished
    estimator = ProbabilityEstimator.from_pretrained(folder / "estimator", device="cpu")
    examples = read_corpus(folder / "world" / "dialogues.json").require("IDTest")
    scores = estimator.log_prob(
        examples, [x.golden_response for x in examples], estimator.reason(examples)
    )
    assert np.exp(-scores.sum.sum() / scores.tokens.sum()) == pytest.approx(
        results["perplexity"]["full"]["IDTest"], rel=1e-6
    )


def test_a_checkpoint_exports_and_an_interrupted_run_ends_with_the_same_bits(
    finished, tmp_path, stop_after
):
    _, recipe, folder, _ = finished
    sittings = 0
    while True:
        try:
            train(recipe, tmp_path / "run", stop=stop_after(40 + 40 * sittings))
            break
        except Interrupted:
            sittings += 1
    assert sittings >= 2
    [last] = (folder / CHECKPOINTS).glob("*-trained")
    export_checkpoint(last, tmp_path / "exported")
    for role in ROLES:
        expected = weights_of(folder / "estimator", role)
        for other in (tmp_path / "run" / "estimator", tmp_path / "exported"):
            found = weights_of(other, role)
            assert set(found) == set(expected)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_adapter_says_what_it_is_of(finished):
    kind, _, folder, _ = finished
    estimator, entries = (
        folder / "estimator",
        json.loads((folder / "estimator" / "manifest.json").read_text())["roles"],
    )
    [last] = (folder / CHECKPOINTS).glob("*-trained")
    in_checkpoint = json.loads((last / "state.json").read_text())["parents"]
    for role in ROLES:
        if entries[role]["tuning"] == "full":
            assert not (estimator / role / PARENT).exists()
            continue
        record = json.loads((estimator / role / PARENT).read_text())
        base = estimator / ("connector-base" if (kind, role) == ("bases", CONNECTOR) else "base")
        assert (
            record["base"]["fingerprint"] == base_fingerprint(str(base))
            and record["continued_from"] is None
        )
        expected = in_checkpoint[role]["base"]
        if Path(expected["source"]).is_dir():  # which is nobody else's business
            expected = {**expected, "source": f"./{Path(expected['source']).name}"}
        assert record["base"] == expected
        assert entries[role]["fingerprint"] == adapter_fingerprint(estimator / role)


def test_an_adapter_under_another_base_is_refused_with_both_fingerprints(
    finished, other_base, tmp_path
):
    kind, _, folder, _ = finished
    estimator = folder / "estimator"
    right = json.loads((estimator / "manifest.json").read_text())["roles"][CONNECTOR]["base"][
        "fingerprint"
    ]
    wrong_base = estimator / "base" if kind == "bases" else other_base
    if kind == "mixed" or wrong_base.exists():
        with pytest.raises(ArtifactError) as caught:
            ProbabilityEstimator.from_pretrained(
                estimator, device="cpu", base={"connector": str(wrong_base)}
            )
        assert right in str(caught.value) and base_fingerprint(str(wrong_base)) in str(caught.value)
    # Put there by hand, with the manifest's own hashes left out.
    copy = tmp_path / "copy"
    shutil.copytree(estimator, copy)
    record = json.loads((copy / CONNECTOR / PARENT).read_text())
    record["base"]["fingerprint"] = "0" * 64
    (copy / CONNECTOR / PARENT).write_text(json.dumps(record))
    with pytest.raises(ArtifactError) as caught:
        ProbabilityEstimator.from_pretrained(copy, device="cpu", verify=False)
    assert right in str(caught.value) and "0" * 64 in str(caught.value)


def test_a_reasoning_of_another_tokenizer_is_scored_as_text(recipe_for, tmp_path):
    """The connector's ids mean other words to the estimator; the reward reads them with the
    connector's tokenizer.
    """
    recipe = recipe_for("bases")
    origins = prepare_origins(recipe, tmp_path)
    estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
    examples = load_corpus(recipe).require("IDTrain")[:3]
    traces = [example.trace for example in examples]
    ids = [estimator.connector_renderer.response_ids(trace) for trace in traces]
    assert estimator.renderer.decode(ids[0]) != traces[0]
    batch = ConnectorBatch(estimator, examples, ids, [0, 1, 2], target_words=5)
    expected = estimator.log_prob(
        examples, [example.golden_response for example in examples], traces
    )
    assert [scores.sum() for scores in batch.golden] == pytest.approx(
        expected.sum.tolist(), rel=1e-6
    )
    # Each model is shown the prompt in its own ids, and ends a turn with its own token.
    rows = {
        CONNECTOR: connector_rows(estimator, examples, traces),
        ESTIMATOR: estimator_rows(estimator, examples, traces),
    }
    for role in ROLES:
        tokenizer = load_tokenizer(origins[role].base.path)
        assert rows[role][0].response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(rows[role][0].prompt).endswith(
            "<|im_start|> user assistant" if role == CONNECTOR else "<|im_start|> assistant"
        )


def test_training_goes_on_from_an_exported_adapter(recipe_for, recipe_of, tmp_path, monkeypatch):
    first = recipe_of("lora", **{**SHORT, "rounds": {"count": 0}})
    train(first, tmp_path / "first")
    adapters = {role: tmp_path / "first" / "estimator" / role for role in ROLES}
    monkeypatch.chdir(tmp_path)
    on_it = {"connector": {"adapter": "first/estimator/connector"}}
    changes = {**SHORT, "rounds": {"count": 0}, "model": on_it}
    recipe = recipe_of("lora", **changes)
    train(recipe, tmp_path / "second")
    record = json.loads((tmp_path / "second" / "estimator" / CONNECTOR / PARENT).read_text())
    assert record["continued_from"]["fingerprint"] == adapter_fingerprint(adapters[CONNECTOR])
    before, after = (
        load_file(adapters[CONNECTOR] / WEIGHTS),
        weights_of(tmp_path / "second" / "estimator", CONNECTOR),
    )
    monkeypatch.chdir("/")
    [last] = (tmp_path / "second" / CHECKPOINTS).glob("*-trained")
    again = export_checkpoint(last, tmp_path / "again")["roles"][CONNECTOR]
    assert again["continued_from"]["source"] == "./connector"
    assert again["fingerprint"] == adapter_fingerprint(tmp_path / "second/estimator" / CONNECTOR)
    monkeypatch.chdir(tmp_path)
    # Three steps from where the first run ended are nearer to it than the first run is to its own
    # start.
    moved = sum((after[name] - before[name]).norm() for name in before if "lora_B" in name)
    assert 0 < moved < 2 * sum(before[name].norm() for name in before if "lora_B" in name)

    # The adapter is another one by the time the run is started again.
    tensors = load_file(adapters[CONNECTOR] / WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, adapters[CONNECTOR] / WEIGHTS)
    with pytest.raises(
        ArtifactError, match="the adapter of the connector changed since the run began"
    ):
        train(recipe, tmp_path / "second")
    # And another base model: the world's seed makes another tiny one.
    with pytest.raises(ArtifactError, match="fingerprint"):
        train(recipe_of("lora", **{**changes, "seed": 7}), tmp_path / "third")
    assert not (tmp_path / "third" / CHECKPOINTS).exists()
