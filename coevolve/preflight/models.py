"""Base models by configuration and files alone, and adapters on a copy without weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, NoMatchingPeftModuleError, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from coevolve.errors import CoevolveError, RecipeError
from coevolve.recipe import Recipe
from coevolve.recipe.model import RoleModel
from coevolve.scoring.batching import positions_of
from coevolve.scoring.foreign import explained
from coevolve.scoring.models import SAVED, load_tokenizer, resolve_base, weight_files
from coevolve.scoring.roles import existing_config, lora_config
from coevolve.worlds.language import vocabulary
from coevolve.worlds.tiny import tiny_config, tiny_tokenizer


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base model before its weights are loaded."""

    source: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def positions(self) -> int:
        """How many tokens a sequence may have."""
        return positions_of(self.config)


def read_base(recipe: Recipe, source: str) -> BaseFacts:
    """Configuration and tokenizer of a base model, once its weights look whole; ArtifactError."""
    if source == "tiny":
        shape = recipe.model.tiny
        tokenizer = tiny_tokenizer(vocabulary())
        size = {"hidden": shape.hidden_size, "layers": shape.layers, "heads": shape.heads}
        return BaseFacts(source, tiny_config(tokenizer, **size), tokenizer)
    path, trust = resolve_base(source, recipe.model.cache_dir), recipe.model.trust_remote_code
    with explained(f"model.base: the model {source!r} cannot be loaded", SAVED):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    saved = load_tokenizer(path, trust_remote_code=trust)
    if Path(path).is_dir():
        weight_files(Path(path))
    return BaseFacts(source, config, saved)


def empty_model(recipe: Recipe, base: BaseFacts, **options: Any) -> PreTrainedModel:
    """The base model on the meta device, every module and no weight; ArtifactError. `options` of
    transformers go before what the recipe says.
    """
    what = f"model.base: the model {base.source!r} cannot be built"
    with explained(what, "Give a causal language model"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            base.config,
            trust_remote_code=recipe.model.trust_remote_code,
            **{"attn_implementation": recipe.model.attention, **options},
        )


def adapter_config(own: RoleModel) -> LoraConfig:
    """What a role with an adapter begins with: a new one, or one that there is."""
    if own.adapter is not None:
        return existing_config(Path(own.adapter))
    assert own.lora is not None  # a recipe fills it in
    return lora_config(own.lora.model_dump())


def look_at_adapters(recipe: Recipe, bases: Mapping[str, BaseFacts]) -> Iterator[CoevolveError]:
    """Put each role's adapter on an empty copy of its base model."""
    seen = []
    for role in ("connector", "estimator"):
        own = getattr(recipe.model, role)
        alike = (own.base, own.tuning, own.lora, own.adapter)
        if alike in seen:
            continue
        seen.append(alike)
        try:
            model = empty_model(recipe, bases[own.base])
            if own.tuning == "lora":
                field = "model.lora" if own.lora == recipe.model.lora else f"model.{role}.lora"
                if own.adapter is not None:
                    field = f"model.{role}.adapter"
                _look_at_adapter(model, adapter_config(own), field)
        except CoevolveError as problem:
            yield problem


def _look_at_adapter(model: PreTrainedModel, config: LoraConfig, field: str) -> None:
    """Raise RecipeError unless every name in an adapter's configuration means something here."""
    layers: Any = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    chosen = config.layers_to_transform
    for layer in [chosen] if isinstance(chosen, int) else chosen or []:
        if layer < 0 or (layers is not None and layer >= layers):
            there = f"the model has layers 0 to {layers - 1}"
            raise RecipeError(f"{field}.layers_to_transform: found {layer}; {there}. Leave it out.")
    modules = dict(model.named_modules())
    kinds = {name for name, part in modules.items() if isinstance(part, torch.nn.Linear)}
    linear = {name.rpartition(".")[2] for name in kinds}
    shared = {model.get_output_embeddings(), model.get_input_embeddings()}
    places = {part: name for name, part in modules.items() if part in shared}
    it_has = f"it has {', '.join(sorted(linear - set(places.values())))}"
    try:
        probe: Any = get_peft_model(model, config, adapter_name="probe").base_model
        found: list[str] = probe.targeted_module_names
    except NoMatchingPeftModuleError:
        named = config.target_modules
        several = [named] if isinstance(named, str) else sorted(named or [])
        listed = ", ".join(map(repr, several))
        why = f"found {listed}, none of which is in the model"
        raise RecipeError(f"{field}.target_modules: {why}; {it_has}.") from None
    except Exception as error:  # PEFT, torch and re each raise their own kinds
        words, advice = " ".join(str(error).split()), f"Of linear layers {it_has}"
        if "dropout" in words:
            advice = "Set lora_dropout to 0, or leave the experts out"
        why = f"PEFT cannot put such an adapter on the model ({words})"
        raise RecipeError(f"{field}: {why}. {advice}.") from None
    if not isinstance(config.target_modules, str):
        for name in sorted(config.target_modules or ()):
            if not any(f".{module}".endswith(f".{name}") for module in found):
                why = f"{name!r} is not in the model"
                raise RecipeError(f"{field}.target_modules: {why}; {it_has}.")
    for name in set(found) & set(places.values()):
        why = f"{name} is the model's embedding or head, where both roles need the base"
        raise RecipeError(f"{field}.target_modules: {why}. Leave it out; {it_has}.")
