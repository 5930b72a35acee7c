"""From a recipe to what a run needs: data, base model, roles, renderer, traces."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from coevolve.data.corpus import TRAIN_SPLIT, Corpus, read_corpus
from coevolve.data.example import Example
from coevolve.data.hub import load_hub
from coevolve.errors import DataError, TooLongError
from coevolve.prompts import Renderer, prompt_set
from coevolve.recipe import Recipe
from coevolve.recipe.model import RoleModel
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.models import base_fingerprint, choose_device, load_model, load_tokenizer, resolve_base
from coevolve.scoring.origins import Base, Origin, adapter_fingerprint, check_adapter, read_weights
from coevolve.scoring.roles import (
    CONNECTOR,
    ESTIMATOR,
    ROLES,
    AdapterRoles,
    Role,
    Roles,
    SeparateRoles,
    WholeRole,
    existing_config,
    lora_config,
)
from coevolve.training.record.record import Record
from coevolve.training.seeds import derive_seed
from coevolve.worlds.corpus import world_corpus

logger = logging.getLogger(__name__)

Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Dialogues:
    """The examples of a run, each in one place only."""

    train: Sequence[Example]
    validation: Sequence[Example]
    tests: Mapping[str, Sequence[Example]]
    corpus: Corpus

    @property
    def test_examples(self) -> list[Example]:
        """Of all test splits, limited as the recipe says, in order."""
        return [example for examples in self.tests.values() for example in examples]

    @property
    def corpus_test_examples(self) -> list[Example]:
        """Of all test splits, as the data has them."""
        return [example for split in self.tests for example in self.corpus.splits[split]]

    @property
    def fingerprint(self) -> str:
        """Of the corpus as it was read, before any limit."""
        return self.corpus.fingerprint


Origins = Mapping[Role, Origin]
Renderers = Mapping[Role, Renderer]


def load_corpus(recipe: Recipe) -> Corpus:
    """The recipe's data, every row of it checked."""
    if recipe.data.world is not None:
        world = recipe.data.world
        return world_corpus(world_seed(recipe), train=world.train, test=world.test, strength=world.strength)
    if recipe.data.hub is not None:
        return load_hub(recipe.data.hub)
    return read_corpus(recipe.data.path)


def world_seed(recipe: Recipe) -> int:
    """The seed of the recipe's synthetic world."""
    seed = recipe.data.world.seed
    return recipe.seed if seed is None else seed


def split_dialogues(recipe: Recipe, corpus: Corpus, renderers: Renderers, record: Record, *, log: Log) -> Dialogues:
    """Training, validation and test examples: limited, checked for length, the validation part taken from IDTrain.

    Args:
        log: where the figures go; a run that is resumed has them in its record already.

    Raises:
        DataError: IDTrain or IDTest is missing, or too small for the validation part.
        TooLongError: an example does not fit `model.max_length`, and `data.over_long` is `error`.
    """
    for split in (TRAIN_SPLIT, "IDTest"):
        corpus.require(split)
    for name in recipe.data.limit:
        corpus.require(name)
    splits = {name: _fitting(recipe, name, rows, renderers, record, log) for name, rows in corpus.splits.items()}
    splits = {name: _limited(recipe, name, examples, record) for name, examples in splits.items()}
    train = splits.pop(TRAIN_SPLIT)
    if len(train) <= recipe.data.validation:
        raise DataError(
            f"{corpus.source}: {TRAIN_SPLIT} has {len(train)} usable examples, and data.validation takes "
            f"{recipe.data.validation}; lower it or give more data."
        )
    order = np.random.default_rng(derive_seed(recipe.seed, "validation")).permutation(len(train))
    held_out = set(order[: recipe.data.validation].tolist())
    return Dialogues(
        train=[example for index, example in enumerate(train) if index not in held_out],
        validation=[example for index, example in enumerate(train) if index in held_out],
        tests=splits,
        corpus=corpus,
    )


def prepare_origins(recipe: Recipe, folder: Path, *, say: Callable[[str], None] = logger.warning) -> Origins:
    """Make available what both roles start from: base models and adapters, each checked against the other.

    Args:
        folder: the run's, where a tiny base model is written.
        say: told what a person should know of an adapter.

    Raises:
        ArtifactError: a base model is not to be had, or an adapter is of another one.
    """
    settings = role_settings(recipe)
    bases = {source: _prepare_base(recipe, source, folder) for source in {own.base for own in settings.values()}}
    origins = {}
    for role, own in settings.items():
        origin = Origin(bases[own.base], recipe.model.quantization if own.tuning == "lora" else None)
        if own.adapter is not None:
            path = Path(own.adapter)
            for note in check_adapter(path, origin.base, origin.quantization):
                say(note)
            origin = replace(origin, adapter=own.adapter, adapter_fingerprint=adapter_fingerprint(path))
        origins[role] = origin
    return origins


def role_settings(recipe: Recipe) -> dict[Role, RoleModel]:
    """The model settings of each role."""
    return {CONNECTOR: recipe.model.connector, ESTIMATOR: recipe.model.estimator}


