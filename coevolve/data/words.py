"""The words of a text in any script: what stands between spaces, and single characters where a
script has no spaces.

Chinese, Japanese, Thai, Lao, Burmese and Khmer are written without spaces between words. There a
character is counted as a word, with the vowel signs and tone marks that belong to it: more words
than there are, but as many in any text of the same length. Elsewhere punctuation stays on its word,
as `str.split` leaves it.
"""

import re
import unicodedata
from collections.abc import Iterator

# Thai and Lao, Burmese, Khmer, kana, Han.
_BLOCKS = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F)),
    (0x20000, 0x3FFFF),
)
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in _BLOCKS)
_MARKS = "".join(
    chr(code)
    for first, last in _BLOCKS[:3]
    for code in range(first, last + 1)
    if unicodedata.category(chr(code))[0] == "M"
)
_PIECE = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+")

_AROUND = re.compile(r"^\W+|\W+$")


def pieces(text: str) -> Iterator[re.Match[str]]:
    """Every word where it stands; in scripts without spaces punctuation is a piece of its own."""
    return _PIECE.finditer(text)


def words(text: str) -> list[str]:
    """The words, in order. For a text in a script with spaces it is `text.split()`.

    >>> words("Hi, Ann! 你好!我 like it.")
    ['Hi,', 'Ann!', '你', '好', '我', 'like', 'it.']
    """
    found: list[str] = []
    for run in text.split():
        cut = _PIECE.findall(run)
        found += cut if len(cut) == 1 else [piece for piece in cut if any(map(str.isalnum, piece))]
    return found


def distinct_words(text: str) -> list[str]:
    """Every word once, in lower case and without punctuation around it, in the order of first
    occurrence.

    >>> distinct_words("Fish, fish, [FISH] & chips.")
    ['fish', 'chips']
    """
    bare = (_AROUND.sub("", word).lower() for word in words(text))
    return [word for word in dict.fromkeys(bare) if word]
