"""Scores are the same whatever the batch, padding, order, packing and cache, and equal a plain
forward pass.
"""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from coevolve.errors import OutOfMemoryError, TooLongError
from coevolve.scoring.backbone import Backbone
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
        "pad_token_id": 0,
        **more,
    }


def eager(model):
    model.set_attn_implementation("eager")
    return model


def longrope():
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
        **factors,
    }
    return LlamaForCausalLM(LlamaConfig(**shape(rope_parameters=rope)))


def recurrent():
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    sizes = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
    experts = {"num_experts": 0, "decoder_sparse_step": 1, "moe_intermediate_size": 8}
    kinds = ["linear_attention", "full_attention"]
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(**shape(layer_types=kinds, **linear, **sizes, **experts))
    )


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "output_router_logits": True,
}
WINDOW = {
    "head_dim": 8,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}
ARCHITECTURES = {
    "llama, grouped queries": lambda: LlamaForCausalLM(LlamaConfig(**shape())),
    "llama, eager attention": lambda: eager(LlamaForCausalLM(LlamaConfig(**shape()))),
    "llama, positions that depend on the length": longrope,
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape(head_dim=8))),
    "qwen3 of experts": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape(head_dim=8, **EXPERTS))),
    "qwen3-next, recurrent layers": recurrent,
    "mistral, sliding window of 6": lambda: MistralForCausalLM(
        MistralConfig(**shape(sliding_window=6))
    ),
    "gemma2, window and capped logits": lambda: Gemma2ForCausalLM(
        Gemma2Config(**shape(**WINDOW, final_logit_softcapping=2.0, attn_logit_softcapping=3.0))
    ),
    "gemma2, capped logits": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **shape(head_dim=8, layer_types=["full_attention"] * 2, final_logit_softcapping=2.0)
        )
    ),
    "gemma3, window": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**shape(**WINDOW))),
    "granite, scaled logits": lambda: GraniteForCausalLM(
        GraniteConfig(**shape(logits_scaling=0.3))
    ),
    "cohere, scaled logits": lambda: CohereForCausalLM(CohereConfig(**shape(logit_scale=3.0))),
}
PACKING = {
    *(
        "llama, grouped queries",
        "llama, eager attention",
        "qwen3",
        "qwen3 of experts",
        "gemma2, capped logits",
    ),
    *("granite, scaled logits", "cohere, scaled logits"),
}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model(request):
    torch.manual_seed(0)
    built = ARCHITECTURES[request.param]().eval()
    built.name = request.param
    with torch.no_grad():
        for parameter in built.parameters():  # far from uniform, so that a misplaced token shows
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return built


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape())).eval()


@torch.no_grad()
def plain(model, prompt, response):
    """One row, no padding, no cache, float64 log-softmax: nothing of coevolve's."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    return np.array(
        [log_probs[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)]
    )


def assert_plain(model, prompts, responses, scored):
    for prompt, response, values in zip(prompts, responses, scored, strict=True):
        expected = plain(model, prompt, response)
        assert values.shape == expected.shape
        assert abs(values.sum() - expected.sum()) < TOLERANCE
        assert np.abs(values - expected).max() < TOLERANCE


class Cheap:
    """Nothing costs anything but tokens, so that tiny prefixes are shared and tiny
    segments packed.
    """

    def __init__(self, monkeypatch, **changes):
        known = Backbone.__init__

        def changed(backbone, model):
            known(backbone, model)
            for name, value in {"run": 0.5, "copied": 0.1, **changes}.items():
                object.__setattr__(backbone.cost, name, value * backbone.cost.token)

        monkeypatch.setattr(Backbone, "__init__", changed)


ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14)
family = st.lists(
    st.sampled_from([[3, 9, 27], [3, 9, 28, 4], [11], [40, 41, 42, 43, 44]]), min_size=1, max_size=4
)
related = st.builds(
    lambda parts, own: [token for part in parts for token in part] + own, family, ids
)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(st.one_of(ids, related), ids), min_size=1, max_size=9),
    budget=st.integers(1, 200),
)
@pytest.mark.parametrize("cheap", [False, True])
def test_rows_equal_a_plain_forward_pass(model, cheap, rows, budget):
    prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
    with pytest.MonkeyPatch.context() as monkeypatch:
        if cheap:
            Cheap(monkeypatch, attention=0.0)
        scored = score_rows(model, prompts, responses, pad_id=0, token_budget=budget)
    assert_plain(model, prompts, responses, scored)


@settings(max_examples=10, deadline=None)
@given(
    prompts=st.lists(st.one_of(ids, related), min_size=1, max_size=5),
    responses=st.lists(ids, min_size=1, max_size=5),
    data=st.data(),
    budget=st.integers(1, 200),
)
@pytest.mark.parametrize("cheap", [False, True])
def test_pairs_on_a_shared_cache_equal_a_plain_forward_pass(
    model, cheap, prompts, responses, data, budget
):
    pair = st.tuples(st.integers(0, len(prompts) - 1), st.integers(0, len(responses) - 1))
    pairs = data.draw(st.lists(pair, min_size=1, max_size=12))
    with pytest.MonkeyPatch.context() as monkeypatch:
        if cheap:
            Cheap(monkeypatch)
        scored = score_pairs(
            model, prompts, responses, np.array(pairs), pad_id=0, token_budget=budget
        )
    assert_plain(model, [prompts[i] for i, _ in pairs], [responses[j] for _, j in pairs], scored)


def test_scores_depend_on_every_token_and_on_nothing_else(llama):
    """The other rows of a pass, the order and repeats leave a score alone; a changed prompt does
    not.
    """
    rows = [([5, 6, 7] * 5 + [k], [k, 8, 9]) for k in range(6)]
    alone = [score_rows(llama, [prompt], [response], pad_id=0)[0] for prompt, response in rows]
    order = [3, 0, 5, 5, 1, 2, 4]
    together = score_rows(llama, [rows[k][0] for k in order], [rows[k][1] for k in order], pad_id=0)
    for k, values in zip(order, together, strict=True):
        assert np.abs(values - alone[k]).max() < 1e-5
    changed = score_rows(llama, [[4, *rows[0][0][1:]]], [rows[0][1]], pad_id=0)[0]
    assert np.abs(changed - alone[0]).max() > 1e-3


def test_the_padding_token_may_be_one_that_occurs(model):
    prompts, responses = [[5, 5, 5], [5]], [[5, 7], [5, 5, 5, 5]]
    for pad_id in (5, 7, 0):
        assert_plain(
            model, prompts, responses, score_rows(model, prompts, responses, pad_id=pad_id)
        )


def passes(model, call):
    """(rows, columns, dimensions of the mask) of each of the decoder's passes during `call`."""
    seen = []

    def note(module, args, kwargs):
        mask = kwargs["attention_mask"]
        seen.append((*kwargs["input_ids"].shape, 0 if mask is None else mask.ndim))

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return seen


