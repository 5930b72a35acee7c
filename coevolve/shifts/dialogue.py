"""Dialogue shifts: more turns before the user's last one, and the user's words in another order.

Neither touches the last turn's meaning, so the golden response still answers it.
"""

import random
from collections.abc import Sequence
from typing import Any

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example, Turn
from coevolve.data.words import pieces
from coevolve.errors import DataError, RecipeError
from coevolve.shifts.build import generator, shift, shifted
from coevolve.shifts.character import character_key

Exchange = tuple[str, str]
"""What the user said and what the agent answered."""


def longer_turns(
    examples: Sequence[Example],
    donors: Sequence[Example],
    *,
    turns: int,
    seed: int,
    tag: str = "longer_turns",
) -> list[Example]:
    """Dialogues with `turns` more exchanges (user's turn, agent's answer) before their first turn.

    The exchanges are the leading ones of other dialogues, drawn at random: of dialogues with the
    same character as long as there are any, then of others. A dialogue that shares an exchange with
    the example gives none.
    """
    if turns < 1:
        raise RecipeError(f"turns: found {turns}; accepted is a number from 1.")
    exchanges = {donor.sample_id: _exchanges(donor) for donor in donors}
    keys = {donor.sample_id: character_key(donor.agent_character) for donor in donors}
    rows = []
    for example in examples:
        own, key = set(_exchanges(example)), character_key(example.agent_character)
        eligible = [
            donor.sample_id
            for donor in donors
            if exchanges[donor.sample_id]
            and donor.sample_id != example.sample_id
            and own.isdisjoint(exchanges[donor.sample_id])
        ]
        generator(seed, "longer_turns", example).shuffle(eligible)
        # The sort is stable: random within each of the two groups.
        eligible.sort(key=lambda donor: keys[donor] != key)
        before: list[Turn] = []
        used: list[dict[str, Any]] = []
        for donor in eligible:
            missing = turns - len(before) // 2
            if missing == 0:
                break
            taken = exchanges[donor][:missing]
            for user, agent in taken:
                before += [Turn("user", user), Turn("agent", agent)]
            same = keys[donor] == key
            used.append({"sample_ID": donor, "exchanges": len(taken), "same_character": same})
        if len(before) < 2 * turns:
            raise DataError(
                f"sample_ID {example.sample_id!r}: the other dialogues have {len(before) // 2} "
                f"exchanges to put before it; {turns} were asked for. Ask for fewer, or give more "
                "data."
            )
        record = {"seed": seed, "turns": turns, "donors": used}
        dialogue = (*before, *example.dialogue)
        rows.append(shifted(example, tag, "longer_turns", record=record, dialogue=dialogue))
    return rows


def word_order(
    examples: Sequence[Example], *, strength: float, seed: int, tag: str = "word_order"
) -> list[Example]:
    """Dialogues in which a share `strength` of the words of each of the user's turns have left
    their places.

    Of a turn's n words round(strength n) are drawn, but no fewer than 2, and put in each other's
    places so that each of them moves. A turn of one word stays as it is; the row says how many
    words moved in each turn. Spaces and line breaks stay. In scripts without spaces each character
    counts as a word.
    """
    if not 0 < strength <= 1:
        raise RecipeError(f"strength: found {strength}; accepted is a number above 0 and up to 1.")
    rows = []
    for example in examples:
        rng = generator(seed, "word_order", example)
        turns, moved = [], []
        for turn in example.dialogue:
            if turn.speaker == "user":
                text, count = _permuted(turn.text, strength, rng)
                turns.append(Turn("user", text))
                moved.append(count)
            else:
                turns.append(turn)
        record = {"seed": seed, "strength": strength, "moved": moved}
        rows.append(shifted(example, tag, "word_order", record=record, dialogue=tuple(turns)))
    return rows


@shift("longer_turns", "OOD3Test")
def _longer_turns(sources: Sequence[Example], corpus: Corpus, **options: Any) -> list[Example]:
    donors = [x for split in ("IDTrain", "IDTest") for x in corpus.splits.get(split, ())]
    return longer_turns(sources, donors, **options)


@shift("word_order", "OOD3Test")
def _word_order(sources: Sequence[Example], corpus: Corpus, **options: Any) -> list[Example]:
    return word_order(sources, **options)


def _exchanges(example: Example) -> list[Exchange]:
    """The user's turns that are answered at once, with the answers."""
    pairs = zip(example.dialogue, example.dialogue[1:], strict=False)
    return [
        (first.text, second.text)
        for first, second in pairs
        if (first.speaker, second.speaker) == ("user", "agent")
    ]


def _permuted(text: str, strength: float, rng: random.Random) -> tuple[str, int]:
    """The text with words in other places, and how many words have moved."""
    spans = list(pieces(text))
    if len(spans) < 2:
        return text, 0
    words = [piece[0] for piece in spans]
    chosen = sorted(rng.sample(range(len(words)), max(2, round(strength * len(words)))))
    for to, source in zip(chosen, _cycle(chosen, rng), strict=True):
        words[to] = spans[source][0]
    parts, last = [], 0
    for piece, word in zip(spans, words, strict=True):
        parts += [text[last : piece.start()], word]
        last = piece.end()
    return "".join([*parts, text[last:]]), len(chosen)


def _cycle(items: Sequence[int], rng: random.Random) -> list[int]:
    """The items permuted in one cycle, drawn uniformly: none stays (Sattolo, 1986)."""
    order = list(items)
    for index in range(len(order) - 1, 0, -1):
        other = rng.randrange(index)
        order[index], order[other] = order[other], order[index]
    return order
