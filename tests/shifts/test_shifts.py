"""Shifted test sets: what moves, what stays, what is recorded, and that the rows depend on nothing
else.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.data.corpus import Corpus, read_corpus
from coevolve.data.example import Example, Turn
from coevolve.errors import DataError, RecipeError
from coevolve.files import write_jsonl
from coevolve.shifts import add_subset, draw_sources, with_golden
from coevolve.shifts.character import characters_of_splits, read_characters, unseen_character
from coevolve.shifts.dialogue import longer_turns, word_order
from coevolve.shifts.language import pair_with_language

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "roleplay-shared.json"


def make(sample_id, *turns, persona="I like tea.", character="A sailor.", subset="IDTest"):
    """An example whose turns alternate and end with the user's."""
    speakers = ("user", "agent") if len(turns) % 2 else ("agent", "user")
    dialogue = tuple(Turn(speakers[index % 2], text) for index, text in enumerate(turns))
    return Example(
        sample_id, subset, persona, character, dialogue, f"golden of {sample_id}", trace="r"
    )


def talk(sample_id, exchanges, **fields):
    """An example with so many exchanges before the last turn, all of them its own."""
    turns = [
        text
        for k in range(exchanges)
        for text in (f"{sample_id} asks {k}", f"{sample_id} answers {k}")
    ]
    return make(sample_id, *turns, f"{sample_id} asks last", **fields)


@pytest.fixture
def corpus():
    return Corpus(
        {
            "IDTrain": (talk("t1", 1), talk("t2", 2, character="A baker.")),
            "IDTest": (talk("i1", 2), talk("i2", 0, character="A baker."), talk("i3", 3)),
            "OOD1Test": (
                talk("g1", 3, persona="Ich mag Tee.", subset="german"),
                talk("g2", 1, persona="Ich mag Wein.", subset="german"),
            ),
            "OOD2Test": (
                talk("s1", 1, character={"name": "Hamlet", "age": 30}, subset="stage"),
                talk("s2", 1, character={"age": 30, "name": "Hamlet"}, subset="stage"),
                talk("s3", 1, character="A baker.", subset="stage"),
            ),
        },
        "by hand",
    )


def parts(example):
    return example.user_persona, example.agent_character, example.dialogue, example.golden_response


@pytest.fixture
def every_kind(corpus):
    """Makes the rows of each kind from some sources."""
    pool = characters_of_splits(corpus, ["OOD2Test"])
    donors = (*corpus.subsets("OOD1Test")["german"][:1], talk("g3", 3, persona="Ich mag Bier."))

    def run(sources, seed=0):
        return {
            "longer_turns": longer_turns(sources, corpus.examples, turns=2, seed=seed),
            "word_order": word_order(sources, strength=1.0, seed=seed),
            "language": pair_with_language(
                sources, donors, language="german", seed=seed, tag="german_user"
            ),
            "unseen_character": unseen_character(sources, pool, seed=seed),
        }

    return run


MOVED = {"longer_turns": {2}, "word_order": {2}, "language": {0, 2, 3}, "unseen_character": {1, 3}}


@pytest.mark.parametrize("kind", MOVED)
def test_only_what_the_kind_shifts_has_moved(corpus, every_kind, kind):
    sources = corpus.splits["IDTest"]
    for before, after in zip(sources, every_kind(sources)[kind], strict=True):
        differing = {
            index
            for index, pair in enumerate(zip(parts(before), parts(after), strict=True))
            if pair[0] != pair[1]
        }
        assert differing == MOVED[kind]
        assert after.trace is None
        assert (after.shift["kind"], after.shift["source"]) == (kind, before.sample_id)
        assert after.sample_id.endswith(f":{before.sample_id}")
        assert after.shift["golden"] == ("none" if after.golden_response is None else "kept")


@pytest.mark.parametrize("kind", MOVED)
def test_a_row_depends_on_the_seed_and_its_source_alone(corpus, every_kind, kind):
    sources = corpus.splits["IDTest"]
    rows = every_kind(sources)[kind]
    assert every_kind(sources)[kind] == rows
    assert every_kind(sources[::-1])[kind] == rows[::-1]
    assert every_kind(sources[1:2])[kind] == rows[1:2]


@pytest.mark.parametrize("kind", MOVED)
def test_another_seed_draws_something_else(corpus, kind, every_kind):
    sources = [talk(f"x{number}", 3) for number in range(12)]
    stripped = [[parts(row) for row in every_kind(sources, seed)[kind]] for seed in (1, 2)]
    assert stripped[0] != stripped[1] or kind == "unseen_character"  # its pool has one character