def test_short_segments_are_packed_and_long_ones_batched(llama, monkeypatch):
    """By cost: side by side the mask's hidden half grows with the square of the row."""
    Cheap(monkeypatch, attention=0.03, copied=0.2, run=8.0)
    pairs = np.array([(0, j) for j in range(6)])
    short = [[j + 1, *range(2, 2 + j)] for j in range(6)]
    long = [[j + 1] + [7] * (60 + j) for j in range(6)]
    prompt = [[9] * 40]
    # The prompt by itself, then its responses, the last token of each left out.
    assert passes(llama, lambda: score_pairs(llama, prompt, short, pairs, pad_id=0)) == [
        (1, 40, 0),
        (1, 15, 4),
    ]
    batched = passes(llama, lambda: score_pairs(llama, prompt, long, pairs, pad_id=0))
    assert batched[0] == (1, 40, 0)
    assert sum(rows for rows, _, _ in batched[1:]) == 6
    assert all(mask in (0, 2) for _, _, mask in batched)


def test_models_that_cannot_tell_segments_apart_are_batched(model, monkeypatch):
    Cheap(monkeypatch, attention=0.0)
    prompts, responses = [[9] * 20], [[j, 2, 3] for j in range(5)]
    pairs = np.array([(0, j) for j in range(5)])
    seen = passes(model, lambda: score_pairs(model, prompts, responses, pairs, pad_id=0))
    assert any(mask == 4 for _, _, mask in seen) == (model.name in PACKING)


def test_what_several_prompts_begin_with_is_computed_once(llama, monkeypatch):
    """A group of reasonings on one dialogue, and two dialogues on one template."""
    Cheap(monkeypatch)
    template, dialogues = [1] * 20, [[2] * 30, [3] * 30]
    prompts = [template + dialogue + [k, k, k] for dialogue in dialogues for k in range(4, 12)]
    responses = [[5, 6]] * len(prompts)
    seen = passes(llama, lambda: score_rows(llama, prompts, responses, pad_id=0))
    computed = sum(rows * columns for rows, columns, _ in seen)
    assert computed == 20 + 2 * 30 + 16 * 4
    assert_plain(llama, prompts, responses, score_rows(llama, prompts, responses, pad_id=0))


def test_logits_are_computed_at_scored_positions_only(llama):
    seen = []
    handle = llama.lm_head.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].numel() // 32)
    )
    try:
        score_rows(llama, [[1, 2, 3] * 9, [4] * 30], [[5, 6], [7, 8, 9]], pad_id=0)
    finally:
        handle.remove()
    assert sum(seen) == 5


def test_the_tail_of_the_softmax_is_in_float64(llama):
    """From the model's own float32 logits on, far from 0, where float32 is off by 1e-5 and more."""
    logits, response = [], [5, 6, 7, 8, 9, 10, 11]
    weight = llama.lm_head.weight.detach().clone()
    handle = llama.lm_head.register_forward_hook(
        lambda module, args, output: logits.append(output.detach().reshape(-1, VOCABULARY).clone())
    )
    try:
        with torch.no_grad():
            llama.lm_head.weight.mul_(1000)
        [scored] = score_rows(llama, [[1, 2, 3]], [response], pad_id=0)
    finally:
        handle.remove()
        with torch.no_grad():
            llama.lm_head.weight.copy_(weight)
    expected = torch.cat(logits).double().log_softmax(dim=-1)[range(len(response)), response]
    assert expected.max() < -1 and expected.min() < -300
    np.testing.assert_allclose(scored, expected.numpy(), rtol=0, atol=1e-6)


