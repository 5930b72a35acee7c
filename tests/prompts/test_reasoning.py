"""What counts as the core features, and what as a well-formed reasoning."""

import pytest

from coevolve.prompts import (
    content_share,
    core_features,
    missing_sections,
    prompt_set,
    words_beyond,
)

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


HEADING = "[Core Features of the Golden Response]"


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("", []),
        (" -- ...", []),
        ("(none)", []),
        ("its act, key words, tone, length and language.", []),
        ("The agent's response; its ACT: the act!", []),
        (f"[Connections] {HEADING}", []),
        ("act: ask; words: fish, Fish, FISH", ["ask", "fish"]),
        ("tone: \u6e29\u6696\u3002", ["\u6e29", "\u6696"]),
    ],
)
def test_what_only_repeats_the_instruction_says_nothing(features, said):
    assert words_beyond(features, prompt_set("brief").instruction) == said


def test_the_share_of_reasonings_that_say_anything():
    prompts = prompt_set("brief")
    parrot = f"[Connections] the persona {HEADING} its act, key words, tone, length and language."
    texts = [f"{HEADING} tone: warm", parrot, "no heading", "", None]
    assert content_share(texts, prompts) == 1 / 5
    # In the world's prompts there are no words but the example's.
    world = prompt_set("world")
    assert world.instruction == {"connections", "features"}
    assert content_share(["[Connections] a [Features] b", "[Features]"], world) == 1 / 2
