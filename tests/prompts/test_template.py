"""Where an answer begins and ends under the kinds of chat templates that models come with; scoring
agrees with it.

The kinds are in our own words, on small tokenizers. The table stands in
`coevolve/scoring/README.md`.
"""

import copy
import dataclasses
import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import coevolve.scoring
from coevolve.data.example import Example, Turn
from coevolve.errors import ArtifactError, DataError
from coevolve.prompts import Renderer, prompt_set
from coevolve.prompts.template import CLOCK, CODES
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.models import load_tokenizer
from coevolve.worlds.corpus import world_corpus
from coevolve.worlds.tiny import write_tiny_base

OPENS = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
BARS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def thinking(closes: str, opens: str = "<think>\n") -> str:
    """ChatML whose generation prompt opens a thought; a conversation has `closes`
    before an answer.
    """
    return CHATML.replace(
        "{{ m.content }}", "{{ '" + closes + "' if m.role == 'assistant' }}{{ m.content }}"
    ).replace("assistant\n{% endif", f"assistant\n{opens}" + "{% endif")


@dataclass(frozen=True)
class Kind:
    """A kind of template, and what is right for it.

    Attributes:
        like: models that have such a one.
        before: what stands between the last user message and the answer, the end of the user's turn
            included.
        closing: the tokens that end the answer.
        tokenizer: `bytes` (byte-level BPE, as most have it), `pieces` (as sentencepiece: a text
            begins with a space) or `swallowing` (the same, and the roles are tokens that swallow
            the white space behind them).
        own_system: whether a system message has a place.
        amid: the end of turn only shows where another turn follows.
        unthought: what an answer has to begin with in a conversation, so that no thought is open.
    """

    like: str
    template: str
    before: str
    closing: tuple[str, ...]
    tokenizer: str = "bytes"
    own_system: bool = True
    amid: bool = False
    unthought: str = ""

    @property
    def special(self):
        return {"own_system": self.own_system, "amid": self.amid, "unthought": self.unthought}


