"""From a recipe to what a run needs: data, base model, roles, renderer, traces."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coevolve.data.corpus import TRAIN_SPLIT, Corpus, read_corpus
from coevolve.data.example import Example
from coevolve.data.hub import load_hub
from coevolve.errors import DataError, TooLongError
from coevolve.prompts import Renderer, prompt_set
from coevolve.recipe import Recipe
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.models import base_fingerprint, choose_device, load_model, load_tokenizer, resolve_base
from coevolve.scoring.roles import ROLES, AdapterRoles, Roles, SeparateRoles, lora_config
from coevolve.training.record import Record
from coevolve.training.seeds import derive_seed
from coevolve.worlds.corpus import world_corpus

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


@dataclass(frozen=True)
class Base:
    """The base model that both roles start from."""

    source: str
    path: str
    fingerprint: str


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


def split_dialogues(recipe: Recipe, corpus: Corpus, renderer: Renderer, record: Record, *, log: Log) -> Dialogues:
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
    splits = {name: _fitting(recipe, name, rows, renderer, record, log) for name, rows in corpus.splits.items()}
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


def prepare_base(recipe: Recipe, folder: Path) -> Base:
    """Make the base model available: written (tiny), converted (packaged), or wherever it is."""
    if recipe.model.base == "tiny":
        from coevolve.worlds.tiny import write_tiny_base

        tiny = recipe.model.tiny
        path = folder / "base"
        if not path.exists():
            temporary = folder / ".base.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            write_tiny_base(temporary, recipe.seed, hidden=tiny.hidden_size, layers=tiny.layers, heads=tiny.heads)
            temporary.rename(path)
        return Base("tiny", str(path), base_fingerprint(str(path)))
    path = resolve_base(recipe.model.base, recipe.model.cache_dir)
    return Base(recipe.model.base, path, base_fingerprint(path))


def build_renderer(recipe: Recipe, base: Base) -> Renderer:
    """The recipe's prompts with the base model's tokenizer."""
    tokenizer = load_tokenizer(base.path, trust_remote_code=recipe.model.trust_remote_code)
    return Renderer(prompt_set(recipe.prompts), tokenizer)


def build_estimator(
    recipe: Recipe, base: Base, renderer: Renderer, device: torch.device | None = None
) -> ProbabilityEstimator:
    """Both roles in memory, untrained, behind the interface that the exported estimator has.

    Args:
        device: this process's own, where there are several; otherwise the recipe's.
    """
    model = load_model(
        base.path,
        dtype=recipe.model.dtype,
        device=choose_device(recipe.model.device) if device is None else device,
        attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    roles: Roles
    if recipe.model.tuning == "lora":
        options = recipe.model.lora.model_dump()
        config = {role: lora_config(options) for role in ROLES}
        roles = AdapterRoles.create(model, config, seed=derive_seed(recipe.seed, "adapters"))
    else:
        judged_by_base = recipe.estimator_rl is not None and recipe.estimator_rl.rewards.asks_base
        roles = SeparateRoles.create(model, keep_base=judged_by_base)
    return ProbabilityEstimator(
        roles,
        renderer,
        max_new_tokens=recipe.model.max_reasoning_tokens,
        token_budget=recipe.evaluation.token_budget,
    )


def _fitting(
    recipe: Recipe, split: str, examples: Sequence[Example], renderer: Renderer, record: Record, log: Log
) -> list[Example]:
    """The examples that fit `model.max_length` with their reasoning; the others are an error, or counted."""
    fitting, dropped = [], []
    for example in examples:
        needed = tokens_needed(example, renderer, recipe.model.max_reasoning_tokens)
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


def tokens_needed(example: Example, renderer: Renderer, reasoning_tokens: int) -> int:
    """The longest sequence that the example leads to, in tokens: context, reasoning and response."""
    connector = len(renderer.prompt_ids(renderer.connector(example))) + reasoning_tokens
    response = len(renderer.response_ids(example.golden_response)) if example.golden_response else 0
    bare = len(renderer.prompt_ids(renderer.estimator(example, ""))) + reasoning_tokens + response
    return max(connector, bare)


def _limited(recipe: Recipe, split: str, examples: Sequence[Example], record: Record) -> list[Example]:
    limit = recipe.data.limit.get(split)
    if limit is None or limit >= len(examples):
        return list(examples)
    order = np.random.default_rng(derive_seed(recipe.seed, "limit", split)).permutation(len(examples))
    record.say(f"{split}: {limit} of {len(examples)} examples, as data.limit says")
    return [examples[index] for index in sorted(order[:limit].tolist())]