def test_longer_turns_are_leading_exchanges_of_the_same_character_first(corpus):
    row = longer_turns(corpus.splits["IDTest"][:1], corpus.examples[:5], turns=4, seed=0)[0]
    used = row.shift["donors"]
    assert sum(donor["exchanges"] for donor in used) == 4 == row.shift["turns"]
    assert [donor["same_character"] for donor in used] == sorted(
        (d["same_character"] for d in used), reverse=True
    )
    assert {donor["sample_ID"] for donor in used if donor["same_character"]} <= {"t1", "i3"}
    expected = [
        Turn(speaker, f"{donor['sample_ID']} {verb} {k}")
        for donor in used
        for k in range(donor["exchanges"])
        for speaker, verb in (("user", "asks"), ("agent", "answers"))
    ]
    assert row.dialogue == (*expected, *corpus.splits["IDTest"][0].dialogue)


def test_a_dialogue_that_overlaps_with_the_example_gives_no_turns():
    example = make("a", "Hi", "Ahoy", "Bye")
    overlapping = make("b", "Hi", "Ahoy", "Well", "Yes", "No")
    with pytest.raises(
        DataError, match=r"sample_ID 'a': the other dialogues have 0 exchanges.*2 were asked for"
    ):
        longer_turns([example], [example, overlapping], turns=2, seed=0)
    with pytest.raises(RecipeError, match="turns: found 0"):
        longer_turns([example], [overlapping], turns=0, seed=0)


@given(
    words=st.lists(
        st.from_regex(r"[a-z]{1,4}", fullmatch=True), min_size=2, max_size=12, unique=True
    ),
    strength=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
def test_so_many_words_have_moved(words, strength, seed):
    text = "  " + "\n".join(words) + " "
    row = word_order([make("a", text)], strength=strength, seed=seed)[0]
    after = row.dialogue[0].text
    moved = sum(first != second for first, second in zip(words, after.split(), strict=True))
    assert moved == max(2, round(strength * len(words))) == row.shift["moved"][0]
    assert Counter(after.split()) == Counter(words)
    assert [character for character in after if character.isspace()] == [
        c for c in text if c.isspace()
    ]


def test_word_order_leaves_the_agents_turns_and_single_words():
    row = word_order([make("a", "agent one two", "Hi!", "three four", "")], strength=1.0, seed=0)[0]
    assert [turn.text for turn in row.dialogue] == ["agent one two", "Hi!", "three four", ""]
    assert row.shift["moved"] == [0, 0]
    with pytest.raises(RecipeError, match=r"strength: found 0\.0"):
        word_order([], strength=0.0, seed=0)


def test_words_without_spaces_move_too():
    row = word_order([make("a", "我一年读二十本书。 ok")], strength=1.0, seed=0)[0]
    after = row.dialogue[0].text
    assert after != "我一年读二十本书。 ok" and Counter(after) == Counter("我一年读二十本书。 ok")


def test_another_languages_user_says_their_own_words_in_the_agents_dialogue(corpus):
    source, donor = corpus.splits["IDTest"][0], corpus.splits["OOD1Test"][0]
    (row,) = pair_with_language(
        [source], corpus.splits["OOD1Test"], language="german", seed=0, tag="german_user"
    )
    # G2 has too few turns.
    assert row.shift["user_from"] == "g1" and row.user_persona == donor.user_persona
    said = [turn.text for turn in row.dialogue if turn.speaker == "user"]
    assert said == [turn.text for turn in donor.dialogue if turn.speaker == "user"][-3:]
    assert [turn for turn in row.dialogue if turn.speaker == "agent"] == [
        turn for turn in source.dialogue if turn.speaker == "agent"
    ]
    with pytest.raises(
        DataError, match="'i1': has 3 turns of the user; none of 1 examples in german"
    ):
        pair_with_language(
            corpus.splits["IDTest"],
            [corpus.splits["OOD1Test"][1]],
            language="german",
            seed=0,
            tag="x",
        )


def test_unseen_characters_are_not_idtrains(corpus, tmp_path):
    (character,) = characters_of_splits(
        corpus, ["OOD2Test"]
    )  # the order of an object's fields makes no other
    assert (character.character["name"], character.origin) == ("Hamlet", "s1")
    with pytest.raises(DataError, match="IDTest has no character that IDTrain lacks"):
        characters_of_splits(corpus, ["IDTest"])
    with pytest.raises(DataError, match="split 'OOD3Test' is needed"):
        characters_of_splits(corpus, ["OOD3Test"])
    path = tmp_path / "characters.jsonl"
    write_jsonl(path, ["A pirate.", {"name": "Ophelia"}])
    pool = read_characters(path, corpus)
    rows = unseen_character([talk(f"x{number}", 1) for number in range(30)], pool, seed=0)
    assert {str(row.agent_character) for row in rows} == {"A pirate.", "{'name': 'Ophelia'}"}
    assert {row.shift["character_from"] for row in rows} == {
        "characters.jsonl:1",
        "characters.jsonl:2",
    }
    own = unseen_character(
        [talk(f"x{number}", 1, character="A pirate.") for number in range(9)], pool, seed=0
    )
    assert {str(row.agent_character) for row in own} == {"{'name': 'Ophelia'}"}
    with pytest.raises(DataError, match="'x': no other character"):
        unseen_character([talk("x", 1, character="A pirate.")], pool[:1], seed=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["A baker."], r"c\.jsonl:1: the character is one of IDTrain"),
        (["A pirate.", "A pirate."], r"c\.jsonl:2: the character is in .*c\.jsonl:1 too"),
        ([""], r"c\.jsonl:1: the character is empty"),
        ([7], r"c\.jsonl:1: agent_character is a number"),
        ([], "has no characters"),
    ],
)
def test_a_faulty_file_of_characters_is_named(corpus, tmp_path, rows, message):
    write_jsonl(tmp_path / "c.jsonl", rows)
    with pytest.raises(DataError, match=message):
        read_characters(tmp_path / "c.jsonl", corpus)