KINDS = {
    "ChatML": Kind(
        "SmolLM2, Qwen2.5", CHATML, "<|im_end|>\n<|im_start|>assistant\n", ("<|im_end|>",)
    ),
    "always a generation prompt": Kind(
        "Llama-3 (the first one)",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor "
        "%}<|im_start|>assistant\n",
        "<|im_end|><|im_start|>assistant\n",
        ("<|im_end|>",),
    ),
    "no system role, which raises": Kind(
        "Gemma 1 and 2",
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% "
        "endif %}"
        + ALTERNATE
        + (
            "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == "
            "'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        )
        + OPENS
        + "<start_of_turn>model\n{% endif %}",
        "<end_of_turn>\n<start_of_turn>model\n",
        ("<end_of_turn>",),
        own_system=False,
    ),
    "no system role, roles alternate": Kind(
        "Mistral, Mixtral",
        ALTERNATE + INSTRUCT,
        " [/INST] ",
        ("</s>",),
        tokenizer="pieces",
        own_system=False,
    ),
    "the same, byte-level": Kind(
        "", ALTERNATE + INSTRUCT, " [/INST] ", ("</s>",), own_system=False
    ),
    "a system message is left out": Kind(
        "",
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        "<|im_end|>\n<|im_start|>assistant\n",
        ("<|im_end|>",),
        own_system=False,
    ),
    "a space before the end": Kind(
        "Llama-2",
        "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + "
        "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% "
        "if m.role == 'user' %}{{ bos_token }}[INST] {{ first if loop.first }}{{ m.content }} "
        "[/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
        " [/INST] ",
        ("\u2581", "</s>"),
        tokenizer="pieces",
    ),
    "a line break, then sentencepiece": Kind(
        "Zephyr", BARS, "</s>\n<|assistant|>\n", ("</s>",), tokenizer="pieces"
    ),
    "a control token swallows it": Kind(
        "Phi-3",
        BARS.replace("{{ eos_token }}", "<|end|>")
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        "<|end|>\n<|assistant|>\n",
        ("<|end|>",),
        tokenizer="swallowing",
    ),
    "a colon, then a space": Kind(
        "OpenChat",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% else %}"
        "GPT4 Correct {{ m.role | capitalize }}: {{ m.content }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}",
        "<|end|>GPT4 Correct Assistant: ",
        ("<|end|>",),
        tokenizer="pieces",
    ),
    "headings": Kind(
        "Alpaca",
        "{% set heading = {'user': '### Instruction:\n', 'assistant': '### Response:\n', 'system': "
        "''} %}{% for m in messages %}{{ heading[m.role] }}{{ m.content }}{{ eos_token if m.role "
        "== 'assistant' }}\n\n{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
        "\n\n### Response:\n",
        ("</s>",),
    ),
    "a thought is opened": Kind(
        "R1, distilled", thinking(""), "<|im_end|>\n<|im_start|>assistant\n", ("<|im_end|>",)
    ),
    "a thought is opened, and closed": Kind(
        "Qwen3-Thinking",
        thinking("<think>\\n\\n</think>\\n\\n"),
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ("<|im_end|>",),
    ),
    "every answer begins in a thought": Kind(
        "",
        thinking("<think>\\n"),
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ("<|im_end|>",),
        unthought="\n</think>\n\n",
    ),
    "a line break is left out, and the end of turn": Kind(
        "GLM-4.5",
        "[gMASK]<sop>{% for m in messages %}{% if m.role == 'assistant' "
        "%}<|assistant|>\n<think></think>\n"
        "{{ m.content | trim }}{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n<think></think>{% endif %}",
        "<|assistant|>\n<think></think>\n",
        ("<|user|>",),
        amid=True,
    ),
    "channels": Kind(
        "gpt-oss",
        "<|start|>system<|message|>It is {{ strftime_now('%Y-%m-%d') }}.<|end|>{% for m in "
        "messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ "
        "m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' "
        "}}{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        ("<|return|>",),
    ),
    "two tokens end a turn": Kind(
        "Command-R7B",
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' "
        "%}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% else %}<|message|>{{ m.content }}{% "
        "endif %}</s>{% endfor %}<|start|>assistant",
        "</s><|start|>assistant<|START_RESPONSE|>",
        ("<|END_RESPONSE|>", "</s>"),
    ),
}

HIDDEN = (
    "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
)
GLUED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    + OPENS
    + "<assistant>{% endif %}"
)
REFUSED = {
    "answers are not shown": (HIDDEN, {}, "does not say where an answer begins"),
    "opening and answer merge": (GLUED, {}, "does not say where an answer begins"),
    "it refuses an answer": (
        CHATML
        + "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no answers') }}{% endif %}",
        {},
        "refuses the messages: no answers. Use a model whose template takes turns in exchange",
    ),
    "no end of turn": (
        CHATML.replace("<|im_end|>", "").replace("<|im_start|>", "###"),
        {"eos_token": None, "pad_token": "<s>"},
        "which is no control token, and the tokenizer has no end-of-sequence token",
    ),
    "no token to end or to pad with": (
        CHATML,
        {"eos_token": None, "pad_token": None},
        "neither an end-of-sequence nor a padding token",
    ),
}

