"""Which language a text is in, its words, and which of two words are the same word: by table and rule, no model.

Scripts that one language uses decide by themselves. Latin languages are told apart by their function words, each
counting 1 / (number of languages that have it), and by letters that few of them use. Chinese is cut at its function
words and then in pairs of characters; in Japanese a run of kanji or katakana is a word and hiragana is grammar.
"""

import re
import unicodedata
from collections import Counter

from coevolve.teachers.function_words import CHINESE_COMPOUNDS, FUNCTION_WORDS, KOREAN_PARTICLES, TELLTALE_LETTERS

UNKNOWN = "unknown"

_LATIN = ("English", "German", "French", "Italian", "Spanish", "Portuguese", "Indonesian", "Dutch")
_FUNCTION_WORDS = {language: frozenset(listed.split()) for language, listed in FUNCTION_WORDS.items()}
_LISTED_IN = Counter(word for language in _LATIN for word in _FUNCTION_WORDS[language])
_CLEAR_LEAD = 1.0  # votes; with less, the context has a say

_SCRIPTS = {
    "kana": r"\u3041-\u30fa\u30fc-\u30ff",
    "Han": r"\u3400-\u9fff\uf900-\ufaff\u3005",
    "Korean": r"\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f",
    "Cyrillic": r"\u0400-\u052f",
    "Arabic script": r"\u0620-\u06ff",
    "Greek": r"\u0370-\u03ff",
    "Hebrew": r"\u05d0-\u05f4",
    "Thai": r"\u0e01-\u0e4e",
    "Hindi": r"\u0900-\u097f",
    "Latin": r"a-zA-Z\u00c0-\u024f\u1e00-\u1eff",
}
_SCRIPT_PATTERNS = {script: re.compile(f"[{characters}]") for script, characters in _SCRIPTS.items()}

_HAN, _HIRAGANA, _KATAKANA = _SCRIPTS["Han"], r"\u3041-\u309f", r"\u30a1-\u30fa\u30fc-\u30ff"
_INDIC_TO_LAO = r"\u0900-\u0963\u0966-\u0eff"  # vowel signs there are no letters to `re`, so whole blocks are taken
_LETTER = rf"(?:[^\W_{_HAN}{_HIRAGANA}{_KATAKANA}{_INDIC_TO_LAO}]|[\u0300-\u036f])"
_WORD = re.compile(
    rf"[{_HAN}]+|[{_HIRAGANA}]+|[{_KATAKANA}]+|[{_INDIC_TO_LAO}]+|{_LETTER}+(?:-{_LETTER}+)*",
)
_HAN_RUN, _HIRAGANA_RUN, _HANGUL = (re.compile(f"[{script}]+") for script in (_HAN, _HIRAGANA, _SCRIPTS["Korean"]))
_CHINESE_CUTS = sorted({*_FUNCTION_WORDS["Chinese"], *CHINESE_COMPOUNDS.split()}, key=lambda word: (-len(word), word))
_CHINESE_CUT = re.compile("(" + "|".join(_CHINESE_CUTS) + ")")
_KOREAN_PARTICLES = tuple(KOREAN_PARTICLES.split())
_LONGEST_HAN_WORD = 4
_ENDING = re.compile(r"(?:ingly|ings|ing|edly|ed|ies|es|s|ly)$")


def language_of(text: str, context: str = "") -> str:
    """The language's English name; the script's where several languages share it; `unknown` without letters.

    Args:
        text: the text in question.
        context: text that is likely in the same language. It is asked where `text` alone says too little.
    """
    script = _script(text)
    if script is None:
        return language_of(context) if context else UNKNOWN
    if script == "Han":
        return "Japanese" if _script(context) == "kana" and len(text) < 8 else "Chinese"
    if script == "Latin":
        return _latin_language(text, context)
    if script == "Cyrillic":
        return "Ukrainian" if _has_letters(text, "Ukrainian") else "Russian"
    if script == "Arabic script":
        return "Persian" if _has_letters(text, "Persian") else "Arabic"
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
    """Whether the word can say what a text is about: no function word, no lone letter, no hiragana."""
    plain = fold(word)
    lone_letter = len(plain) == 1 and plain.isalpha() and not _HAN_RUN.match(plain) and not _HANGUL.match(plain)
    stem = _without_particle(plain)
    functions = _FUNCTION_WORDS.get(language, frozenset())
    return not (lone_letter or _HIRAGANA_RUN.fullmatch(plain) or plain in functions or stem in functions)


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
    """The script of most letters. A fifth of kana is enough for Japanese, whose other letters are Han."""
    counts = {script: len(pattern.findall(text)) for script, pattern in _SCRIPT_PATTERNS.items()}
    if not any(counts.values()):
        return None
    if counts["kana"] and 5 * counts["kana"] >= counts["kana"] + counts["Han"] + counts["Latin"]:
        return "kana"
    return max(counts, key=lambda script: counts[script])


def _latin_language(text: str, context: str) -> str:
    votes = _votes(text)
    (first, most), (_, second) = votes.most_common(2)
    if most - second >= _CLEAR_LEAD:
        return first
    if context and _script(context) == "Latin":
        votes.update(_votes(context))
    first, most = votes.most_common(1)[0]
    return first if most > 0 else UNKNOWN


def _votes(text: str) -> Counter[str]:
    votes: Counter[str] = Counter(dict.fromkeys(_LATIN, 0.0))
    plain = fold(text)
    for word in _WORD.findall(plain):
        for language in _LATIN if word in _LISTED_IN else ():
            votes[language] += (word in _FUNCTION_WORDS[language]) / _LISTED_IN[word]
    for language in _LATIN:
        votes[language] += 0.5 * _has_letters(plain, language)
    return votes


def _has_letters(text: str, language: str) -> bool:
    return any(letter in TELLTALE_LETTERS.get(language, "") for letter in fold(text))


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
