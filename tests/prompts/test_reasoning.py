"""What counts as the core features, and what as a well-formed reasoning."""

import pytest

from coevolve.prompts import core_features, missing_sections

SECTIONS = ("[A]", "[B]", "[Features]")


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("[A] x [B] y [Features] warm, short", "warm, short"),
        ("[Features]\n```\nwarm\nshort\n```", "warm\nshort"),
        ("[Features] first [Features] second", "second"),
        ("[Features] warm [A] late section", "warm"),
        ("no heading at all", None),
        ("[A] x [Features]   \n", None),
        ("", None),
    ],
)
def test_core_features(text, features):
    assert core_features(text, SECTIONS) == features


@pytest.mark.parametrize(
    ("text", "faulty"),
    [
        ("[A] x [B] y [Features] z", []),
        ("[A] x [Features] z", ["[B]"]),
        ("[A] x [A] x [B] y [Features] z", ["[A]"]),
        ("[B] y [A] x [Features] z", ["[B]"]),
        ("[A] [B] y [Features] z", ["[A]"]),
        ("[A] x [B] y [Features]", ["[Features]"]),
        ("", ["[A]", "[B]", "[Features]"]),
    ],
)
def test_missing_sections(text, faulty):
    found = missing_sections(text, SECTIONS)
    assert set(faulty) <= set(found)
    assert bool(found) == bool(faulty)
