"""A model is asked once, in all its ways; what is wrong is found, said, and not done."""

import copy
import functools
import logging

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from coevolve.errors import ArtifactError
from coevolve.scoring import models, selfcheck
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, AdapterRoles, lora_config
from coevolve.scoring.selfcheck import checked
from coevolve.scoring.ways import VERDICT, Ways, cache_name, ways_of
from tests.scoring.architectures import adapted, build, distance, writes_as_plain_passes_do

FASTEST = Ways(split=True, together=True, depth=4, packs=True, generates="in batches")


def passes(model):
    """(rows, columns, mask, tokens in the cache) of each of the decoder's passes during a check."""
    seen = []

    def note(module, args, kwargs):
        ids, mask, cache = (
            kwargs.get(name) for name in ("input_ids", "attention_mask", cache_name(model))
        )
        cached = 0 if cache is None else cache.get_seq_length()
        if mask is None or mask.ndim == 4:
            kind = "none" if mask is None else "segments"
        else:
            kind = "right" if mask[:, [0, cached]].all() else "left"
        seen.append((*ids.shape, kind, cached))

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        checked(model)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("longest", [16, 100])
def test_the_probe_does_all_that_scoring_and_writing_do(monkeypatch, longest):
    monkeypatch.setattr(selfcheck, "CONTEXT_ON_CPU", longest)
    start, longer, shorter = 3 * longest // 8, longest, 13 * longest // 16
    seen = passes(build("llama"))
    plain, rest = seen[:5], seen[5:]
    # Each pair alone, and the first also as a batch of two: what rounding does.
    assert [row[:2] for row in plain] == [
        (1, longer + 2),
        (2, longer + 2),
        (1, longer + 4),
        (1, shorter + 4),
        (1, shorter + 7),
    ]
    assert {mask for _, _, mask, _ in plain} == {"none"}
    assert rest[0] == (4, longer + 3, "right", 0)
    # What both contexts begin with; both on it, padded; their responses side by side on them,
    # padded.
    assert rest[1:4] == [
        (1, start, "none", 0),
        (2, longer - start, "left", start),
        (2, 9, "segments", longer),
    ]
    # Two contexts, the longer one for two rows; then token by token.
    assert rest[4:] == [(2, longer, "left", 0), *((3, 1, "left", longer + k) for k in range(3))]


def test_a_window_is_crossed_and_its_cache_read():
    seen = passes(build("mistral"))
    assert (
        2,
        16,
        "left",
        0,
    ) in seen  # the contexts, which no sliding cache lets stand on something shorter
    assert any(rows > 1 and mask == "left" and cached > 0 for rows, _, mask, cached in seen)


def test_angles_that_depend_on_the_length_are_left_alone():
    assert max(columns for _, columns, _, _ in passes(build("llama, longrope"))) <= 16


class CountsColumns(LlamaForCausalLM):
    """Takes positions and counts for itself."""

    def __init__(self, config):
        super().__init__(config)
        self.model.rotary_emb.__class__ = Columns


class Columns(LlamaRotaryEmbedding):
    def forward(self, x, position_ids):
        return super().forward(x, torch.arange(position_ids.shape[1])[None].expand_as(position_ids))


class SeesNoMask(LlamaForCausalLM):
    """Attends to all that came before, padding or not."""

    def __init__(self, config):
        super().__init__(config)
        self.model.__class__ = Unmasked


class Unmasked(LlamaModel):
    def forward(self, attention_mask=None, **inputs):
        return super().forward(**inputs)


class SharesItsAttention(LlamaForCausalLM):
    """Rows of one pass change one another."""

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.__class__ = Mixed


