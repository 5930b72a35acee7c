"""Character shift: the agent is a character that IDTrain does not have. User and dialogue stay as
they are.

The agent's earlier turns are still the old character's, so that nothing but the character has
moved. The golden response is the old character's too and answers no longer; none is written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.data.corpus import TRAIN_SPLIT, Corpus, read_rows
from coevolve.data.example import Example, character_field
from coevolve.errors import DataError
from coevolve.shifts.build import generator, shift, shifted


@dataclass(frozen=True)
class Character:
    """A character to play, and where it comes from, for the record."""

    character: str | Mapping[str, Any]
    origin: str


def read_characters(path: str | Path, corpus: Corpus) -> list[Character]:
    """The characters, text or objects, of a `.json` list or `.jsonl` file; none is IDTrain's."""
    trained = _trained(corpus)
    seen: dict[str, str] = {}
    characters = []
    for where, value in read_rows(path):
        character = character_field({"agent_character": value}, where)
        key = character_key(character)
        if not character:
            raise DataError(f"{where}: the character is empty. Describe it, or remove the row.")
        if key in trained:
            raise DataError(f"{where}: the character is one of {TRAIN_SPLIT}. Remove it.")
        if key in seen:
            raise DataError(f"{where}: the character is in {seen[key]} too. Remove one of the two.")
        seen[key] = where
        characters.append(Character(character, Path(where).name))
    if not characters:
        raise DataError(f"{path}: has no characters. Give at least one.")
    return characters


def characters_of_splits(corpus: Corpus, splits: Sequence[str]) -> list[Character]:
    """The characters of these splits that IDTrain lacks, each once, in order of appearance."""
    seen = _trained(corpus)
    characters = []
    for example in (example for split in splits for example in corpus.require(split)):
        key = character_key(example.agent_character)
        if key not in seen and example.agent_character:
            seen.add(key)
            characters.append(Character(example.agent_character, example.sample_id))
    if not characters:
        raise DataError(
            f"{corpus.source}: {', '.join(splits)} has no character that {TRAIN_SPLIT} lacks. Name "
            "other splits, or give characters in a file."
        )
    return characters


def unseen_character(
    examples: Sequence[Example],
    pool: Sequence[Character],
    *,
    seed: int,
    tag: str = "unseen_character",
) -> list[Example]:
    """The examples with characters from the pool, never their own, and no golden response."""
    rows = []
    for example in examples:
        own = character_key(example.agent_character)
        others = [character for character in pool if character_key(character.character) != own]
        if not others:
            raise DataError(
                f"sample_ID {example.sample_id!r}: no other character to draw. Give more."
            )
        drawn = generator(seed, "unseen_character", example).choice(others)
        record = {"seed": seed, "character_from": drawn.origin}
        changes: dict[str, Any] = {"agent_character": drawn.character, "golden_response": None}
        rows.append(shifted(example, tag, "unseen_character", record=record, **changes))
    return rows


@shift("unseen_character", "OOD2Test")
def _unseen_character(
    sources: Sequence[Example],
    corpus: Corpus,
    seed: int,
    tag: str,
    characters: str | None = None,
    characters_of: Sequence[str] = ("OOD2Test",),
) -> list[Example]:
    """From a file of characters, or from splits of the corpus."""
    own = read_characters(characters, corpus) if characters else None
    pool = own or characters_of_splits(corpus, characters_of)
    return unseen_character(sources, pool, seed=seed, tag=tag)


def character_key(character: str | Mapping[str, Any]) -> str:
    """Equal for equal characters, whatever the order of an object's fields."""
    return json.dumps(character, sort_keys=True)


def _trained(corpus: Corpus) -> set[str]:
    return {character_key(example.agent_character) for example in corpus.require(TRAIN_SPLIT)}
