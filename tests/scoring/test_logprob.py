"""Scores are the same whatever the batch, the padding, the order and the cache, and equal a plain forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from coevolve.errors import TooLongError
from coevolve.scoring.batching import batches_by_tokens
from coevolve.scoring.logprob import score_pairs, score_rows

VOCABULARY = 61
TOLERANCE = 1e-4  # nats per response


def shape(**more):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        **more,
    }


ARCHITECTURES = {
    "llama, grouped queries": lambda: LlamaForCausalLM(LlamaConfig(**shape())),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape(head_dim=8))),
    "mistral, sliding window of 6": lambda: MistralForCausalLM(MistralConfig(**shape(sliding_window=6))),
}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model(request):
    torch.manual_seed(0)
    built = ARCHITECTURES[request.param]().eval()
    with torch.no_grad():
        for parameter in built.parameters():  # far from uniform, so that a misplaced token shows
            parameter.mul_(4)
    return built


@torch.no_grad()
def plain(model, prompt, response):
    """One row, no padding, no cache, float64 log-softmax: nothing of coevolve's."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    return np.array([log_probs[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)])


ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=9), budget=st.integers(1, 200))
def test_rows_equal_a_plain_forward_pass(model, rows, budget):
    prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
    scored = score_rows(model, prompts, responses, pad_id=0, token_budget=budget)
    for (prompt, response), values in zip(rows, scored, strict=True):
        expected = plain(model, prompt, response)
        assert values.shape == expected.shape
        assert abs(values.sum() - expected.sum()) < TOLERANCE
        assert np.abs(values - expected).max() < TOLERANCE


@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(ids, min_size=1, max_size=5),
    responses=st.lists(ids, min_size=1, max_size=5),
    data=st.data(),
    budget=st.integers(1, 200),
)
def test_pairs_on_a_shared_cache_equal_a_plain_forward_pass(model, prompts, responses, data, budget):
    pair = st.tuples(st.integers(0, len(prompts) - 1), st.integers(0, len(responses) - 1))
    pairs = data.draw(st.lists(pair, min_size=1, max_size=12))
    scored = score_pairs(model, prompts, responses, np.array(pairs), pad_id=0, token_budget=budget)
    for (i, j), values in zip(pairs, scored, strict=True):
        assert np.abs(values - plain(model, prompts[i], responses[j])).max() < TOLERANCE


def test_the_padding_token_may_be_one_that_occurs(model):
    prompts, responses = [[5, 5, 5], [5]], [[5, 7], [5, 5, 5, 5]]
    for pad_id in (5, 7, 0):
        for values, prompt, response in zip(
            score_rows(model, prompts, responses, pad_id=pad_id), prompts, responses, strict=True
        ):
            assert np.abs(values - plain(model, prompt, response)).max() < TOLERANCE


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(TooLongError, match="120 and response of 9"):
        score_rows(model, [[1] * 120], [[1] * 9], pad_id=0)
    with pytest.raises(ValueError, match="at least one token"):
        score_rows(model, [[1]], [[]], pad_id=0)


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 300))
def test_batches_hold_every_row_once_and_keep_to_the_budget(lengths, budget):
    batches = batches_by_tokens(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
