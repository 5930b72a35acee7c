"""A corpus from Synthetic-Persona-Chat: two people chat, each with a persona; the second one is
taken as the agent.

Source: Jandaghi et al., *Faithful Persona-based Conversational Dataset Generation with Large
    Language Models*, 2023
(arXiv 2312.10007); the files are those of `google/Synthetic-Persona-Chat`.

The dialogue shifts follow RPGBench in kind: longer contexts (`turn_composition`), and the
in-distribution test contexts with the words of every turn shuffled (`word_composition`). There is
no user or character shift in this data.
"""

import csv
import io
import logging
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example, Turn
from coevolve.errors import DataError
from coevolve.files import read_text

USER_PERSONAS = "user 1 personas"
AGENT_PERSONAS = "user 2 personas"
CONVERSATION = "Best Generated Conversation"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """One row of the CSV: the facts about User 1, who speaks first, and about User 2; what was
    said, the two in turn, up to the first line that does not fit; and why it ends there, if it
    does.
    """

    user_personas: tuple[str, ...]
    agent_personas: tuple[str, ...]
    utterances: tuple[str, ...]
    problem: str | None


def persona_chat_corpus(
    folder: str | Path,
    *,
    train_file: Literal["train", "valid"] = "train",
    train_size: int | None = None,
    test_size: int | None = None,
    turns: int = 4,
    long_turns: int = 8,
    seed: int = 0,
) -> Corpus:
    """Build IDTrain, IDTest and OOD3Test from the CSV files in `folder` or its sub-folder `data`.

    Conversations that cannot be used (too few turns, speakers who do not take turns, no persona)
    are left out, and a warning is logged that counts them by reason.

    Args:
        train_file: which file IDTrain is made of; the validation file is much the smaller.
        train_size: take the first so many usable conversations; None takes all.
        test_size: likewise, for IDTest and for each of the two subsets of OOD3Test.
        turns: user turns in a context; the response is the agent's answer to the last one.
        long_turns: user turns in the contexts of `turn_composition`.
    """
    train = _find_csv(Path(folder), train_file)
    test = _find_csv(Path(folder), "test")
    trained_on, tested_on = read_conversations(train), read_conversations(test)
    id_train = _examples(trained_on, train, "IDTrain", turns, train_size)
    id_test = _examples(tested_on, test, "IDTest", turns, test_size)
    longer = _examples(tested_on, test, "turn_composition", long_turns, test_size)
    shuffled = [_shuffle_words(example, index, seed) for index, example in enumerate(id_test)]
    splits = {"IDTrain": (*id_train,), "IDTest": (*id_test,), "OOD3Test": (*longer, *shuffled)}
    return Corpus(splits, str(folder))


def read_conversations(path: str | Path) -> list[Conversation]:
    """The rows of one CSV file."""
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    conversations = []
    try:
        columns = list(reader.fieldnames or [])
        for name in (USER_PERSONAS, AGENT_PERSONAS, CONVERSATION):
            if name not in columns:
                there = ", ".join(map(repr, columns)) or "none"
                raise DataError(f"{path}:1: column {name!r} is missing; the columns are {there}.")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}:{reader.line_num}: the row that ends here has too "
                    f"{'many' if None in row else 'few'} fields; accepted are {len(columns)}. "
                    "Download the file again."
                )
            personas = _lines(row[USER_PERSONAS]), _lines(row[AGENT_PERSONAS])
            conversations.append(Conversation(*personas, *_parse_conversation(row[CONVERSATION])))
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.reader.line_num}: not CSV ({error}). Download it again."
        ) from None
    return conversations


def _find_csv(folder: Path, name: str) -> Path:
    file_name = f"Synthetic-Persona-Chat_{name}.csv"
    for candidate in (folder / file_name, folder / "data" / file_name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: holds no {file_name}, nor data/{file_name}. Put the files there.")


def _parse_conversation(text: str) -> tuple[tuple[str, ...], str | None]:
    utterances: list[str] = []
    for line in _lines(text):
        match = re.fullmatch(r"User ([12]):(.*)", line)
        if match is None:
            return tuple(utterances), "a line without 'User 1:' or 'User 2:'"
        if int(match[1]) != len(utterances) % 2 + 1:
            return tuple(utterances), "speakers not in turn from User 1"
        if not match[2].strip():
            return tuple(utterances), "an empty turn"
        utterances.append(match[2].strip())
    return tuple(utterances), None


def _lines(text: str) -> tuple[str, ...]:
    # Not splitlines(): it also splits at characters such as U+2028, which may stand inside a turn.
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def _examples(
    conversations: Sequence[Conversation], path: Path, subset: str, turns: int, size: int | None
) -> list[Example]:
    """The first `size` usable conversations (None: all), up to the agent's answer `turns`."""
    if turns < 1 or (size is not None and size < 1):
        raise DataError(f"{subset}: {size} examples of {turns} user turns; accepted is 1 or more.")
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for conversation in conversations:
        if len(examples) == size:
            break
        problem = _why_unusable(conversation, turns)
        if problem is None:
            examples.append(_example(conversation, f"{subset}-{len(examples):05d}", subset, turns))
        else:
            left_out[problem] += 1
    if left_out:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.most_common())
        number, of = left_out.total(), len(examples) + left_out.total()
        told = "%s: %d of %d conversations left out of %s: %s"
        logger.warning(told, path, number, of, subset, reasons)
    if len(examples) < (size or 1):
        raise DataError(
            f"{path}: has {len(examples)} usable conversations for {subset} ({turns} user turns "
            f"each), asked for were {size or 'all, at least 1'}. Ask for fewer examples or fewer "
            "turns."
        )
    return examples


def _why_unusable(conversation: Conversation, turns: int) -> str | None:
    if len(conversation.utterances) < 2 * turns:
        return conversation.problem or f"fewer than {turns} turns of each speaker"
    if not conversation.user_personas or not conversation.agent_personas:
        return "no persona"
    return None


def _example(conversation: Conversation, sample_id: str, subset: str, turns: int) -> Example:
    *context, response = conversation.utterances[: 2 * turns]
    return Example(
        sample_id=sample_id,
        subset=subset,
        user_persona="\n".join(conversation.user_personas),
        agent_character={"persona": list(conversation.agent_personas)},
        dialogue=tuple(
            Turn("agent" if index % 2 else "user", text) for index, text in enumerate(context)
        ),
        golden_response=response,
    )


def _shuffle_words(example: Example, index: int, seed: int) -> Example:
    # Each example's own generator: what happens to it does not depend on how many others there are.
    generator = random.Random(f"{seed}:{example.sample_id}")
    dialogue = []
    for turn in example.dialogue:
        words = turn.text.split()
        generator.shuffle(words)
        dialogue.append(replace(turn, text=" ".join(words)))
    name = "word_composition"
    return replace(example, sample_id=f"{name}-{index:05d}", subset=name, dialogue=tuple(dialogue))
