"""Generation stops where it should; samples follow the model and do not depend on the batch."""

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from coevolve.errors import TooLongError
from coevolve.scoring.generate import Sampling, generate

VOCABULARY, STOP, PAD = 9, 1, 0


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
    options = {"max_new_tokens": 12, "stop_id": STOP, "pad_id": PAD, **options}
    return generate(model, prompts, **options)


def test_greedy_is_the_argmax_of_each_step(model):
    for prompt, generation in zip(PROMPTS, run(model), strict=True):
        ids = list(prompt)
        for token in [*generation.ids, *([STOP] if generation.finished else [])]:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)
        assert generation.finished or len(generation.ids) == 12


@pytest.mark.parametrize("sampling", [None, Sampling(seed=5, temperature=1.3)])
def test_the_batch_does_not_matter(model, sampling):
    together = run(model, sampling=sampling)
    alone = [run(model, [prompt], sampling=sampling, keys=[key])[0] for key, prompt in enumerate(PROMPTS)]
    in_pairs = run(model, sampling=sampling, token_budget=30)
    assert together == alone == in_pairs


def test_seeds_and_keys_decide_the_sample(model):
    prompts = [PROMPTS[0]] * 6
    first = run(model, prompts, sampling=Sampling(seed=1))
    assert first == run(model, prompts, sampling=Sampling(seed=1))
    assert first != run(model, prompts, sampling=Sampling(seed=2))
    assert len({tuple(generation.ids) for generation in first}) > 1
    assert len({tuple(g.ids) for g in run(model, prompts, sampling=Sampling(seed=1), keys=[7] * 6)}) == 1


def test_samples_follow_the_softmax_at_the_temperature(model):
    temperature, count = 0.7, 4000
    generations = run(model, [PROMPTS[0]] * count, max_new_tokens=1, sampling=Sampling(seed=0, temperature=temperature))
    tokens = [generation.ids[0] if generation.ids else STOP for generation in generations]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    expected = torch.softmax(logits / temperature, dim=-1).numpy()
    found = np.bincount(tokens, minlength=VOCABULARY) / count
    # Five standard errors of a share of `count` draws.
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_a_prompt_without_room_is_refused(model):
    with pytest.raises(TooLongError, match="Prompt 1 has 60 tokens"):
        run(model, [[2], [2] * 60])
