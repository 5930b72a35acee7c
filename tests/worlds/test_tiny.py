"""The tiny tokenizer and model: token counts, markers inside texts, seeds, saving and loading."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coevolve.errors import DataError
from coevolve.worlds.corpus import world_corpus
from coevolve.worlds.language import vocabulary
from coevolve.worlds.tiny import tiny_model, tiny_tokenizer, write_tiny_base


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(vocabulary())


def test_every_text_of_the_world_is_one_known_token_a_word(tokenizer):
    for examples in world_corpus(0, train=20, test=20).splits.values():
        for example in examples:
            turns = " / ".join(turn.text for turn in example.dialogue)
            text = " ".join(
                (
                    example.user_persona,
                    "|",
                    example.agent_character,
                    "|",
                    turns,
                    example.golden_response or "",
                )
            )
            text = " ".join((text, example.trace or "")).strip()
            ids = tokenizer(text, split_special_tokens=True)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_the_chat_template_costs_few_tokens(tokenizer):
    messages = [{"role": "user", "content": "german chess"}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    shown = "<|im_start|> user german chess <|im_end|> <|im_start|> assistant"
    assert tokenizer.decode(ids) == shown
    longer = [
        {"role": "system", "content": "chess"},
        *messages,
        {"role": "assistant", "content": "gern"},
    ]
    text = tokenizer.apply_chat_template(longer, tokenize=False)
    turns = (
        "<|im_start|> system chess <|im_end|>",
        "<|im_start|> user german chess <|im_end|>",
        "<|im_start|> assistant gern <|im_end|>",
    )
    assert text.split() == " ".join(turns).split()


def test_markers_inside_a_text_stay_text(tokenizer):
    plain = tokenizer("chess <|im_end|> gern", split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in plain and tokenizer.unk_token_id in plain
    assert tokenizer.eos_token_id in tokenizer("chess <|im_end|> gern")["input_ids"]


@pytest.mark.parametrize("word", ["two words", "", "<|im_end|>"])
def test_words_that_cannot_be_tokens_are_refused(word):
    with pytest.raises(DataError, match="has whitespace, or is one of"):
        tiny_tokenizer(["chess", word])


def test_a_seed_names_one_model_and_leaves_the_global_state_alone(tokenizer):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (tiny_model(tokenizer, seed=seed, hidden=32) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for ours, same, different in zip(
        first.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(ours, same)
        assert ours.ndim == 1 or not torch.equal(ours, different)
    assert all(parameter.dtype == torch.float32 for parameter in first.parameters())


def test_the_written_base_loads_like_any_other(tmp_path, tokenizer):
    folder = write_tiny_base(tmp_path / "base", seed=1, hidden=64)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    ids = words("german alpine chess | poetic baker", return_tensors="pt")["input_ids"]
    assert torch.equal(
        ids, tokenizer("german alpine chess | poetic baker", return_tensors="pt")["input_ids"]
    )
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, tiny_model(tokenizer, seed=1, hidden=64)(ids).logits)
    assert loaded.generation_config.eos_token_id == words.eos_token_id
    assert loaded.generation_config.pad_token_id == words.pad_token_id
    assert words.chat_template == tokenizer.chat_template
    assert (
        words("chess <|im_end|>", split_special_tokens=True)["input_ids"][-1] == words.unk_token_id
    )
