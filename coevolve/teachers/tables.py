"""What the rule teacher knows of languages: `words.txt` and `cues.txt`, explained there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

OPENING_ACTS = ("thank", "apologise", "greet", "take leave", "agree", "deny", "react")
"""Acts that open a sentence: matched at its start, in this order."""

MAIN_ACTS = ("advise", "wish", "about self", "about user")
"""What the rest of a sentence does: matched anywhere, in this order."""


def _lines(name: str) -> Iterator[str]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return (line for line in text.split("\n") if line and not line.startswith("#"))


def _words() -> Mapping[str, Mapping[str, str]]:
    tables: dict[str, dict[str, str]] = {}
    language = ""
    for line in _lines("words.txt"):
        if line.startswith("["):
            table = tables.setdefault(line.strip("[]"), {})
        elif line.startswith(" "):
            table[language] += f" {line.strip()}"
        else:
            language, _, listed = line.partition(":")
            table[language] = listed.strip()
    return tables


def _cues() -> Mapping[str, Mapping[str, str]]:
    cues: dict[str, dict[str, str]] = {}
    act = ""
    for line in _lines("cues.txt"):
        if not line.startswith(" "):
            of_language = cues.setdefault(line, {})
        elif line.startswith("    "):
            of_language[act] += line[4:]
        else:
            act, _, pattern = line.strip(" ").partition(": ")
            of_language[act] = pattern
    return cues


WORDS = _words()
"""Table -> language -> words, apart by spaces, or letters."""
CUES = _cues()
"""Language -> act or mood -> cues."""
