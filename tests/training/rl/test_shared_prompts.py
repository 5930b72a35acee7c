"""A shared prompt run once gives the values and the gradients of separate rows, to rounding."""

import copy
import types

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOTrainer
from trl.trainer import utils as trl_utils

from coevolve.training.rl.shared_prompts import SharedPrompts, packed

VOCABULARY = 13


class Library:
    """What the mixin needs of a trainer."""

    def __init__(self, *, model):
        self.model = model
        self.accelerator = types.SimpleNamespace(autocast=Accelerator(cpu=True).autocast)
        trl_utils.add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))

    # Unprofiled.
    _get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__


class Trainer(SharedPrompts, Library):
    pass


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=VOCABULARY, max_position_embeddings=256, **sizes, **heads)
    ).double()


def batch(prompts, completions):
    """(ids (B, P + C), mask, C) as TRL pads them."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        before, behind = left - len(prompt), right - len(completion)
        ids.append([0] * before + prompt + completion + [0] * behind)
        mask.append([0] * before + [1] * len(prompt + completion) + [0] * behind)
    return torch.tensor(ids), torch.tensor(mask), right


def values_and_gradients(trainer, model, inputs, how):
    model.zero_grad()
    log_probs, entropies, aux = how(trainer, model, *inputs, compute_entropy=True)
    assert aux is None
    weights = torch.linspace(-1, 1, log_probs.numel(), dtype=torch.float64).reshape(log_probs.shape)
    ((log_probs + 0.3 * entropies) * weights).sum().backward()
    return (
        log_probs.detach(),
        entropies.detach(),
        [parameter.grad.clone() for parameter in model.parameters()],
    )


tokens = st.integers(0, VOCABULARY - 1)
groups = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=9),
        st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=30)
@given(groups=groups, order=st.randoms(use_true_random=False))
def test_values_and_gradients_are_those_of_separate_rows(model, groups, order):
    rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
    order.shuffle(rows)
    inputs = batch(*map(list, zip(*rows, strict=True)))
    trainer = Trainer(model=model)
    trainer._cost = types.SimpleNamespace(
        of_pass=lambda rows, width, cached: rows
    )  # pack whenever something is shared
    found = values_and_gradients(trainer, model, inputs, Trainer._get_per_token_logps_and_entropies)
    expected = values_and_gradients(
        trainer, model, inputs, Library._get_per_token_logps_and_entropies
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=2e-6
    )  # TRL's head computes in float32


def test_completions_that_are_masked_whole_and_parts_of_a_batch(model):
    ids, mask, width = batch(
        [[1, 2, 3]] * 4 + [[4]] * 2, [[5, 6], [7], [8, 9, 1], [2], [3], [4, 5]]
    )
    mask[2, -width:] = 0
    trainer = Trainer(model=model)
    for size in (None, 4, 5):
        found = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, width, batch_size=size
        )[0]
        expected = Library._get_per_token_logps_and_entropies(trainer, model, ids, mask, width)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
        assert (found[2] == 0).all()


def test_a_reference_that_gives_no_entropy(model):
    trainer = Trainer(model=copy.deepcopy(model))
    reference = copy.deepcopy(model)
    trl_utils.add_fused_lm_head(reference, temperature=0.8)
    inputs = batch([[1, 2, 3, 4, 5, 6]] * 4, [[5], [7], [8, 9], [2]])
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(reference, *inputs)
    torch.testing.assert_close(
        log_probs, trainer._get_per_token_logps_and_entropies(trainer.model, *inputs)[0]
    )
    assert entropies is None


def test_a_group_is_one_row_and_its_prompt_is_there_once():
    layout = packed(*batch([[7, 8, 9]] * 2, [[1, 2], [3]]))
    assert layout.ids_RS.tolist() == [[7, 8, 9, 1, 9]]
    assert layout.positions_RS.tolist() == [[0, 1, 2, 3, 2]]
    assert layout.labels_RS.tolist() == [[-100, -100, 1, 2, 3]]
    assert layout.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_long_completions_of_short_prompts_keep_rows_of_their_own(model, monkeypatch):
    """Attention among all of them side by side would cost more than a prompt of one token saves."""
    trainer = Trainer(model=model)
    monkeypatch.setattr(trainer, "_of_packed", None)
    inputs = batch([[1]] * 8, [[2] * 200] * 8)
    assert trainer._get_per_token_logps_and_entropies(model, *inputs)[0].shape == (8, 200)


def test_a_model_with_a_sliding_window_is_not_packed():
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=4,
    )  # fmt: skip
    assert not Trainer(model=Gemma2ForCausalLM(config))._packs