def test_a_subset_is_added_written_and_read_back(corpus, tmp_path):
    rows = word_order(corpus.splits["IDTest"], strength=0.5, seed=1)
    more = longer_turns(rows[:1], corpus.examples, turns=1, seed=2, tag="both")
    longer = add_subset(add_subset(corpus, "OOD3Test", rows), "OOD3Test", more)
    longer.to_json(tmp_path / "data.json")
    back = read_corpus(tmp_path / "data.json")
    assert back.splits == longer.splits
    assert list(back.subsets("OOD3Test")) == ["word_order", "both"]
    assert back.splits["OOD3Test"][-1].shift["before"] == rows[0].shift
    with pytest.raises(DataError, match="OOD3Test has a subset 'word_order'"):
        add_subset(longer, "OOD3Test", rows)
    with pytest.raises(DataError, match="has a sample_ID 'i1'"):
        add_subset(corpus, "OOD3Test", [replace(corpus.splits["IDTest"][0], subset="new")])


def test_golden_responses_have_to_be_given_where_the_old_ones_no_longer_answer(corpus, tmp_path):
    pool = characters_of_splits(corpus, ["OOD2Test"])
    rows = unseen_character(corpus.splits["IDTest"], pool, seed=0)
    add_subset(corpus, "OOD2Test", rows).to_json(tmp_path / "without.json")
    with pytest.raises(DataError, match="field 'agent_golden_response' is missing"):
        read_corpus(tmp_path / "without.json")
    assert read_corpus(tmp_path / "without.json", require_golden=False).splits["OOD2Test"][
        3:
    ] == tuple(rows)
    add_subset(corpus, "OOD2Test", with_golden(rows, ["a", "b", "c"])).to_json(
        tmp_path / "with.json"
    )
    read = read_corpus(tmp_path / "with.json").splits["OOD2Test"][3:]
    assert [(row.golden_response, row.shift["golden"]) for row in read] == [
        (text, "given") for text in "abc"
    ]


def test_sources_are_drawn_by_seed(corpus):
    assert draw_sources(corpus, "IDTest", None, 0) == corpus.splits["IDTest"]
    drawn = {
        tuple(x.sample_id for x in draw_sources(corpus, "IDTest", 2, seed)) for seed in range(20)
    }
    assert drawn == {("i1", "i2"), ("i1", "i3"), ("i2", "i3")}
    with pytest.raises(DataError, match="IDTest has 3 examples, not 4"):
        draw_sources(corpus, "IDTest", 4, 0)
    with pytest.raises(RecipeError, match="found 0"):
        draw_sources(corpus, "IDTest", 0, 0)


@pytest.mark.skipif(not SHARED.exists(), reason=f"the real dialogues are not there: {SHARED}")
def test_real_dialogues_can_be_shifted_each_way():
    corpus = read_corpus(SHARED)
    sources = draw_sources(corpus, "IDTest", 20, 0)
    donors = corpus.subsets("OOD1Test")["italian"]
    pool = characters_of_splits(corpus, ["OOD2Test"])
    in_distribution = corpus.splits["IDTrain"] + corpus.splits["IDTest"]
    longer = longer_turns(sources, in_distribution, turns=4, seed=0)
    assert all(
        len(row.dialogue) == len(source.dialogue) + 8
        for row, source in zip(longer, sources, strict=True)
    )
    assert all(sum(row.shift["moved"]) > 4 for row in word_order(sources, strength=0.5, seed=0))
    assert len(pair_with_language(sources, donors, language="italian", seed=0, tag="x")) == 20
    assert len({str(row.agent_character) for row in unseen_character(sources, pool, seed=0)}) > 10
