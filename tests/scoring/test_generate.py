"""Generation stops where it should; samples follow the model and do not depend on the batch."""

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LogitsProcessor,
    MistralConfig,
    MistralForCausalLM,
    NoRepeatNGramLogitsProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from coevolve.errors import TooLongError
from coevolve.scoring.generate import Generation, Sampling, _mix, generate

VOCABULARY, STOP, PAD = 9, 1, 0
STOPS = [STOP, 8]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    return Qwen3ForCausalLM(config).eval()


PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 2, 3], [4, 4]]


def run(model, prompts=PROMPTS, **options):
    options = {"max_new_tokens": 12, "stop_ids": [STOP], "pad_id": PAD, **options}
    return generate(model, prompts, **options)


def test_greedy_is_the_argmax_of_each_step(model):
    for prompt, generation in zip(PROMPTS, run(model), strict=True):
        ids = list(prompt)
        for token in [*generation.ids, *([generation.stopped_by] if generation.finished else [])]:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)
        assert generation.finished or len(generation.ids) == 12


def repeats(ids, size):
    """Whether so many tokens in a row come twice."""
    found = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    return len(set(found)) < len(found)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_n_tokens_in_a_row_come_twice_and_a_text_without_such_stays(model, size):
    options = {"max_new_tokens": 30, "stop_ids": [VOCABULARY]}  # nothing ends it but its length
    free, guarded = run(model, **options), run(model, **options, no_repeat_ngram=size)
    assert all(repeats(generation.ids, size) for generation in free)
    for prompt, one, other in zip(PROMPTS, free, guarded, strict=True):
        seen = (
            other.ids if size > 1 else other.ids[:VOCABULARY]
        )  # then there is no other token left
        assert not repeats(seen, size)
        kept = next(end for end in range(31) if repeats(one.ids[:end], size)) - 1
        assert other.ids[:kept] == one.ids[:kept] and other.ids[kept] != one.ids[kept]
        # As transformers has it, of what was generated alone.
        ban = NoRepeatNGramLogitsProcessor(size)
        for at in range(len(seen)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + seen[:at]])).logits[:, -1]
            allowed = ban(torch.tensor([seen[:at]]), logits)
            assert allowed[0].argmax().item() == seen[at]
    assert run(model, **options, no_repeat_ngram=31) == free


def test_the_guard_does_not_depend_on_the_batch(model):
    options = {"max_new_tokens": 14, "stop_ids": STOPS, "no_repeat_ngram": 2}
    together = run(model, **options)
    assert together == [run(model, [prompt], **options)[0] for prompt in PROMPTS]
    assert together == run(model, token_budget=30, **options)


@pytest.mark.parametrize("sampling", [None, Sampling(seed=5, temperature=1.3)])
def test_the_batch_does_not_matter(model, sampling):
    together = run(model, sampling=sampling)
    alone = [
        run(model, [prompt], sampling=sampling, keys=[key])[0] for key, prompt in enumerate(PROMPTS)
    ]
    in_pairs = run(model, sampling=sampling, token_budget=30)
    assert together == alone == in_pairs


def test_seeds_and_keys_decide_the_sample(model):
    prompts = [PROMPTS[0]] * 6
    first = run(model, prompts, sampling=Sampling(seed=1))
    assert first == run(model, prompts, sampling=Sampling(seed=1))
    assert first != run(model, prompts, sampling=Sampling(seed=2))
    assert len({tuple(generation.ids) for generation in first}) > 1
    assert (
        len({tuple(g.ids) for g in run(model, prompts, sampling=Sampling(seed=1), keys=[7] * 6)})
        == 1
    )


def test_neighbouring_seeds_and_keys_give_unrelated_samples(model):
    """Row k + 1 under a seed is not row k under the next: seeds would otherwise be one stream."""
    drawn = {
        seed: run(model, [PROMPTS[0]] * 12, sampling=Sampling(seed=seed, temperature=2.0))
        for seed in (0, 1)
    }
    assert sum(a == b for a, b in zip(drawn[0][1:], drawn[1][:-1], strict=True)) <= 3


@pytest.mark.parametrize("narrow", [{"top_p": 0.6}, {"top_k": 4}, {"min_p": 0.2}])
def test_sampling_is_narrowed_as_transformers_does(narrow):
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warper = {"top_p": TopPLogitsWarper, "top_k": TopKLogitsWarper, "min_p": MinPLogitsWarper}
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 2
    ((name, value),) = narrow.items()
    expected = warper[name](value)(None, logits / 0.7)
    found = Sampling(0, 0.7, **narrow).narrow(logits)
    assert torch.equal(found, expected) and found.isinf().any()


