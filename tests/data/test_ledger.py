"""A ledger on disk: begun, gone on with, and refused where its answers come from something else."""

import json

import pytest

from coevolve.data.example import Example
from coevolve.data.ledger import Ledger
from coevolve.errors import DataError

HEADER = {"teacher": {"kind": "a", "seed": 1}, "prompts": "p", "address": "here"}
COMPARED = ("teacher", "prompts")


def fingerprint(example):
    return example.user_persona


def read_row(row, where):
    return row["sample_ID"], row["answer"]


@pytest.fixture
def examples(make_row):
    return [Example.from_row(make_row(name), name) for name in ("a", "b")]


def opened(path, examples, header=HEADER):
    return Ledger(path, header, COMPARED, examples, read_row, fingerprint)


def append(path, *examples):
    ledger = opened(path, examples)
    with ledger.adding() as add:
        for example in examples:
            add(example.sample_id, answer=f"of {example.sample_id}")


def answers(path, examples, header=HEADER):
    return opened(path, examples, header).answers


@pytest.mark.parametrize("ending", ["\n", "", '\n{"sample_ID": "b", "ans'])
def test_whatever_was_written_last_the_file_goes_on(tmp_path, examples, ending):
    path = tmp_path / "ledger.jsonl"
    assert answers(path, examples) == {}
    path.write_text(path.read_text().rstrip("\n") + ending)
    assert answers(path, examples) == {}
    append(path, *examples)
    assert answers(path, examples) == {"a": "of a", "b": "of b"}
    assert [set(json.loads(line)) for line in path.read_text().splitlines()[1:]] == [
        {"sample_ID", "answer", "example"}
    ] * 2


def test_a_line_without_its_end_is_kept_if_it_is_whole(tmp_path, examples):
    path = tmp_path / "ledger.jsonl"
    answers(path, examples)
    append(path, *examples)
    path.write_text(path.read_text().rstrip("\n"))
    assert answers(path, examples) == {"a": "of a", "b": "of b"}


def test_what_is_refused_is_left_as_it_is(tmp_path, examples):
    """A file of somebody else's, or of another teacher, whose last line has no end."""
    path = tmp_path / "ledger.jsonl"
    for text in (
        '{"sample_ID": "a"}\n{"sample_ID": "b", "resp',
        json.dumps({**HEADER, "prompts": "q"}) + '\n{"torn',
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=r"ledger\.jsonl:1"):
            answers(path, examples)
        assert path.read_text() == text


def test_what_is_not_compared_may_differ(tmp_path, examples):
    path = tmp_path / "ledger.jsonl"
    answers(path, examples)
    append(path, examples[0])
    assert answers(path, examples, {**HEADER, "address": "there"}) == {"a": "of a"}
    with pytest.raises(
        DataError, match=r"ledger.jsonl:1: .*other teacher: seed was 1 and is now 2"
    ):
        answers(path, examples, {**HEADER, "teacher": {"kind": "a", "seed": 2}})
    with pytest.raises(DataError, match=r"other prompts: found 'p', now 'q'"):
        answers(path, examples, {**HEADER, "prompts": "q"})
    with pytest.raises(DataError, match="does not say which model wrote the file"):
        answers(path, examples, {"model": {}})


def test_an_answer_is_about_the_example_as_it_was(tmp_path, examples, make_row):
    path = tmp_path / "ledger.jsonl"
    answers(path, examples)
    append(path, *examples)
    changed = Example.from_row(make_row("b", user_persona="I like coffee."), "b")
    with pytest.raises(DataError, match=r"ledger.jsonl:3: the example 'b' has changed since"):
        answers(path, [examples[0], changed])
    assert answers(path, examples[:1]) == {"a": "of a"}
    append(path, examples[0])
    with pytest.raises(DataError, match=r"ledger.jsonl:4: 'a' is in line 2 too"):
        answers(path, examples)
