"""The words of the synthetic world, and how its texts are written and read back.

Inputs (u, c, d), five values each but for the three languages:

    u: language, culture, interest      "german alpine chess"
    c: style, occupation                "poetic baker"
    d: topic_1, topic_2, intent         user "travel", agent "food", user "thank"

The response has one word per slot, in the user's language: "kühn gern langsam ruhig kühn".
A trace first writes the connections (latents that lie on the way), then the features, one per slot.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coevolve.data.example import Example, Turn
from coevolve.errors import DataError

Values = dict[str, NDArray[np.int64]]
"""Name of an input or latent -> value indices; the arrays broadcast against one another."""

CONNECTIONS_HEADING = "[Connections]"
FEATURES_HEADING = "[Features]"
MARKS = ("|", "/", "user", "assistant", CONNECTIONS_HEADING, FEATURES_HEADING)

LANGUAGES = ("english", "german", "french")
TOPICS = ("weather", "money", "family", "travel", "food")
INPUT_WORDS: Mapping[str, tuple[str, ...]] = {
    "language": LANGUAGES,
    "culture": ("alpine", "coastal", "nordic", "island", "desert"),
    "interest": ("music", "chess", "cooking", "gardening", "sailing"),
    "style": ("formal", "playful", "terse", "poetic", "ironic"),
    "occupation": ("baker", "pilot", "nurse", "lawyer", "farmer"),
    "topic_1": TOPICS,
    "topic_2": TOPICS,
    "intent": ("ask", "thank", "complain", "invite", "joke"),
}
FACTORS: Mapping[str, tuple[str, ...]] = {
    "user": ("language", "culture", "interest"),
    "character": ("style", "occupation"),
    "dialogue": ("topic_1", "topic_2", "intent"),
}

# Each latent is a table lookup of two earlier values: name -> (left, right). Order is the order of
# the hops.
CONNECTIONS: Mapping[str, tuple[str, str]] = {
    "subject": ("interest", "occupation"),
    "thread": ("topic_1", "topic_2"),
    "focus": ("subject", "thread"),
    "tone": ("culture", "style"),
    "stance": ("tone", "intent"),
}
FEATURES: Mapping[str, tuple[str, str]] = {
    "opening": ("stance", "subject"),
    "matter": ("focus", "tone"),
    "colour": ("thread", "stance"),
    "image": ("focus", "thread"),
    "closing": ("stance", "focus"),
}
CONNECTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "tone": ("soft", "sharp", "warm", "dry", "solemn"),
    "subject": ("craft", "nature", "people", "numbers", "stories"),
    "thread": ("return", "contrast", "detour", "growth", "pause"),
    "stance": ("agree", "doubt", "support", "challenge", "wonder"),
    "focus": ("past", "future", "detail", "whole", "cause"),
}
FEATURE_WORDS = ("joy", "calm", "courage", "kindness", "patience")  # what a slot should express
RESPONSE_WORDS: Mapping[str, tuple[str, ...]] = {
    "english": ("gladly", "calmly", "boldly", "kindly", "slowly"),
    "german": ("gern", "ruhig", "kühn", "lieb", "langsam"),
    "french": ("volontiers", "calmement", "hardiment", "gentiment", "lentement"),
}
VALUES = len(FEATURE_WORDS)
SLOTS = len(FEATURES)
RESPONSE_VOCABULARY = tuple(word for language in LANGUAGES for word in RESPONSE_WORDS[language])


def vocabulary() -> tuple[str, ...]:
    """Every word that a text of the world can hold, each once, in a fixed order."""
    groups = (MARKS, *INPUT_WORDS.values(), *CONNECTION_WORDS.values(), FEATURE_WORDS)
    return tuple(dict.fromkeys(word for group in (*groups, RESPONSE_VOCABULARY) for word in group))


def write_example(values: Mapping[str, int], sample_id: str, subset: str, response: str) -> Example:
    """The example whose inputs have these value indices."""
    word = {name: words[values[name]] for name, words in INPUT_WORDS.items()}
    return Example(
        sample_id=sample_id,
        subset=subset,
        user_persona=" ".join(word[name] for name in FACTORS["user"]),
        agent_character=" ".join(word[name] for name in FACTORS["character"]),
        dialogue=(
            Turn("user", word["topic_1"]),
            Turn("agent", word["topic_2"]),
            Turn("user", word["intent"]),
        ),
        golden_response=response,
    )


def parse(example: Example) -> dict[str, int]:
    """The value index of each input of an example that `write_example` wrote."""
    character = example.agent_character if isinstance(example.agent_character, str) else ""
    speakers = tuple(turn.speaker for turn in example.dialogue)
    if speakers != ("user", "agent", "user"):
        raise DataError(
            f"sample_ID {example.sample_id!r}: dialogue_context has the speakers "
            f"{', '.join(speakers)}; an example of this world has user, agent, user."
        )
    dialogue = " ".join(turn.text for turn in example.dialogue)
    texts = {"user": example.user_persona, "character": character, "dialogue": dialogue}
    values: dict[str, int] = {}
    for factor, text in texts.items():
        names, words = FACTORS[factor], text.split()
        if len(words) != len(names):
            found = f"the {factor} text {text!r} has {len(words)} words"
            raise DataError(
                f"sample_ID {example.sample_id!r}: {found}; accepted: {', '.join(names)}."
            )
        for name, word in zip(names, words, strict=True):
            values[name] = _index(word, INPUT_WORDS[name], example.sample_id, name)
    return values


def parse_all(examples: Sequence[Example]) -> Values:
    """The inputs of N examples: input name -> indices of shape (N,)."""
    rows = [parse(example) for example in examples]
    return {name: np.array([row[name] for row in rows], dtype=np.int64) for name in INPUT_WORDS}


def write_responses(words: NDArray[np.int64]) -> list[str]:
    """Word indices of shape (N, SLOTS) as N texts."""
    return [" ".join(RESPONSE_VOCABULARY[index] for index in row) for row in words]


def parse_responses(examples: Sequence[Example], responses: Sequence[str]) -> NDArray[np.int64]:
    """Word indices of shape (N, SLOTS); `examples` name the sample in an error."""
    if len(examples) != len(responses):
        raise DataError(
            f"{len(responses)} responses for {len(examples)} examples; accepted is one each."
        )
    rows = []
    for example, response in zip(examples, responses, strict=True):
        words, sample_id = response.split(), example.sample_id
        if len(words) != SLOTS:
            found = f"the response {response!r} has {len(words)} words"
            raise DataError(f"sample_ID {sample_id!r}: {found}; accepted are {SLOTS}.")
        rows.append([_index(word, RESPONSE_VOCABULARY, sample_id, "response") for word in words])
    return np.array(rows, dtype=np.int64).reshape(-1, SLOTS)


def write_trace(latents: Mapping[str, int]) -> str:
    """One line: the connections in the order of their hops, then the features by slot."""
    connections = (CONNECTION_WORDS[name][latents[name]] for name in CONNECTIONS)
    features = (FEATURE_WORDS[latents[name]] for name in FEATURES)
    return " ".join((CONNECTIONS_HEADING, *connections, FEATURES_HEADING, *features))


def _index(word: str, accepted: Sequence[str], sample_id: str, field: str) -> int:
    if word not in accepted:
        raise DataError(
            f"sample_ID {sample_id!r}: {field} is {word!r}; accepted: {', '.join(accepted)}."
        )
    return accepted.index(word)