CONTROL = (
    *("<s>", "</s>"),
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "[gMASK]", "<sop>"),
    *(
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|return|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ),
)
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
ADDED = ("<think>", "</think>", "<tool_call>")
TEXT = (
    'The sailor said: "Lisbon, at dawn." <b>"Aye"</b>, he nodded. What would you do there, my '
    "friend? I would walk. "
    "User assistant system model final Correct Instruction Response ### 12 days, (two) harbours. "
)


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, or one that does what sentencepiece does in Llama-2."""
    if kind == "bytes":
        bpe = _trained(
            pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet()
        )
        bpe.decoder = decoders.ByteLevel()
    else:
        made = json.loads(_trained(pre_tokenizers.Metaspace(), ()).to_str())["model"]
        tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *made["vocab"]]
        vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
        merges = [tuple(merge) for merge in made["merges"]]
        bpe = Tokenizer(
            models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        bpe.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        pieces = [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        bpe.decoder = decoders.Sequence(pieces)
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    if kind != "pieces":
        swallows = kind == "swallowing"
        bpe.add_special_tokens(
            [AddedToken(token, normalized=False, rstrip=swallows) for token in ROLES]
        )
    bpe.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def _trained(pre_tokenizer: pre_tokenizers.PreTokenizer, alphabet: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: tokenizer_of(kind) for kind in ("bytes", "pieces", "swallowing")}


@pytest.fixture
def make(tokenizers):
    """A tokenizer with a chat template, and options of the tokenizer."""

    def make(template, kind="bytes", **options):
        tokenizer = copy.deepcopy(tokenizers[kind])
        tokenizer.chat_template = template
        for name, value in options.items():
            setattr(tokenizer, name, value)
        return tokenizer

    return make


@pytest.fixture(scope="module")
def build_model():
    """A tiny Llama for a vocabulary."""

    def build(vocabulary):
        torch.manual_seed(0)
        shape = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape)).eval()

    return build


@pytest.mark.parametrize("name", KINDS)
def test_prompt_and_response_are_what_the_conversation_begins_with(
    name, make, build_model, chats, answers, conversation, cut, plain_score
):
    kind = KINDS[name]
    tokenizer = make(kind.template, kind.tokenizer)
    render = Renderer(prompt_set("brief"), tokenizer)
    pairs = []
    for chat in chats:
        for answer in answers:
            text, begin, end = conversation(tokenizer, chat, answer, **kind.special)
            assert text[:begin].endswith(chat[-1]["content"] + kind.before)
            pairs.append(cut(tokenizer, text, begin, end, kind.closing))
            assert (render.prompt_ids(render.chat(chat)), render.response_ids(answer)) == pairs[
                -1
            ], (chat, answer)
    assert (render.date is None) == ("strftime_now" not in kind.template)
    model = build_model(len(tokenizer))
    prompts, responses = zip(*pairs[::5], strict=True)
    scored = score_rows(model, prompts, responses, pad_id=tokenizer.pad_token_id)
    for values, prompt, response in zip(scored, prompts, responses, strict=True):
        assert abs(values.sum() - plain_score(model, prompt, response)) < 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_place_is_refused(name, make):
    template, options, sentence = REFUSED[name]
    with pytest.raises(ArtifactError, match=sentence) as caught:
        Renderer(prompt_set("brief"), make(template, **options))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_the_table_of_templates_stands_beside_scoring(make):
    page = (Path(coevolve.scoring.__file__).parent / "README.md").read_text(encoding="utf-8")

    def code(text):
        return f"`{json.dumps(text, ensure_ascii=False)[1:-1]}`".replace("|", "\\|") if text else ""

    for name, kind in KINDS.items():
        system = "its own message" if kind.own_system else "in the user's"
        row = (
            f"| {name} | {kind.like} | {code(kind.before)} | {code(''.join(kind.closing))} | "
            f"{system} |"
        )
        assert row in page
    for name, (template, options, _) in REFUSED.items():
        tokenizer = make(template, **options)
        tokenizer.name_or_path = "model"
        with pytest.raises(ArtifactError) as caught:
            Renderer(prompt_set("brief"), tokenizer)
        assert f"| {name} | {str(caught.value).replace('|', chr(92) + '|')} |" in page


def test_a_system_message_that_is_left_out_is_said_once(make, caplog):
    for prompts in ("brief", "roleplay"):
        Renderer(
            prompt_set(prompts),
            make(KINDS["a system message is left out"].template, name_or_path="silent"),
        )
    assert [record.message for record in caplog.records] == [
        "The chat template of 'silent' leaves out system messages; here they go in front of the "
        "user's message."
    ]
    caplog.clear()
    Renderer(prompt_set("brief"), make(KINDS["no system role, which raises"].template))
    assert not caplog.records


def test_a_thought_that_is_not_opened_any_more_is_said(make, caplog):
    Renderer(
        prompt_set("brief"), make(KINDS["a thought is opened"].template, name_or_path="thinks")
    )
    assert ["opens a <think>" in record.message for record in caplog.records] == [True]


def test_a_prompt_whose_generation_prompt_is_another_one_is_refused(make):
    """What was found when the tokenizer was loaded must hold for every prompt."""
    opens = "assistant\n{{ '<think>\n' if 'Lisbon' not in messages[-1].content }}{% endif"
    render = Renderer(prompt_set("brief"), make(CHATML.replace("assistant\n{% endif", opens)))
    assert render.chat([{"role": "user", "content": "Where to?"}]).endswith(
        "<|im_start|>assistant\n"
    )
    with pytest.raises(ArtifactError, match="so where its answer begins is not known"):
        render.chat([{"role": "user", "content": "To Lisbon?"}])


def test_the_date_is_the_one_that_was_given(make, chats):
    tokenizer = make(KINDS["channels"].template)
    prompts = {
        day: Renderer(prompt_set("brief"), tokenizer, date=day)
        for day in ("2024-02-29", "2031-12-01")
    }
    for day, render in prompts.items():
        assert render.date == day and render.shown_date == {"template_date": day}
        assert f"It is {day}." in render.chat(chats[0])
    assert Renderer(prompt_set("brief"), make(CHATML), date="2024-02-29").shown_date == {}
    with pytest.raises(ArtifactError, match="template_date: 'today'; accepted is such as"):
        Renderer(prompt_set("brief"), tokenizer, date="today")


@pytest.mark.parametrize("begin", ["{% if true %}\nx{% endif %}", " {% set a = 1 %}", "\n", ""])
@pytest.mark.parametrize("code", ["%d %b %Y", "%-d. %B %y", "%A, %j", "%Y-%m-%d"])
def test_the_fixed_clock_changes_nothing_but_the_time(make, chats, begin, code):
    """White space at a template's beginning, and a macro's use of the clock, are as with the
    library's own.
    """
    tokenizer, day = make(CHATML), datetime.date.today()
    show = f"{{{{ strftime_now('{code}') }}}}"
    if_known = "{% if strftime_now is defined %}" + show + "{% endif %}"
    in_macro = "{% macro show() %}" + show + "{% endmacro %}{{ show() }}"
    for template in (begin + show, begin + if_known, begin + in_macro):
        plain = tokenizer.apply_chat_template(chats[0], chat_template=template, tokenize=False)
        assert day.strftime(code) in plain
        clock = {
            "chat_template": CLOCK + template,
            "calendar": {f"%{c}": day.strftime(f"%{c}") for c in CODES},
        }
        assert tokenizer.apply_chat_template(chats[0], tokenize=False, **clock) == plain


@pytest.mark.parametrize(
    "kind", ["ChatML", "a line break, then sentencepiece", "a space before the end"]
)
def test_added_tokens_in_a_response_stay_text(kind, make):
    tokenizer = make(KINDS[kind].template, KINDS[kind].tokenizer)
    render = Renderer(prompt_set("brief"), tokenizer)
    for text in (
        "Aye </think> so <tool_call>",
        "<think>",
        "</s> stop <|im_end|></think>",
        "a <<think> b",
    ):
        ids = render.response_ids(text)
        written = ids[: len(ids) - len(KINDS[kind].closing)]
        assert not set(written) & set(tokenizer.added_tokens_decoder)
        assert tokenizer.decode(written).strip() == text


def test_what_every_answer_begins_with_has_its_place_too(make, conversation, cut):
    """The reference's prompts have the estimator's answers begin in a heading; its ids are the
    prompt's.
    """
    prompts = dataclasses.replace(prompt_set("brief"), response_start="## Response\n")
    kind = KINDS["a line break, then sentencepiece"]
    tokenizer = make(kind.template, kind.tokenizer)
    render = Renderer(prompts, tokenizer)
    example = Example("s", "t", "A cook.", "A sailor.", (Turn("user", "Where to?"),), "Lisbon.")
    chat = render.estimator_messages(example, None)
    text, begin, end = conversation(tokenizer, chat, "## Response\nLisbon.")
    expected = cut(tokenizer, text, begin + len("## Response\n"), end, kind.closing)
    assert (
        render.prompt_ids(render.estimator(example, None)),
        render.response_ids("Lisbon."),
    ) == expected
    other = KINDS["a space before the end"]
    with pytest.raises(ArtifactError, match="does not say where an answer begins"):
        Renderer(prompts, make(other.template, other.tokenizer))


def test_the_estimators_messages_are_ones_that_its_template_takes(make):
    """They are rendered elsewhere too, by the reference's protocol."""
    example = Example("s", "t", "A cook.", "A sailor.", (Turn("user", "Where to?"),), "Lisbon.")
    for name, roles in (("no system role, which raises", ["user"]), ("ChatML", ["system", "user"])):
        render = Renderer(prompt_set("brief"), make(KINDS[name].template))
        messages = render.estimator_messages(example, "r")
        assert [message["role"] for message in messages] == roles
        assert prompt_set("brief").estimator_system in messages[0]["content"]
        assert render.chat(messages) == render.estimator(example, "r")


