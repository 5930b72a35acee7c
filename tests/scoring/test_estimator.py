"""The estimator scores the same before and after export, in any batch and order, and as a plain
forward pass does.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from coevolve import ProbabilityEstimator
from coevolve.errors import ArtifactError, TooLongError
from coevolve.files import sha256_file
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.worlds.tiny import write_tiny_base

TOLERANCE = 1e-4  # nats per response


def test_export_and_load_change_no_score(exported, examples, responses):
    estimator, folder = exported
    loaded = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    reasoning = estimator.reason(examples)
    assert loaded.reason(examples) == reasoning
    assert loaded.reason(examples, seed=3) == estimator.reason(examples, seed=3)
    before, after = (x.log_prob(examples, responses, reasoning) for x in (estimator, loaded))
    assert np.abs(before.sum - after.sum).max() < 1e-6
    assert np.array_equal(before.tokens, after.tokens)


def test_transformers_and_peft_alone_give_the_same_scores(exported, examples, responses):
    """No code of ours between the exported folder and the log-probability, but for the prompt's
    text.
    """
    estimator, folder = exported
    reasoning = estimator.reason(examples)
    scores = estimator.log_prob(examples, responses, reasoning)
    tokenizer = AutoTokenizer.from_pretrained(folder / ESTIMATOR)
    if (folder / "base").exists():
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder / "base"), folder / ESTIMATOR
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder / ESTIMATOR)
    model.eval()
    for example, response, text, total, count in zip(
        examples, responses, reasoning, scores.sum, scores.tokens, strict=True
    ):
        prompt = tokenizer(estimator.renderer.estimator(example, text), add_special_tokens=False)[
            "input_ids"
        ]
        target = [
            *tokenizer(response, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + target])).logits[0].double()
        log_probs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        assert count == len(target)
        assert abs(log_probs[range(len(target)), target].sum().item() - total) < TOLERANCE


def test_each_role_is_found_from_the_directory_by_any_software_and_by_us_wherever_it_was_moved(
    exported, examples, responses, tmp_path, monkeypatch
):
    estimator, folder = exported
    whole = not (folder / "base").exists()
    for role in ROLES:
        monkeypatch.chdir(folder)
        model = AutoModelForCausalLM.from_pretrained(role)  # as a server would
        tokenizer = AutoTokenizer.from_pretrained(role)
        assert tokenizer.chat_template == estimator.renderer_of(role).tokenizer.chat_template
        ids = tokenizer("a b", return_tensors="pt").input_ids
        with estimator.roles.acting(role) as own, torch.no_grad():
            assert torch.allclose(model(ids).logits, own(ids).logits, atol=1e-5)
        if not whole:
            config = AutoPeftModelForCausalLM.from_pretrained(role).peft_config["default"]
            assert config.base_model_name_or_path == "./base"
    monkeypatch.chdir(tmp_path)
    moved = folder.rename(tmp_path / "moved")
    try:
        loaded = ProbabilityEstimator.from_pretrained(moved, device="cpu")
        expected, found = (
            x.log_prob(examples, responses, [""] * len(examples)).sum for x in (estimator, loaded)
        )
        assert np.abs(expected - found).max() < 1e-6
    finally:
        moved.rename(folder)


def test_order_and_batch_do_not_matter(exported, examples, responses):
    estimator, folder = exported
    reasoning = estimator.reason(examples)
    expected = estimator.log_prob(examples, responses, reasoning).sum
    rng = np.random.default_rng(0)
    for budget in (1, 60, 200, 10_000):
        other = ProbabilityEstimator.from_pretrained(
            folder, device="cpu", token_budget=budget, verify=False
        )
        order = rng.permutation(len(examples))
        found = other.log_prob(
            *([values[i] for i in order] for values in (examples, responses, reasoning))
        )
        assert np.abs(found.sum - expected[order]).max() < TOLERANCE
        drawn = other.reason([examples[i] for i in order], seed=5)
        assert drawn == [estimator.reason(examples, seed=5)[i] for i in order]


def test_matrix_pairs_and_rows_agree(exported, examples, responses):
    estimator, _ = exported
    reasoning = estimator.reason(examples)
    matrix = estimator.log_prob_matrix(examples, responses[:3], reasoning)
    assert matrix.sum.shape == (len(examples), 3)
    assert matrix.tokens.shape == (3,)
    for j in range(3):
        column = estimator.log_prob(examples, [responses[j]] * len(examples), reasoning)
        assert np.abs(matrix.sum[:, j] - column.sum).max() < TOLERANCE
    pairs = np.array([[4, 2], [0, 0], [4, 1], [4, 2]])
    found = estimator.log_prob_pairs(examples, responses[:3], reasoning, pairs)
    assert np.abs(found.sum - matrix.sum[pairs[:, 0], pairs[:, 1]]).max() < TOLERANCE


def test_the_marginal_is_the_log_mean_of_its_samples(exported, examples, responses):
    estimator, _ = exported
    one = estimator.log_prob(examples, responses, estimator.reason(examples, seed=9))
    two = estimator.log_prob(examples, responses, estimator.reason(examples, seed=10))
    assert np.allclose(
        estimator.log_prob_marginal(examples, responses, samples=1, seed=9).sum, one.sum, atol=1e-9
    )
    both = estimator.log_prob_marginal(examples, responses, samples=2, seed=9)
    assert np.allclose(both.sum, np.log((np.exp(one.sum) + np.exp(two.sum)) / 2), atol=1e-9)


def test_without_reasoning_the_baselines_prompt_is_scored(exported, examples, responses):
    estimator, _ = exported
    direct = estimator.log_prob(examples, responses, [None] * len(examples))
    reasoned = estimator.log_prob(examples, responses, estimator.reason(examples))
    assert np.abs(direct.sum - reasoned.sum).min() > 0


def test_acting_puts_everything_back(build):
    roles = build("lora").roles
    model = roles.module(CONNECTOR).train()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(f".{CONNECTOR}." in name for name in trainable)
    with pytest.raises(RuntimeError), roles.acting(ESTIMATOR) as acting:
        assert not acting.training and acting.active_adapter == ESTIMATOR
        raise RuntimeError
    with roles.acting(None) as acting:
        assert not acting.training
    assert model.training and model.active_adapter == CONNECTOR
    assert {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    } == trainable


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_frozen_copy_stays_while_the_role_moves(build, tuning, examples, responses):
    estimator = build(tuning)
    roles, reasoning = estimator.roles, estimator.reason(examples)

    def score(actor):
        prompts = [
            estimator.renderer.prompt_ids(estimator.renderer.estimator(examples[0], reasoning[0]))
        ]
        with roles.acting(actor) as model, torch.no_grad():
            return model(input_ids=torch.tensor(prompts)).logits

    with roles.frozen(ESTIMATOR, roles.weights(ESTIMATOR)):
        before = score("ref")
        assert torch.equal(before, score(ESTIMATOR))
        roles.load_weights(
            ESTIMATOR, {name: 2 * value for name, value in roles.weights(ESTIMATOR).items()}
        )
        assert torch.equal(before, score("ref"))
        assert not torch.equal(before, score(ESTIMATOR))
    if tuning == "lora":
        assert set(roles.model.peft_config) == set(ROLES)


def test_the_manifest_says_what_it_is(exported):
    _, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["prompts"]["name"] == "world"
    assert all(
        entry["base"]["fingerprint"] and entry["chat_template"]
        for entry in manifest["roles"].values()
    )
    assert "nats per response" in manifest["normalisation"]
    assert {"README.md", "check.json", *(f"{role}/tokenizer.json" for role in ROLES)} <= set(
        manifest["files"]
    )
    assert "/tmp" not in (folder / "manifest.json").read_text()
    assert "/tmp" not in (folder / "README.md").read_text()
    assert manifest["scoring"] == {
        role: {"scores": "packed", "generates": "in batches"} for role in ROLES
    }
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_an_estimator_of_version_1_scores_the_same(exported, tmp_path, examples, responses):
    """Then both roles had one base and one tokenizer, adapters had no record, and the manifest said
    it once.
    """
    estimator, folder = exported
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    (old / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (old / ESTIMATOR / name).rename(old / "tokenizer" / name)
        (old / CONNECTOR / name).unlink()
    for path in (*old.glob("*/coevolve_parent.json"), old / "README.md", old / "check.json"):
        path.unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    entry = manifest.pop("roles")[ESTIMATOR]
    base = {"source": entry["base"]["source"], "fingerprint": entry["base"]["fingerprint"]}
    manifest |= {
        "version": 1,
        "tuning": entry["tuning"],
        "base": {**base, "included": entry["base"]["folder"] is not None},
        "chat_template": entry["chat_template"],
        "files": {
            path.relative_to(old).as_posix(): sha256_file(path)
            for path in old.rglob("*")
            if path.is_file() and path.name != "manifest.json"
        },
    }
    for name in ("rendering", "license", "datasets"):
        del manifest[name]
    (old / "manifest.json").write_text(json.dumps(manifest))
    loaded, reasoning = (
        ProbabilityEstimator.from_pretrained(old, device="cpu"),
        estimator.reason(examples),
    )
    before, after = (x.log_prob(examples, responses, reasoning) for x in (estimator, loaded))
    assert np.abs(before.sum - after.sum).max() < 1e-6


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (lambda folder: next((folder / "estimator").glob("*.safetensors")).unlink(), "missing"),
        (
            lambda folder: _flip(next((folder / "connector").glob("*.safetensors"))),
            "SHA-256 differs",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text('{"format": "x"}'),
            "accepted is format",
        ),
    ],
)
def test_damage_is_named(exported, tmp_path, harm, message):
    _, folder = exported
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    harm(copy)
    with pytest.raises(ArtifactError, match=message):
        ProbabilityEstimator.from_pretrained(copy, device="cpu")


def test_another_base_model_is_refused(exported, tmp_path):
    estimator, folder = exported
    if estimator.roles.tuning[ESTIMATOR] == "full":
        return  # a whole model has no base to be mistaken for
    other = write_tiny_base(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match="fingerprint"):
        ProbabilityEstimator.from_pretrained(folder, device="cpu", base=str(other))


def test_bad_questions_are_refused(exported, examples, responses):
    estimator, _ = exported
    with pytest.raises(ValueError, match="give as many"):
        estimator.log_prob(examples, responses[:-1], responses)
    with pytest.raises(ValueError, match=r"responses\[1\] is empty"):
        estimator.log_prob(examples[:2], [responses[0], "  "], responses[:2])
    with pytest.raises(TooLongError, match=examples[0].sample_id):
        estimator.log_prob(examples[:1], ["word " * 300], responses[:1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