def test_what_was_narrowed_is_not_sampled(model):
    sampled = {"seed": 0, "temperature": 2.0}
    wide = run(model, [PROMPTS[0]] * 30, sampling=Sampling(**sampled))
    assert wide != run(model, [PROMPTS[0]] * 30, sampling=None)
    for narrow in ({"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}):
        narrowed = run(model, [PROMPTS[0]] * 30, sampling=Sampling(**sampled, **narrow))
        assert narrowed == run(model, [PROMPTS[0]] * 30, sampling=None)


def test_samples_follow_the_softmax_at_the_temperature(model):
    temperature, count = 0.7, 4000
    generations = run(
        model,
        [PROMPTS[0]] * count,
        max_new_tokens=1,
        sampling=Sampling(seed=0, temperature=temperature),
    )
    tokens = [
        generation.ids[0] if generation.ids else generation.stopped_by for generation in generations
    ]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    expected = torch.softmax(logits / temperature, dim=-1).numpy()
    found = np.bincount(tokens, minlength=VOCABULARY) / count
    # Five standard errors of a share of `count` draws.
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_a_prompt_without_room_is_refused(model):
    with pytest.raises(TooLongError, match="Prompt 1 has 60 tokens"):
        run(model, [[2], [2] * 60])


class NoiseTokenByToken(LogitsProcessor):
    """The noise as it is defined: one draw over the vocabulary for each token, from the row's own
    generator.
    """

    def __init__(self, sampling, keys):
        self.temperature = sampling.temperature
        self.generators = [torch.Generator().manual_seed(_mix(sampling.seed, key)) for key in keys]

    def __call__(self, input_ids, scores):
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in self.generators])
        tiny = torch.finfo(torch.float32).tiny
        return scores / self.temperature - torch.log(
            (-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny)
        )


def by_the_library(model, prompts, sampling, max_new_tokens):
    """What transformers' own `generate` gives, row by row."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=STOPS, pad_token_id=PAD
    )
    generations = []
    for key, prompt in enumerate(prompts):
        processors = [] if sampling is None else [NoiseTokenByToken(sampling, [key])]
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=processors,
        )
        written = output[0, len(prompt) :].tolist()
        finished = written[-1] in STOPS
        stopped_by = written.pop() if finished else None
        generations.append(Generation(written, finished, stopped_by))
    return generations


@pytest.fixture(scope="module")
def sliding_model():
    """Attends to 6 tokens only, with 2 query heads to a key head."""
    torch.manual_seed(4)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=6,
        max_position_embeddings=64,
    )
    return MistralForCausalLM(config).eval()


@pytest.fixture(scope="module")
def hybrid_model():
    """A layer of short convolutions, which keep a state, and one of attention."""
    torch.manual_seed(5)
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        max_position_embeddings=64,
    )
    return Lfm2ForCausalLM(config).eval()


@pytest.mark.parametrize("which", ["model", "sliding_model", "hybrid_model"])
@pytest.mark.parametrize("sampling", [None, Sampling(seed=8, temperature=1.5)])
@pytest.mark.parametrize(
    "prompts", [PROMPTS * 4, [PROMPTS[2]] * 12, [[3] * n for n in range(1, 20)]]
)
def test_it_is_what_the_library_generates(which, sampling, prompts, request):
    """Rows end one after another and leave the batch; prompts are shared or not, padded or not."""
    model = request.getfixturevalue(which)
    expected = by_the_library(model, prompts, sampling, 30)
    assert run(model, prompts, sampling=sampling, max_new_tokens=30, stop_ids=STOPS) == expected
    if sampling is not None:
        assert len({len(generation.ids) for generation in expected}) > 3
        assert len({generation.stopped_by for generation in expected}) > 1


def test_a_shared_prompt_is_run_once_and_ended_rows_no_more(model, monkeypatch):
    shapes = []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda **inputs: shapes.append(inputs["input_ids"].shape) or forward(**inputs),
    )
    generations = run(
        model, [PROMPTS[0]] * 8, sampling=Sampling(seed=8, temperature=1.5), max_new_tokens=30
    )
    assert shapes[0] == (1, len(PROMPTS[0]))
    assert shapes[1] == (8, 1)
    assert shapes[-1][0] < 8
    assert len(shapes) == max(
        len(generation.ids) + generation.finished for generation in generations
    )


def test_what_poll_raises_ends_the_generation(model):
    calls = []

    def poll():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, poll=poll)
    assert len(calls) == 2
