"""What a rule can say of a response y to x: acts, words, tone, length, language, links."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coevolve.data.example import Example
from coevolve.data.words import words as characters_and_words
from coevolve.teachers.languages import content_words, fold, keys, language_of, words
from coevolve.teachers.tables import CUES, MAIN_ACTS, OPENING_ACTS

ACTS = (
    *("greet", "take leave", "thank", "apologise", "agree", "deny", "react", "ask"),
    *("advise", "wish", "about self", "about user", "exclaim", "state"),
)
TONES = ("enthusiastic", "lively", "warm", "sad", "curious", "plain")
_MOST_WORDS = {"very short": 4, "short": 8, "medium": 14, "long": 24, "very long": math.inf}
LENGTHS = tuple(_MOST_WORDS.items())

Source = Literal["user's persona", "character", "last turn", "earlier turns"]

_MOST_ACTS = 3
_LONGEST_KEYWORD = 24  # characters; what is longer is text that no rule here can cut into words
# With the full-width marks of Chinese and Japanese (ff01, ff1f, 3002), Arabic's question mark and
# Hindi's danda.
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026\u061f\u0964])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_QUESTION, _EXCLAMATION = re.compile(r"[?\uff1f\u061f]"), re.compile(r"[!\uff01]")
_UNSPACED = ("Chinese", "Japanese", "Korean")  # a cue may end inside a word


@dataclass(frozen=True)
class Link:
    """A passage of x that y takes up, by the words that they share, as x writes them."""

    source: Source
    words: tuple[str, ...]


@dataclass(frozen=True)
class Features:
    """The features of one response; `acts` holds the first three, `links` the strongest first."""

    language: str
    acts: tuple[str, ...]
    keywords: tuple[str, ...]
    tone: str
    length: str
    links: tuple[Link, ...]


class Rarity:
    """Inverse document frequency of words, ln((1 + N) / (1 + n)) in nats; every turn and response
    is a document.

    Without examples each word is as rare as any other.
    """

    def __init__(self, examples: Iterable[Example] = ()):
        self._documents = 0
        self._with: Counter[str] = Counter()
        for example in examples:
            texts = [turn.text for turn in example.dialogue]
            texts += [example.golden_response] if example.golden_response else []
            language = language_of(" ".join(texts))
            for text in texts:
                self._documents += 1
                self._with.update(_keys_of([text], language))

    def __call__(self, word: str) -> float:
        return max(math.log((1 + self._documents) / (1 + self._with[key])) for key in keys(word))

    def digest(self) -> str:
        """A fingerprint of the fitted counts."""
        counts = json.dumps([self._documents, sorted(self._with.items())], ensure_ascii=False)
        return hashlib.sha256(counts.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def response_features(
    example: Example, rarity: Rarity, max_keywords: int, keywords: Literal["telling", "context"]
) -> Features:
    """The features of the example's golden response."""
    response = example.golden_response or ""
    language = language_of(response, " ".join(turn.text for turn in example.dialogue))
    acts = speech_acts(response, language)
    return Features(
        language=language,
        acts=acts,
        keywords=_keywords(example, language, rarity, max_keywords, keywords),
        tone=tone(response, acts, language),
        length=length(response, language),
        links=tuple(_links(example, language, rarity)),
    )


def speech_acts(text: str, language: str) -> tuple[str, ...]:
    """The first three different acts, sentence by sentence; at least one. All are from `ACTS`."""
    acts: dict[str, None] = {}
    for sentence in _SENTENCE_END.split(text):
        if words(sentence, language):
            acts.update(dict.fromkeys(_sentence_acts(sentence, language)))
    return tuple(acts)[:_MOST_ACTS] or ("state",)


def tone(text: str, acts: tuple[str, ...], language: str) -> str:
    """One of `TONES`."""
    pleased, downcast = (_has_cue(mood, text, language) for mood in ("pleased", "downcast"))
    if downcast and not pleased:
        return "sad"
    if _EXCLAMATION.search(text):
        return "enthusiastic" if pleased else "lively"
    if pleased:
        return "warm"
    return "curious" if "ask" in acts else "plain"


