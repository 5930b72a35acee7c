"""What scoring reaches inside transformers and torch."""

import functools
import logging
import sys

import pytest
import torch
from library_runs import gone
from transformers import (
    AutoModelForCausalLM,
    DynamicLayer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    cache_utils,
)

from coevolve.errors import LibraryError
from coevolve.libraries import hooks
from coevolve.libraries.torch import renew_parameters, with_part, without_hooks
from coevolve.libraries.transformers import MODELS, attention_of, holds_adapter
from coevolve.scoring.backbone import _Reading
from coevolve.scoring.generate import _RoomyLayer
from coevolve.scoring.selfcheck import checked

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


@pytest.mark.parametrize("hook", MODELS, ids=str)
def test_a_model_is_not_scored_where_one_is_gone(hook):
    with (
        gone(hook),
        pytest.raises(LibraryError, match=f"{hook.name}, by which {hook.purpose}, is missing"),
    ):
        checked(tiny())


@pytest.mark.parametrize("name", ["keys", "values", "device", "is_initialized"])
def test_a_layer_that_keeps_its_keys_elsewhere_is_named(name, monkeypatch):
    theirs = DynamicLayer.update

    @functools.wraps(theirs)
    def update(self, *args, **kwargs):
        result = theirs(self, *args, **kwargs)
        vars(self)[f"its_{name}"] = vars(self).pop(name)
        return result

    monkeypatch.setattr(DynamicLayer, "update", update)
    with pytest.raises(LibraryError, match=rf"DynamicLayer\.{name}, by which"):
        checked(tiny())


def test_a_changed_parameter_is_named(monkeypatch):
    monkeypatch.setattr(DynamicLayer, "update", lambda self, keys, values: None)
    with pytest.raises(
        LibraryError,
        match=r"update, .*, takes \(keys, values\), where \(key_states, value_states\) is expected",
    ):
        checked(tiny())


def test_transformers_calls_our_layers_and_fills_theirs(monkeypatch):
    called = set()
    for kind in (_Reading, _RoomyLayer):
        ours = kind.update

        def update(self, *args, kind=kind, ours=ours, **kwargs):
            assert sys._getframe(1).f_globals["__name__"].startswith("transformers.")
            called.add(kind)
            return ours(self, *args, **kwargs)

        monkeypatch.setattr(kind, "update", update)
    checked(tiny())  # scores on shared prefixes, and writes
    assert called == {_Reading, _RoomyLayer}
    sliding = MistralConfig(**SHAPE, sliding_window=4)
    (layer,) = cache_utils.DynamicCache(config=sliding).layers
    assert type(layer) is cache_utils.DynamicSlidingWindowLayer
    checked(MistralForCausalLM(sliding).eval())


def test_what_a_model_is_made_with_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    tiny().save_pretrained(tmp_path / "base")
    for attention in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", attn_implementation=attention
        )
        assert attention_of(model.config) == attention and not holds_adapter(model)
    get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    assert holds_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"))


def test_parts_hooks_and_parameters_of_a_module():
    """What torch calls is what was taken off or put in its place."""
    model, called = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), []
    model.register_forward_pre_hook(lambda *_: called.append("before"))
    model.register_forward_hook(lambda *_: called.append("behind"))
    model.register_state_dict_pre_hook(lambda *_: called.append("weights"))
    ids, old = torch.ones(1, 2), [*model.parameters()]

    def use():
        called.clear()
        model(ids)
        model.state_dict()
        return set(called)

    assert use() == {"before", "behind", "weights"}
    with without_hooks([model]):
        assert use() == set()
    with without_hooks([model], before=True):
        assert use() == {"behind", "weights"}
    assert use() == {"before", "behind", "weights"}

    class Twice(torch.nn.Module):
        def forward(self, x):
            return x * 2

    view = with_part(model, "1", Twice())
    assert torch.equal(view.forward(ids), model[0](ids) * 2) and not isinstance(model[1], Twice)
    renew_parameters(model, lambda parameter: parameter.detach() + 1)
    for before, now in zip(old, model.parameters(), strict=True):
        assert now is not before and torch.equal(now, before + 1)


def test_an_untested_version_is_a_warning_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(hooks, "TESTED", {**hooks.TESTED, "torch": ("1.0.0", "1.1.0")})
    hooks.warn_of_untested.cache_clear()
    with caplog.at_level(logging.WARNING):
        checked(tiny())
        checked(tiny())
    (line,) = [record.getMessage() for record in caplog.records if "tested" in record.getMessage()]
    assert line.startswith("torch 2") and line.endswith("which knows 1.0.0 to 1.1.0.")
    hooks.warn_of_untested.cache_clear()
