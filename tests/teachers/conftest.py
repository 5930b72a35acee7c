"""Examples in the RPGBench layout, and the real dialogues where they are there."""

from pathlib import Path

import pytest

from coevolve.data.corpus import Corpus, read_corpus
from coevolve.data.example import Example, Turn
from coevolve.prompts import Renderer, prompt_set
from coevolve.teachers import RuleTeacher

BRIEF = prompt_set("brief")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "roleplay-shared.json"


def make_example(
    response: str | None,
    *turns: str,
    sample_id: str = "a-1",
    persona: str = "",
    character: str | dict = "",
) -> Example:
    """An example whose turns alternate and end with the user's."""
    speakers = ("user", "agent") if len(turns) % 2 else ("agent", "user")
    dialogue = tuple(
        Turn(speakers[index % 2], text) for index, text in enumerate(turns or ("Hello",))
    )
    return Example(sample_id, "test", persona, character, dialogue, response)


@pytest.fixture(scope="session")
def make():
    return make_example


@pytest.fixture(scope="session")
def dialogues() -> list[Example]:
    """Three examples that share nothing."""
    return [
        make_example(
            "I bake sourdough bread every Sunday!",
            "Do you have a hobby?",
            sample_id="bread",
            persona="I play the tuba.",
            character={"name": "Ada", "persona": ["I bake bread.", "I own two parrots."]},
        ),
        make_example(
            "Thanks! Which instrument do you play?",
            "Hi.",
            "Hi, who are you?",
            "A musician, and I like your hat.",
            sample_id="tuba",
            persona="I play the tuba.",
            character={"name": "Ada", "persona": ["I bake bread.", "I own two parrots."]},
        ),
        make_example(
            "No, never.", "Have you been to Lisbon?", sample_id="lisbon", character="A sailor."
        ),
    ]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    if not SHARED.exists():
        pytest.skip(f"the real dialogues are not there: {SHARED}")
    return read_corpus(SHARED)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer(dialogues):
    """A byte-level BPE tokenizer with a ChatML template, made from the prompts that it will see."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        *BRIEF.to_dict().values(),
        *(RuleTeacher(BRIEF).trace(example) for example in dialogues),
    ]
    bpe.train_from_iterator([str(text) for text in texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def renderer(tokenizer) -> Renderer:
    return Renderer(BRIEF, tokenizer)


@pytest.fixture(scope="session")
def build_model(tokenizer):
    """Makes a Qwen3 of two small layers with random weights, in evaluation mode."""

    def build():
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,  # vLLM has no smaller ones on a CPU
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        return Qwen3ForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def tiny_model(build_model):
    return build_model()
