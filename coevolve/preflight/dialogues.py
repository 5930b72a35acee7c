"""A run's examples: read, measured against the room that the models have, and divided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coevolve.data.corpus import TRAIN_SPLIT, Corpus, read_corpus
from coevolve.data.example import Example
from coevolve.data.hub import load_hub
from coevolve.errors import DataError, TooLongError
from coevolve.prompts import Renderer, prompt_set
from coevolve.prompts.play import PlayRenderer, play_prompt
from coevolve.recipe import Recipe
from coevolve.recipe.rpm import RpmRecipe
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role
from coevolve.seeds import derive_seed
from coevolve.worlds.corpus import world_corpus

Renderers = Mapping[Role, Renderer]


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
class Needs:
    """Tokens of the connector's prompt, the estimator's without features, and the response."""

    connector: int
    estimator: int
    response: int

    @classmethod
    def of(cls, example: Example, renderers: Renderers) -> "Needs":
        """Counted with each role's own tokenizer."""
        connector, estimator = renderers[CONNECTOR], renderers[ESTIMATOR]
        golden = example.golden_response
        return cls(
            len(connector.prompt_ids(connector.connector(example))),
            len(estimator.prompt_ids(estimator.estimator(example, ""))),
            len(estimator.response_ids(golden)) if golden else 0,
        )

    def with_reasoning(self, tokens: int) -> int:
        """Of the longest sequence that the example leads to, with a reasoning of so many tokens."""
        return tokens + max(self.connector, self.estimator + self.response)


@dataclass(frozen=True)
class LeftOut:
    """What was left out of a split, and why, for the record."""

    split: str
    why: str
    of: int
    sample_ids: Sequence[str]


@dataclass
class Sifted:
    """What became of the splits while they were measured and limited."""

    splits: dict[str, list[Example]] = field(default_factory=dict)
    needs: dict[str, Needs] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def load_corpus(recipe: Recipe) -> Corpus:
    """The recipe's data, every row of it checked."""
    if recipe.data.world is not None:
        world, seed = recipe.data.world, world_seed(recipe)
        train, test, draw = world.train, world.test, world.draw
        return world_corpus(seed, train=train, test=test, draw=draw, **world.kind)
    if recipe.data.hub is not None:
        return load_hub(recipe.data.hub)
    assert recipe.data.path is not None  # a recipe names one of the three
    return read_corpus(recipe.data.path)


def make_renderer(recipe: Recipe, tokenizer: Any, date: str | None = None) -> Renderer:
    """The recipe's prompts with a tokenizer."""
    prompts = prompt_set(recipe.prompts)
    if not isinstance(recipe, RpmRecipe):
        return Renderer(prompts, tokenizer, date=date)
    play = play_prompt(recipe.prompt, thinking=recipe.rpm.thinking)
    return PlayRenderer(play, prompts, tokenizer, date=date)


def world_seed(recipe: Recipe) -> int:
    """The seed of the recipe's synthetic world."""
    world = recipe.data.world
    return recipe.seed if world is None or world.seed is None else world.seed


def sift(recipe: Recipe, corpus: Corpus, renderers: Renderers) -> Sifted:
    """The examples that fit and are asked for. TooLongError names the longest of those that do not
    fit, if `data.over_long` is `error`; DataError: a text is unknown to a tokenizer, or none fits.
    """
    sifted, room, limit = Sifted(), recipe.model.max_reasoning_tokens, recipe.model.max_length
    longer: dict[str, dict[str, int]] = {}
    for split, examples in corpus.splits.items():
        needs = {example.sample_id: Needs.of(example, renderers) for example in examples}
        sifted.needs.update(needs)
        for example in examples:
            for renderer in dict.fromkeys(renderers.values()):
                renderer.require_known(example, f"{corpus.source}: {split}")
        sizes = {name: need.with_reasoning(room) for name, need in needs.items()}
        longer[split] = {name: size for name, size in sizes.items() if size > limit}
        kept = [example for example in examples if example.sample_id not in longer[split]]
        if longer[split]:
            sifted.left_out.append(LeftOut(split, "do not fit", len(examples), list(longer[split])))
        sifted.splits[split] = limited(recipe, split, kept)
    if sifted.left_out and recipe.data.over_long == "error":
        by_split = [(split, max(of, key=of.__getitem__)) for split, of in longer.items() if of]
        split, worst = max(by_split, key=lambda found: longer[found[0]][found[1]])
        size = longer[split][worst]
        counts = ", ".join(f"{len(x.sample_ids)} of {x.of} in {x.split}" for x in sifted.left_out)
        raise TooLongError(
            f"{corpus.source}: {split}, sample_ID {worst!r}: needs {size} tokens with its "
            f"reasoning and response; model.max_length is {limit}, which is too short for "
            f"{counts}. Raise it, or set data.over_long=drop."
        )
    for split, left in sifted.splits.items():
        if not left:
            raise DataError(
                f"{corpus.source}: {split}: none of its {len(corpus.splits[split])} examples fits "
                f"model.max_length={limit}. Raise it, or take the split out of the data."
            )
    return sifted


def divide(recipe: Recipe, corpus: Corpus, sifted: Sifted) -> Dialogues:
    """Training, validation (from IDTrain, by seed) and test examples; DataError if too few."""
    tests = {name: rows for name, rows in sifted.splits.items() if name != TRAIN_SPLIT}
    train = sifted.splits[TRAIN_SPLIT]
    if len(train) <= recipe.data.validation:
        raise DataError(
            f"{corpus.source}: {TRAIN_SPLIT} has {len(train)} usable examples, and data.validation "
            f"takes {recipe.data.validation}; lower it or give more data."
        )
    order = np.random.default_rng(derive_seed(recipe.seed, "validation")).permutation(len(train))
    held_out = set(order[: recipe.data.validation].tolist())
    return Dialogues(
        train=[example for index, example in enumerate(train) if index not in held_out],
        validation=[example for index, example in enumerate(train) if index in held_out],
        tests=tests,
        corpus=corpus,
    )


def limited(recipe: Recipe, split: str, examples: list[Example]) -> list[Example]:
    """Those of a split that a recipe asks for: its part, and of that the first by its seed."""
    if recipe.data.part is not None and split == TRAIN_SPLIT:
        part, parts = map(int, recipe.data.part.split("/"))
        examples = [x for x in examples if derive_seed(0, "part", x.sample_id) % parts == part - 1]
    limit = recipe.data.limit.get(split)
    if limit is None or limit >= len(examples):
        return examples
    rng = np.random.default_rng(derive_seed(recipe.seed, "limit", split))
    chosen = set(rng.permutation(len(examples))[:limit].tolist())
    return [example for index, example in enumerate(examples) if index in chosen]