def test_the_model_is_left_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [id(module) for module in model.modules()]
    score_rows(model, [[1, 2], [1, 2, 3]], [[4, 5], [6]], pad_id=0)
    assert modules == [id(module) for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Memory:
    """An allocator of the decoder that has room for so many tokens in one pass."""

    def __init__(self, model, tokens, error):
        self.tokens, self.error, self.refused, self.given = tokens, error, 0, 0
        self.sizes = []  # of the passes refused, what the cache holds included
        self.handle = model.get_decoder().register_forward_pre_hook(self.allocate, with_kwargs=True)

    def allocate(self, module, args, kwargs):
        if kwargs["input_ids"].numel() > self.tokens:
            self.refused += 1
            rows, width = kwargs["input_ids"].shape
            self.sizes.append(rows * (int(kwargs["position_ids"][:, 0].max()) + width))
            raise self.error
        self.given += 1


def cpu_allocator_error():
    """What torch itself raises when the machine has no memory of that size."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_without_memory_the_budget_is_halved_and_nothing_is_lost(llama, kind, caplog):
    error = (
        torch.OutOfMemoryError("CUDA out of memory.") if kind == "gpu" else cpu_allocator_error()
    )
    prompts = [[k, 2, 3, 4] * 4 for k in range(12)]
    responses = [[k, 5, 6, 7, 8] for k in range(12)]
    pairs = np.array([(i, j) for i in range(12) for j in range(12)])
    memory, done = Memory(llama, 40, error), []
    try:
        with caplog.at_level(logging.WARNING):
            scored = score_pairs(llama, prompts, responses, pairs, pad_id=0, progress=done.append)
    finally:
        memory.handle.remove()
    assert memory.refused > 1 and memory.given > memory.refused
    assert sum(done) == len(pairs)
    assert (
        len([record for record in caplog.records if "did not fit the memory" in record.message])
        == 1
    )
    assert_plain(llama, [prompts[i] for i, _ in pairs], [responses[j] for _, j in pairs], scored)


@pytest.mark.parametrize(("contexts", "responses"), [(12, 6), (1, 60), (4, 60)])
def test_what_is_halved_is_the_pass_that_ran_out(llama, contexts, responses, caplog):
    """Not the budget, which may be many times that: each pass that fails costs as much as one that
    does not. What the cache holds counts.
    """
    memory = Memory(llama, 40, torch.OutOfMemoryError("CUDA out of memory."))
    prompts = [[k, 2, 3, 4] * 8 for k in range(contexts)]
    answers = [[k, 5, 6, 7] for k in range(responses)]
    pairs = np.array([(i, j) for i in range(contexts) for j in range(responses)])
    try:
        with caplog.at_level(logging.WARNING):
            score_pairs(llama, prompts, answers, pairs, pad_id=0)
    finally:
        memory.handle.remove()
    largest = max(memory.sizes)
    assert 40 < memory.sizes[0] == largest < 1 << 12
    [said] = [record.message for record in caplog.records if "did not fit" in record.message]
    assert f"A pass of {largest} tokens" in said
    assert f"a token budget of {largest // 2} instead of {1 << 14}," in said
    assert memory.refused <= np.log2(largest)


def test_a_row_that_alone_does_not_fit_the_memory_is_named(llama):
    memory = Memory(llama, 10, torch.OutOfMemoryError("CUDA out of memory."))
    try:
        with pytest.raises(OutOfMemoryError, match="prompt of 20 tokens and a response of 3 alone"):
            score_rows(llama, [[1, 2], [3] * 20], [[4], [5, 6, 7]], pad_id=0)
    finally:
        memory.handle.remove()


def test_other_errors_are_not_taken_for_a_full_memory(llama):
    memory = Memory(llama, 10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    try:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            score_rows(llama, [[3] * 20], [[5, 6, 7]], pad_id=0)
    finally:
        memory.handle.remove()


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(TooLongError, match="120 and response of 9"):
        score_rows(model, [[1] * 120], [[1] * 9], pad_id=0)
    with pytest.raises(ValueError, match="at least one token"):
        score_rows(model, [[1]], [[]], pad_id=0)


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    budget=st.integers(1, 300),
    cached=st.integers(0, 60),
    enough=st.none() | st.integers(1, 200),
)
def test_batches_hold_every_row_once_and_keep_to_the_budget(lengths, budget, cached, enough):
    batches = batches_by_tokens(lengths, budget, cached=cached, enough=enough)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * (cached + longest) <= budget
        assert len(batch) == 1 or enough is None or len(batch) * longest <= enough
