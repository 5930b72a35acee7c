"""Which language a text is in, its words, and which of two words are the same word: by table and
rule, no model.

Scripts that one language uses decide by themselves. Languages of one script are told apart by their
function words, each counting 1 / (number of languages that have it), by letters that few of them
use, and by letters that they lack. A language whose lead is weak, or that another one without a
name here has more of, is unknown: no claim is made. Chinese is cut at its function words and then
in pairs of characters; in Japanese a run of kanji or katakana is a word and hiragana is grammar.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from coevolve.teachers.tables import WORDS

UNKNOWN = "unknown"

_NAMED = {
    "Latin": (
        *("English", "German", "French", "Italian"),
        *("Spanish", "Portuguese", "Indonesian", "Dutch"),
    ),
    "Cyrillic": ("Russian", "Ukrainian"),
    "Arabic script": ("Arabic", "Persian"),
    "Devanagari": ("Hindi",),
}
_ALPHABETS, _TELLTALE_LETTERS = WORDS["alphabets"], WORDS["telltale letters"]
_FUNCTION_WORDS, _NAMING_WORDS, _UNNAMED = (
    {language: frozenset(listed.split()) for language, listed in WORDS[table].items()}
    for table in ("function words", "naming words", "others")
)
_KNOWN_BY = {**_FUNCTION_WORDS, **_NAMING_WORDS}
_LISTED_IN = Counter(word for named in _NAMED.values() for x in named for word in _KNOWN_BY[x])
_CLEAR_LEAD, _WEAK_LEAD = 1.0, 0.5  # votes; with less than a clear one, the context has a say
_MANY_WORDS = 5
_LEAST_SHARE = 0.25  # of words that have to be a language's function words; half are, as a rule

_SCRIPTS = {
    "kana": r"\u3041-\u30fa\u30fc-\u30ff",
    "Han": r"\u3400-\u9fff\uf900-\ufaff\u3005",
    "Korean": r"\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f",
    "Cyrillic": r"\u0400-\u052f",
    "Arabic script": r"\u0620-\u06ff",
    "Greek": r"\u0370-\u03ff",
    "Hebrew": r"\u05d0-\u05f4",
    "Thai": r"\u0e01-\u0e4e",
    "Devanagari": r"\u0900-\u0963\u0966-\u097f",
    "Latin": r"a-zA-Z\u00c0-\u024f\u1e00-\u1eff",
}
_SCRIPT_PATTERNS = {script: re.compile(f"[{signs}]") for script, signs in _SCRIPTS.items()}

_SCRIPT_OF = {
    language: next(pattern for pattern in _SCRIPT_PATTERNS.values() if pattern.match(alphabet[-1]))
    for language, alphabet in _ALPHABETS.items()
}

_HAN, _HIRAGANA, _KATAKANA = _SCRIPTS["Han"], r"\u3041-\u309f", r"\u30a1-\u30fa\u30fc-\u30ff"
# Vowel signs there are no letters to `re`, so whole blocks are taken.
_INDIC_TO_LAO = r"\u0900-\u0963\u0966-\u0eff"
_LETTER = rf"(?:[^\W_{_HAN}{_HIRAGANA}{_KATAKANA}{_INDIC_TO_LAO}]|[\u0300-\u036f])"
_WORD = re.compile(
    rf"[{_HAN}]+|[{_HIRAGANA}]+|[{_KATAKANA}]+|[{_INDIC_TO_LAO}]+|{_LETTER}+(?:-{_LETTER}+)*"
)
_HAN_RUN, _HIRAGANA_RUN, _HANGUL = (
    re.compile(f"[{script}]+") for script in (_HAN, _HIRAGANA, _SCRIPTS["Korean"])
)
_CHINESE_CUTS = sorted(
    {*_FUNCTION_WORDS["Chinese"], *WORDS["compounds"]["Chinese"].split()},
    key=lambda word: (-len(word), word),
)
_CHINESE_CUT = re.compile("(" + "|".join(_CHINESE_CUTS) + ")")
_KOREAN_PARTICLES = tuple(WORDS["particles"]["Korean"].split())
_LONGEST_HAN_WORD = 4
_ENDING = re.compile(r"(?:ingly|ings|ing|edly|ed|ies|es|s|ly)$")


def language_of(text: str, context: str = "") -> str:
    """The language's English name; `unknown` without letters, or where no language is clearly
    ahead.

    Args:
        text: the text in question.
        context: text that is likely in the same language. It is asked where `text` alone says too
            little.
    """
    script = _script(text)
    if script is None:
        return language_of(context) if context and not any(map(str.isalpha, text)) else UNKNOWN
    if script == "Han":
        return "Japanese" if _script(context) == "kana" and len(text) < 8 else "Chinese"
    if script in _NAMED:
        context = context if _script(context) == script else ""
        return _named(text, context, _NAMED[script])
    if script == "Hebrew" and _foreign(text, "Hebrew"):
        return UNKNOWN
    return "Japanese" if script == "kana" else script


def words(text: str, language: str) -> list[str]:
    """Every word of the text in order, as it is written; numbers are words, punctuation is not."""
    found: list[str] = []
    for run in _WORD.findall(text):
        if language == "Chinese" and _HAN_RUN.fullmatch(run):
            for chunk in _CHINESE_CUT.split(run):
                found += _chinese_words(chunk)
        else:
            found += run.split("-") if language == "French" else [run]  # as in buvez-vous
    return found


def is_content(word: str, language: str) -> bool:
    """Whether the word can say what a text is about: no function word, lone letter or hiragana."""
    plain, functions = fold(word), _FUNCTION_WORDS.get(language, frozenset())
    if len(plain) == 1 and plain.isalpha() and not (_HAN_RUN.match(plain) or _HANGUL.match(plain)):
        return False
    return not (
        _HIRAGANA_RUN.fullmatch(plain)
        or plain in functions
        or _without_particle(plain) in functions
    )


def content_words(text: str, language: str) -> list[str]:
    """The content words in order, each once, as first written."""
    first: dict[frozenset[str], str] = {}
    for word in words(text, language):
        if is_content(word, language):
            first.setdefault(keys(word), word)
    return list(first.values())


def keys(word: str) -> frozenset[str]:
    """What makes two words the same: they share a key. A stem; for Han the pairs of characters.

    >>> keys("running") & keys("runs")
    frozenset({'run'})
    """
    plain = fold(word)
    if _HAN_RUN.fullmatch(plain) and len(plain) > 1:
        return frozenset(plain[at : at + 2] for at in range(len(plain) - 1))
    if _HANGUL.fullmatch(plain):
        return frozenset((_without_particle(plain),))
    if not plain.isalpha() or len(plain) < 4:
        return frozenset((plain,))
    stem = _ENDING.sub("", plain)
    stem = stem if len(stem) >= 3 else plain
    if len(stem) > 3 and stem[-1] in "aeioy":
        stem = stem[:-1]
    if len(stem) > 3 and stem[-1] == stem[-2]:
        stem = stem[:-1]
    return frozenset((stem,))


def fold(text: str) -> str:
    """Lower case and one way to write each accent, for comparing."""
    return unicodedata.normalize("NFC", text.casefold())


def _script(text: str) -> str | None:
    """The script of most letters; for Japanese, which has Han too, a fifth of kana is enough."""
    counts = {script: len(pattern.findall(text)) for script, pattern in _SCRIPT_PATTERNS.items()}
    if counts["kana"] and 5 * counts["kana"] >= counts["kana"] + counts["Han"] + counts["Latin"]:
        return "kana"
    script = max(counts, key=lambda script: counts[script])
    others = sum(map(str.isalpha, text)) - sum(counts.values())
    return script if counts[script] > max(others, 0) else None


def _named(text: str, context: str, languages: Sequence[str]) -> str:
    """The one of the languages that the text is in; its context, in the same script, may help."""
    alone = _Votes(text, languages)
    enough = _CLEAR_LEAD if context else _WEAK_LEAD
    if alone.lead >= enough and alone.is_likely(alone.first, ahead=_WEAK_LEAD):
        return alone.first
    if context:
        both = _Votes(f"{text} {context}", languages)
        first = both.first
        # What the text itself speaks against is not made likely by its context.
        against = max(alone.others - alone.of[first], -alone.by_letters[first])
        likely = both.lead > 0 and both.is_likely(first) and not alone.lacks(first)
        if likely and against < _CLEAR_LEAD:
            return first
    return UNKNOWN


class _Votes:
    """What speaks for each of some languages: its words, and letters that few have; a letter that
    it lacks is against.

    Attributes:
        of: votes of each language, `by_letters` among them.
        first, lead: the language with the most, and how many more than the next it has.
        others: the most that a language without a name has.
    """

    def __init__(self, text: str, languages: Sequence[str]):
        plain = fold(text)
        self.words = _WORD.findall(plain)
        self.by_letters = {
            language: 0.5 * _has_letters(plain, language) - _foreign(plain, language)
            for language in languages
        }

        def weigh(listed: frozenset[str]) -> float:
            return sum(1 / max(_LISTED_IN[word], 1) for word in self.words if word in listed)

        self.of = {name: weigh(_KNOWN_BY[name]) + self.by_letters[name] for name in languages}
        self.others = max(map(weigh, _UNNAMED.values()))
        ranked = sorted(languages, key=self.of.__getitem__, reverse=True)
        self.first = ranked[0]
        self.lead = self.of[self.first] - (self.of[ranked[1]] if ranked[1:] else 0.0)

    def lacks(self, language: str) -> bool:
        """Whether the text is long enough to have words of the language, and has none."""
        return len(self.words) >= _MANY_WORDS and not any(
            word in _KNOWN_BY[language] for word in self.words
        )

    def is_likely(self, language: str, ahead: float = 0.0) -> bool:
        """Whether the text has about as many of the language's words as a text in it has.

        Args:
            ahead: votes that it has to be ahead of the languages without a name.
        """
        has = sum(word in _KNOWN_BY[language] for word in self.words)
        # A single word of one Latin language stands in some other as well.
        least = min(2, (len(self.words) + 1) // 2) if language in _NAMED["Latin"] else 1
        share = has + self.by_letters[language]
        enough = has >= max(least, 1) and share >= _LEAST_SHARE * len(self.words)
        return enough and self.of[language] >= self.others + ahead


def _has_letters(text: str, language: str) -> bool:
    return any(letter in _TELLTALE_LETTERS.get(language, "") for letter in fold(text))


def _foreign(text: str, language: str) -> int:
    """The number of words with a letter of its script that the language does not have."""
    if language not in _ALPHABETS:
        return 0

    alphabet, script = _ALPHABETS[language], _SCRIPT_OF[language]

    def odd(letter: str) -> bool:
        known = letter.isascii() or letter in alphabet
        return not known and (script.match(letter) is not None or unicodedata.combining(letter) > 0)

    return sum(any(map(odd, word)) for word in fold(text).split())


def _chinese_words(chunk: str) -> list[str]:
    """A run of Han without function words, cut in pairs where it is too long for one word."""
    if len(chunk) <= _LONGEST_HAN_WORD:
        return [chunk] if chunk else []
    return [chunk[at : at + 2] for at in range(0, len(chunk), 2)]


def _without_particle(word: str) -> str:
    if _HANGUL.fullmatch(word):
        for particle in _KOREAN_PARTICLES:
            if len(word) > len(particle) and word.endswith(particle):
                return word[: -len(particle)]
    return word