def test_a_generation_stops_at_every_end_that_template_tokenizer_and_model_know(make):
    tokenizer = make(CHATML)
    render = Renderer(prompt_set("brief"), tokenizer)
    end, eos, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>", "<|return|>"])
    for known, stops in (
        (None, {end, eos}),
        (other, {end, eos, other}),
        ([other, end, 7], {end, eos, other}),
    ):
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
        assert render.stop_ids(model)[0] == end and set(render.stop_ids(model)) == stops
    assert (
        7 not in tokenizer.added_tokens_decoder
    )  # a word, which a config from another vocabulary names


def test_the_share_of_unknown_tokens():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({"<unk>": 0, "Aye": 1, "</s>": 2}, unk_token="<unk>")
        ),
        **{"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"},
    )
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.chat_template = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"
    render = Renderer(prompt_set("world"), words)
    assert [render.unknown_share(text) for text in ("Aye Aye", "Aye so Aye no", "so", "")] == [
        0,
        0.5,
        1,
        0,
    ]
    good, bad = "Aye " * 9 + "so", "Aye " * 8 + "so so"
    example = Example("a", "t", good, {"name": good}, (Turn("user", good),), good)
    with pytest.raises(
        DataError, match="agent_character: 18% of its tokens"
    ):  # with its name of a field
        render.require_known(example, "x.json: IDTest")
    example = dataclasses.replace(example, agent_character=good)
    render.require_known(example, "x.json: IDTest", [good])
    sentence = (
        r"^x.json: IDTest, sample_ID 'a': {}: 20% of its tokens are unknown to the tokenizer of "
        r".*; "
        "accepted is 10%"
    )
    for field in ("user_persona", "golden_response"):
        with pytest.raises(DataError, match=sentence.format(f"(agent_)?{field}")):
            render.require_known(dataclasses.replace(example, **{field: bad}), "x.json: IDTest")
    with pytest.raises(DataError, match=sentence.format("response")):
        render.require_known(example, "x.json: IDTest", [good, bad])


def test_prompts_and_responses_of_chatml_are_what_they_always_were(make, tmp_path):
    """Figures stay: a template's generation prompt where it is right, and a response tokenised by
    itself.
    """
    world = load_tokenizer(str(write_tiny_base(tmp_path, seed=0)))
    for prompts, tokenizer, texts in (
        ("brief", make(CHATML), ["Aye.", " so", "\n\nhm ", "\u4f60 \U0001f600", "<|im_end|> x"]),
        (
            "world",
            world,
            [example.golden_response for example in world_corpus(0, train=2, test=2).examples],
        ),
    ):
        render = Renderer(prompt_set(prompts), tokenizer)
        for example in world_corpus(0, train=2, test=2).examples:
            messages = render.estimator_messages(example, None)
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            assert render.estimator(example, None) == text
            assert render.prompt_ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert render.response_ids(text) == [
                *ids,
                tokenizer.convert_tokens_to_ids("<|im_end|>"),
            ]
