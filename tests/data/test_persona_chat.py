"""Synthetic-Persona-Chat's CSV files, written here in their layout, become a corpus."""

import csv
import logging
from collections import Counter

import pytest

from coevolve.data.corpus import read_corpus
from coevolve.data.persona_chat import persona_chat_corpus
from coevolve.errors import DataError

COLUMNS = ["user 1 personas", "user 2 personas", "Best Generated Conversation"]


def conversation(turns, tag):
    lines = []
    for turn in range(1, turns + 1):
        lines += [
            f"User 1: {tag} asks, question number {turn}?",
            f"User 2: {tag} answers number {turn}: yes.",
        ]
    return "\n".join(lines)


def csv_row(text, user="I like tea.\nI sail.", agent="I am Ada.\n\nI code. "):
    return [user, agent, text]


def write_csv(path, rows, columns=COLUMNS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def folder(tmp_path):
    """Four usable training rows of seven; test rows of 8, 4 and 9 turns of each speaker."""
    good = [csv_row(conversation(5, f"train{index}")) for index in range(4)]
    bad = [
        csv_row(conversation(3, "short")),
        csv_row("User 2: I begin.\n" + conversation(5, "swapped")),
        csv_row("User 1: Hello\nand more of it\n" + conversation(5, "loose")),
    ]
    write_csv(tmp_path / "data" / "Synthetic-Persona-Chat_train.csv", [good[0], *bad, *good[1:]])
    write_csv(
        tmp_path / "data" / "Synthetic-Persona-Chat_valid.csv", [csv_row(conversation(4, "valid"))]
    )
    tests = [csv_row(conversation(turns, f"test{turns}")) for turns in (8, 4, 9)]
    write_csv(tmp_path / "data" / "Synthetic-Persona-Chat_test.csv", tests)
    return tmp_path


def test_the_second_speaker_is_the_agent(folder):
    example = persona_chat_corpus(folder).require("IDTrain")[0]
    assert example.to_row() == {
        "sample_ID": "IDTrain-00000",
        "subset_tag": "IDTrain",
        "user_persona": "I like tea.\nI sail.",
        "agent_character": {"persona": ["I am Ada.", "I code."]},
        "dialogue_context": [
            {"user_query": "train0 asks, question number 1?"},
            {"agent_response": "train0 answers number 1: yes."},
            {"user_query": "train0 asks, question number 2?"},
            {"agent_response": "train0 answers number 2: yes."},
            {"user_query": "train0 asks, question number 3?"},
            {"agent_response": "train0 answers number 3: yes."},
            {"user_query": "train0 asks, question number 4?"},
        ],
        "agent_golden_response": "train0 answers number 4: yes.",
    }


def test_the_splits_and_subsets(folder):
    corpus = persona_chat_corpus(folder)
    assert [example.sample_id for example in corpus.require("IDTrain")] == [
        f"IDTrain-{i:05d}" for i in range(4)
    ]
    assert len(corpus.require("IDTest")) == 3
    subsets = corpus.subsets("OOD3Test")
    assert {name: len(rows) for name, rows in subsets.items()} == {
        "turn_composition": 2,
        "word_composition": 3,
    }
    assert {len(example.dialogue) for example in subsets["turn_composition"]} == {15}
    assert subsets["turn_composition"][1].golden_response == "test9 answers number 8: yes."


def test_shuffling_keeps_the_words_and_is_fixed_by_the_seed(folder):
    corpus = persona_chat_corpus(folder, seed=1)
    shuffled = corpus.subsets("OOD3Test")["word_composition"]
    moved = 0
    for straight, mixed in zip(corpus.require("IDTest"), shuffled, strict=True):
        assert mixed.golden_response == straight.golden_response
        for before, after in zip(straight.dialogue, mixed.dialogue, strict=True):
            assert after.speaker == before.speaker
            assert Counter(after.text.split()) == Counter(before.text.split())
            moved += after.text != before.text
    # Of 21 turns of five distinct words, each of which stays as it is once in 120.
    assert moved > 15
    assert persona_chat_corpus(folder, seed=1).fingerprint == corpus.fingerprint
    assert persona_chat_corpus(folder, seed=2).fingerprint != corpus.fingerprint
    fewer = persona_chat_corpus(folder, seed=1, test_size=2)
    assert fewer.subsets("OOD3Test")["word_composition"] == shuffled[:2]


def test_what_is_left_out_is_counted_by_reason(folder, caplog):
    with caplog.at_level(logging.WARNING):
        persona_chat_corpus(folder)
    train, longer = (record.getMessage() for record in caplog.records)
    assert train.endswith(
        "3 of 7 conversations left out of IDTrain: 1 with fewer than 4 turns of each speaker, "
        "1 with speakers not in turn from User 1, 1 with a line without 'User 1:' or 'User 2:'"
    )
    assert longer.endswith(
        "1 of 3 conversations left out of turn_composition: 1 with fewer than 8 turns of each "
        "speaker"
    )


def test_a_conversation_that_breaks_off_later_is_used(folder):
    rows = [
        csv_row(conversation(4, "whole") + "\nUser 2: two turns\n(the end)"),
        csv_row("User 1:\n", agent=" "),
    ]
    write_csv(folder / "data" / "Synthetic-Persona-Chat_train.csv", rows)
    (example,) = persona_chat_corpus(folder).require("IDTrain")
    assert example.golden_response == "whole answers number 4: yes."


def test_sizes_and_the_training_file_are_chosen(folder):
    assert len(persona_chat_corpus(folder, train_size=2).require("IDTrain")) == 2
    (example,) = persona_chat_corpus(folder, train_file="valid").require("IDTrain")
    assert example.golden_response == "valid answers number 4: yes."
    assert len(persona_chat_corpus(folder, turns=2).require("IDTrain")[0].dialogue) == 3
    with pytest.raises(
        DataError, match=r"has 4 usable conversations for IDTrain .*, asked for were 5"
    ):
        persona_chat_corpus(folder, train_size=5)
    with pytest.raises(DataError, match="has 0 usable conversations for turn_composition"):
        persona_chat_corpus(folder, long_turns=10)
    with pytest.raises(DataError, match="accepted is 1 or more"):
        persona_chat_corpus(folder, train_size=0)


def test_it_is_a_corpus_like_any_other(folder, tmp_path):
    corpus = persona_chat_corpus(folder)
    corpus.to_json(tmp_path / "corpus.json")
    assert read_corpus(tmp_path / "corpus.json").fingerprint == corpus.fingerprint


def test_a_damaged_file_is_an_error(folder):
    path = folder / "data" / "Synthetic-Persona-Chat_test.csv"
    write_csv(path, [], columns=["user 1 personas", "chat"])
    with pytest.raises(
        DataError, match=r"test\.csv:1: column 'user 2 personas' is missing; the columns are"
    ):
        persona_chat_corpus(folder)
    write_csv(path, [csv_row(conversation(1, "x")), ["only one"]])
    with pytest.raises(DataError, match=r"test\.csv:7: the row that ends here has too few fields"):
        persona_chat_corpus(folder)
    write_csv(path, [[*csv_row(conversation(1, "x")), "extra"]])
    with pytest.raises(DataError, match="has too many fields; accepted are 3"):
        persona_chat_corpus(folder)
    path.write_text(",".join(COLUMNS) + '\n"a","b","never closed')
    with pytest.raises(DataError, match=r"test\.csv:2: not CSV"):
        persona_chat_corpus(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"holds no Synthetic-Persona-Chat_test\.csv"):
        persona_chat_corpus(folder)