def _prepare_base(recipe: Recipe, source: str, folder: Path) -> Base:
    """Written (tiny), converted (packaged), or wherever it is."""
    if source == "tiny":
        from coevolve.worlds.tiny import write_tiny_base

        tiny = recipe.model.tiny
        path = folder / "base"
        if not path.exists():
            temporary = folder / ".base.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            write_tiny_base(temporary, recipe.seed, hidden=tiny.hidden_size, layers=tiny.layers, heads=tiny.heads)
            temporary.rename(path)
        return Base("tiny", str(path), base_fingerprint(str(path)))
    path = resolve_base(source, recipe.model.cache_dir)
    return Base(source, path, base_fingerprint(path))


def build_renderers(recipe: Recipe, origins: Origins) -> Renderers:
    """The recipe's prompts with the tokenizer of each role's base model; one for both where that is the same."""
    prompts, trust = prompt_set(recipe.prompts), recipe.model.trust_remote_code
    by_path = {
        path: Renderer(prompts, load_tokenizer(path, trust_remote_code=trust))
        for path in {origin.base.path for origin in origins.values()}
    }
    return {role: by_path[origin.base.path] for role, origin in origins.items()}


def build_estimator(
    recipe: Recipe, origins: Origins, renderers: Renderers, device: torch.device | None = None
) -> ProbabilityEstimator:
    """Both roles in memory as they start, behind the interface that the exported estimator has.

    Args:
        device: this process's own, where there are several; otherwise the recipe's.
    """
    device = choose_device(recipe.model.device) if device is None else device
    return ProbabilityEstimator(
        build_roles(recipe, origins, device),
        renderers[ESTIMATOR],
        connector_renderer=renderers[CONNECTOR],
        max_new_tokens=recipe.model.max_reasoning_tokens,
        token_budget=recipe.evaluation.token_budget,
    )


def build_roles(recipe: Recipe, origins: Origins, device: torch.device) -> Roles:
    """Two adapters on one base where both roles have one and the base is the same; otherwise a model for each."""

    def load(role: Role) -> PreTrainedModel:
        return load_model(
            origins[role].base.path,
            dtype=recipe.model.dtype,
            device=device,
            attention=recipe.model.attention,
            quantization=origins[role].quantization,
            trust_remote_code=recipe.model.trust_remote_code,
        )

    configs = {
        role: lora_config(own.lora.model_dump()) if own.adapter is None else existing_config(Path(own.adapter))
        for role, own in role_settings(recipe).items()
        if own.tuning == "lora"
    }
    seed = derive_seed(recipe.seed, "adapters")
    same_base = origins[CONNECTOR].base == origins[ESTIMATOR].base
    judged_by_base = recipe.estimator_rl is not None and recipe.estimator_rl.rewards.asks_base
    roles: Roles
    if same_base and len(configs) == len(ROLES):
        roles = AdapterRoles.create(load(ESTIMATOR), configs, seed=seed)
    elif same_base and not configs:
        roles = SeparateRoles.create(load(ESTIMATOR), keep_base=judged_by_base)
    else:
        parts = {role: AdapterRoles.create(load(role), {role: configs[role]}, seed=seed) for role in configs}
        models = {role: parts[role].model if role in parts else load(role) for role in ROLES}
        base = parts.get(CONNECTOR) if same_base else None
        if judged_by_base and base is None and ESTIMATOR not in parts:
            base = WholeRole(None, load(ESTIMATOR).requires_grad_(False))
        roles = SeparateRoles(models, base)
    for role, origin in origins.items():
        if origin.adapter is not None:
            roles.load_weights(role, read_weights(Path(origin.adapter)))
    return roles


def _fitting(
    recipe: Recipe, split: str, examples: Sequence[Example], renderers: Renderers, record: Record, log: Log
) -> list[Example]:
    """The examples that fit `model.max_length` with their reasoning; the others are an error, or counted."""
    fitting, dropped = [], []
    for example in examples:
        needed = tokens_needed(example, renderers, recipe.model.max_reasoning_tokens)
        if needed <= recipe.model.max_length:
            fitting.append(example)
        elif recipe.data.over_long == "drop":
            dropped.append(example.sample_id)
        else:
            raise TooLongError(
                f"{split}, sample_ID {example.sample_id!r}: needs {needed} tokens with its reasoning and response; "
                f"model.max_length is {recipe.model.max_length}. Raise it, or set data.over_long=drop."
            )
    if dropped:
        record.say(
            f"{split}: dropped {len(dropped)} of {len(examples)} examples that do not fit (first {dropped[0]!r})"
        )
        log({"data/dropped_too_long": len(dropped), "data/split": split, "data/dropped": dropped})
    return fitting


def tokens_needed(example: Example, renderers: Renderers, reasoning_tokens: int) -> int:
    """The longest sequence that the example leads to, in tokens: context, reasoning and response."""
    render = renderers[CONNECTOR]
    connector = len(render.prompt_ids(render.connector(example))) + reasoning_tokens
    render = renderers[ESTIMATOR]
    response = len(render.response_ids(example.golden_response)) if example.golden_response else 0
    bare = len(render.prompt_ids(render.estimator(example, ""))) + reasoning_tokens + response
    return max(connector, bare)


def _limited(recipe: Recipe, split: str, examples: Sequence[Example], record: Record) -> list[Example]:
    limit = recipe.data.limit.get(split)
    if limit is None or limit >= len(examples):
        return list(examples)
    order = np.random.default_rng(derive_seed(recipe.seed, "limit", split)).permutation(len(examples))
    record.say(f"{split}: {limit} of {len(examples)} examples, as data.limit says")
    return [examples[index] for index in sorted(order[:limit].tolist())]