class Mixed(torch.nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 0.5 * (len(ids) - 1)


class LooksAtItsInput(LlamaForCausalLM):
    """Its head sees the tokens themselves, so that it cannot be run apart."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, input_ids=None, **inputs):
        output = super().forward(input_ids=input_ids, **inputs)
        own = torch.nn.functional.one_hot(input_ids, output.logits.shape[-1])
        output.logits = output.logits + own[:, -output.logits.shape[1] :]
        return output


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (CountsColumns, Ways(split=True, together=True, generates="anew")),
        (SeesNoMask, Ways(split=True, together=True, generates="alone")),
        (LooksAtItsInput, Ways(together=True, generates="in batches")),
        (SharesItsAttention, Ways(split=True, generates="alone")),
    ],
)
def test_what_is_wrong_is_found_said_once_and_not_done(fault, expected, caplog):
    sound = build("llama")
    model = fault(sound.config).eval()
    model.load_state_dict(sound.state_dict())
    with caplog.at_level(logging.WARNING, "coevolve"):
        checked(checked(model))
    assert ways_of(model) == expected
    (record,) = caplog.records
    assert f"is scored {expected.scores} and writes {expected.generates}" in record.message
    assert "nats from plain" in record.message
    assert distance(model) < 1e-4
    assert writes_as_plain_passes_do(model)


def test_a_sound_model_is_not_spoken_of(caplog):
    with caplog.at_level(logging.WARNING, "coevolve"):
        assert ways_of(checked(build("llama"))) == FASTEST
    assert not caplog.records


def test_a_window_that_the_guess_overlooks_is_found_where_the_probe_crosses_it(monkeypatch, caplog):
    monkeypatch.setattr("coevolve.scoring.ways._hidden_window", lambda config, kinds: False)
    with caplog.at_level(logging.WARNING, "coevolve"):
        model = checked(build("gpt_neo"))
    assert "packed: " in caplog.text and not ways_of(model).packs
    assert distance(model) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_16_bits_is_no_fault(dtype):
    assert ways_of(checked(build("llama").to(dtype))) == FASTEST
    assert ways_of(checked(build("gemma4").to(dtype))) == Ways(True, True, 1, False, "in batches")


def test_the_tolerance_is_of_the_coarsest_rounding():
    model = build("llama")
    assert selfcheck._probe(model).tolerance == selfcheck.TOLERANCE[torch.float32]
    model.is_loaded_in_8bit = True
    assert selfcheck._probe(model).tolerance == selfcheck.TOLERANCE[torch.bfloat16]
    # Rows that change one another are no rounding, and the allowance for that ends somewhere.
    mixed = SharesItsAttention(build("llama").config).eval()
    assert selfcheck._probe(mixed).tolerance == selfcheck.MOST * selfcheck.TOLERANCE[torch.float32]


def test_adapters_and_copies_are_not_asked_again(monkeypatch, tmp_path):
    build("llama").save_pretrained(tmp_path)
    asked = []
    find = selfcheck._find
    monkeypatch.setattr(selfcheck, "_find", lambda base: asked.append(base) or find(base))
    base = models.load_model(str(tmp_path))
    whole = copy.deepcopy(base)
    options = {"r": 4, "target_modules": "all-linear"}
    roles = AdapterRoles.create(
        base, dict.fromkeys((CONNECTOR, ESTIMATOR), lora_config(options)), seed=0
    )
    for model in (whole, adapted(base), roles.module(CONNECTOR), roles.module(ESTIMATOR)):
        assert ways_of(checked(model)) == FASTEST
        assert VERDICT not in model.state_dict()
    assert asked == [base]
    assert base.training is False


@pytest.mark.parametrize(
    ("bias", "dtype", "message"),
    [
        (
            0,
            "float32",
            "changes by .* nats with the tokens that follow. If it was trained as a decoder",
        ),
        (0, "float16", "changes by .* nats with the tokens that follow"),
        (65e3, "float16", "in float16 its log-probabilities are not finite. Take another dtype"),
    ],
)
def test_a_model_without_plain_passes_is_refused_by_name(bias, dtype, message, tmp_path):
    model = build("bert")
    with torch.no_grad():
        model.cls.predictions.transform.LayerNorm.weight.mul_(8)  # logits of the size of real ones
        model.cls.predictions.bias.fill_(bias)
        model.cls.predictions.decoder.weight.mul_(1e3 if bias else 1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=message) as caught:
        models.load_model(str(tmp_path), dtype=dtype)
    assert f"{tmp_path} (BertLMHeadModel)" in str(caught.value)