def length(text: str, language: str) -> str:
    """The name of a bucket of `LENGTHS`; without spaces two characters are one word."""
    n_words = len(words(text, language))
    if language in ("Chinese", "Japanese", "Thai"):
        n_words = math.ceil(len(characters_and_words(text)) / 2)
    return next(name for name, most in LENGTHS if n_words <= most)


def facts(character: str | Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """The single statements of a persona or character: lines of a text, leaves of an object."""
    if isinstance(character, str):
        return [line.strip() for line in character.split("\n") if line.strip()]
    found: list[str] = []
    for value in character.values() if isinstance(character, Mapping) else character:
        found += facts(value if isinstance(value, (str, Mapping, list, tuple)) else str(value))
    return found


def rarest(candidates: Sequence[str], rarity: Rarity, most: int) -> tuple[str, ...]:
    """Up to `most` of the words, the rarest ones, in the order given; no long run of text."""
    words = [word for word in candidates if len(word) <= _LONGEST_KEYWORD]
    order = sorted(range(len(words)), key=lambda at: (-rarity(words[at]), -len(words[at]), at))
    return tuple(words[at] for at in sorted(order[:most]))


def _keywords(
    example: Example, language: str, rarity: Rarity, most: int, mode: str
) -> tuple[str, ...]:
    """Fewer than the response has words, so that they are never the whole of it."""
    response = example.golden_response or ""
    most = max(0, min(most, len(words(response, language)) - 1))
    candidates = content_words(response, language)
    if mode == "context":
        known = _keys_of((text for _, text in _passages(example)), language)
        candidates = [word for word in candidates if keys(word) & known]
    return rarest(candidates, rarity, most)


def _keys_of(texts: Iterable[str], language: str) -> set[str]:
    return {key for text in texts for word in content_words(text, language) for key in keys(word)}


def _passages(example: Example) -> list[tuple[Source, str]]:
    """Every fact and turn of x, with where it stands."""
    *earlier, last = [turn.text for turn in example.dialogue]
    of_source: dict[Source, list[str]] = {
        "user's persona": facts(example.user_persona),
        "character": facts(example.agent_character),
        "earlier turns": earlier,
        "last turn": [last],
    }
    return [(source, text) for source, texts in of_source.items() for text in texts]


def _links(example: Example, language: str, rarity: Rarity) -> list[Link]:
    """Per source the passage that shares most with y; strongest first, then nearest."""
    response = _keys_of([example.golden_response or ""], language)
    nearness = ("last turn", "character", "user's persona", "earlier turns")
    best: dict[Source, tuple[float, tuple[str, ...]]] = {}
    for source, text in _passages(example):
        shared = [word for word in content_words(text, language) if keys(word) & response]
        strength = sum(1 + rarity(word) for word in shared)
        if strength > best.get(source, (0.0, ()))[0]:
            best[source] = strength, rarest(shared, rarity, 2)
    order = sorted(best, key=lambda source: (-best[source][0], nearness.index(source)))
    return [Link(source, best[source][1]) for source in order if best[source][1]]


def _sentence_acts(sentence: str, language: str) -> list[str]:
    """An opening act, if there is one, and what the rest of the sentence does, if there is any."""
    acts, rest, cues = [], _plain(sentence), CUES.get(language, {})
    for act in OPENING_ACTS if cues else ():
        opening = re.match(f"(?:{cues[act]})" + ("" if language in _UNSPACED else r"\b"), rest)
        if opening:
            acts, rest = [act], rest[opening.end() :].strip()
            break
    if _QUESTION.search(sentence) or re.search(cues.get("ask", "(?!)"), rest):
        return [*acts, "ask"]
    for act in MAIN_ACTS:
        if _has_cue(act, rest, language) and not (acts and act == "about user"):
            return [*acts, act]
    return acts or ["exclaim" if _EXCLAMATION.search(sentence) else "state"]


def _has_cue(act: str, text: str, language: str) -> bool:
    cues = CUES.get(language, {}).get(act)
    if cues is None:
        return False
    pattern = f"(?:{cues})" if language in _UNSPACED else rf"\b(?:{cues})\b"
    return re.search(pattern, _plain(text)) is not None


def _plain(text: str) -> str:
    """Lower case, words apart by one space, no punctuation: what the cues are written for."""
    return " ".join(re.findall(r"[^\W_]+", fold(text)))
