"""Responses are matched to examples by sample_ID, whatever their order, and never by guess."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.data.responses import (
    PartialResponses,
    answered_by_all,
    read_partial_responses,
    read_responses,
    write_responses,
)
from coevolve.errors import DataError
from coevolve.files import write_json, write_jsonl


@pytest.fixture(scope="module")
def examples(make_row):
    return [Example.from_row(make_row(name), name) for name in ("a", "b", "c")]


@given(order=st.permutations(range(3)), texts=st.lists(st.text(min_size=1), min_size=3, max_size=3))
def test_what_is_written_is_read_back_in_the_order_asked_for(
    tmp_path_factory, examples, order, texts
):
    path = tmp_path_factory.mktemp("responses") / "r.jsonl"
    texts = [f"{text.encode('utf-8', 'ignore').decode()}." for text in texts]
    write_responses(path, examples, texts)
    assert read_responses(path, [examples[index] for index in order]) == [
        texts[index] for index in order
    ]


@pytest.mark.parametrize("write", [write_jsonl, write_json])
def test_the_public_layouts_are_read(tmp_path, make_row, examples, write):
    path = tmp_path / ("r.jsonl" if write is write_jsonl else "r.json")
    nested = {
        "model_response": "Two.",
        "policy_name": "m",
        "aux_info": {"generated_text": "<x>Two."},
    }
    rows = [
        {"sample_ID": "c", "response": "Three."},
        make_row("b", model_response=nested),
        {"sample_ID": "a", "model_response": "One."},
    ]
    write(path, rows)
    assert read_responses(path, examples) == ["One.", "Two.", "Three."]


def rows_for(**responses):
    return [
        {"sample_ID": sample_id, "response": response} for sample_id, response in responses.items()
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            rows_for(b="x"),
            r"r\.jsonl: lacks a response for 2 of 3 samples: 'a', 'c'\. Add .*--missing drop",
        ),
        (rows_for(a="x", z="x"), r"r\.jsonl:2: sample_ID 'z' is not in the data \(3 samples\)"),
        (
            rows_for(a="x") + rows_for(a="x"),
            r"r\.jsonl:2: sample_ID 'a' was answered before, in .*r\.jsonl:1",
        ),
        (rows_for(a=" "), r"r\.jsonl:1 \(sample_ID 'a'\): response is empty"),
        (
            rows_for(a=None),
            r"r\.jsonl:1 \(sample_ID 'a'\): has no response; accepted is a 'response'",
        ),
        (rows_for(a="\ud83d"), r"\(sample_ID 'a'\): response has half of a surrogate pair"),
        ([{"sample_ID": "a"}], r"\(sample_ID 'a'\): has no response; accepted is a 'response'"),
        (
            [{"sample_ID": "a", "response": "x", "model_response": "x"}],
            r"has 'response' and 'model_response'",
        ),
        ([{"sample_ID": "a", "model_response": {}}], r"model_response is an object with no fields"),
        (
            [{"sample_ID": "a", "model_response": {"gpt": "x"}}],
            r"model_response is an object with 'gpt'",
        ),
        (
            [{"sample_ID": "a", "model_response": {"model_response": ""}}],
            r"model_response\.model_response is empty",
        ),
        ([{"sample_ID": "a", "model_response": 3}], r"model_response is a number"),
        ([{"sample_ID": 1.5, "response": "x"}], r"r\.jsonl:1: sample_ID is a number"),
        ([{"response": "x"}], r"r\.jsonl:1: field 'sample_ID' is missing; the row has 'response'"),
        ([["a", "x"]], r"r\.jsonl:1: found a list; accepted: an object"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, examples, rows, message):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        read_responses(path, examples)


def test_the_first_line_of_respond_is_no_response(tmp_path, examples):
    header = {"model": {"kind": "local"}, "prompt": "d0", "address": "here"}
    write_jsonl(tmp_path / "r.jsonl", [header, *rows_for(a="x", b="y", c="z")])
    assert read_responses(tmp_path / "r.jsonl", examples) == ["x", "y", "z"]
    write_jsonl(tmp_path / "r.jsonl", [*rows_for(a="x", b="y", c="z"), header])
    with pytest.raises(DataError, match=r"r\.jsonl:4: field 'sample_ID' is missing"):
        read_responses(tmp_path / "r.jsonl", examples)


def test_samples_without_a_usable_response_are_counted_by_their_fault(tmp_path, examples):
    write_jsonl(tmp_path / "r.jsonl", rows_for(a="x", b=" "))
    partial = read_partial_responses(tmp_path / "r.jsonl", examples)
    assert partial == PartialResponses({"a": "x"}, missing=("c",), empty=("b",), duplicated=())
    write_jsonl(tmp_path / "r.jsonl", rows_for(c="x", b="y", a="z") + rows_for(b="y"))
    partial = read_partial_responses(tmp_path / "r.jsonl", examples)
    assert partial == PartialResponses(
        {"a": "z", "c": "x"}, missing=(), empty=(), duplicated=("b",)
    )
    assert list(partial.by_id) == ["a", "c"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_for(a="x", z="x"), r"r\.jsonl:2: sample_ID 'z' is not in the data"),
        (rows_for(a="x", b=None), r"r\.jsonl:2 .*has no response"),
        (
            rows_for(a=" ", b="") + rows_for(c="x") + rows_for(c="x"),
            "none of 3 samples has a usable response",
        ),
    ],
)
def test_what_no_count_can_put_right_is_an_error(tmp_path, examples, rows, message):
    write_jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError, match=message):
        read_partial_responses(tmp_path / "r.jsonl", examples)


def test_the_examples_that_every_model_has_answered(make_row):
    def example(name, subset):
        return Example.from_row(make_row(name, subset_tag=subset), name)

    splits = {
        "IDTrain": (example("t", "x"),),
        "IDTest": (example("a", "x"), example("b", "x")),
        "OOD1Test": (example("c", "german"), example("d", "german"), example("e", "french")),
    }

    def partial(*ids):
        return PartialResponses(dict.fromkeys(ids, "text"), (), (), ())

    corpus = Corpus(splits, "by hand")
    common = answered_by_all(
        corpus, {"m": partial("a", "b", "c", "e"), "n": partial("b", "c", "d", "e")}
    )
    assert [example.sample_id for example in common.examples] == ["t", "b", "c", "e"]
    with pytest.raises(
        DataError,
        match=r"by hand: no example of OOD1Test/french was answered by every model \(m, n\)",
    ):
        answered_by_all(corpus, {"m": partial("a", "b", "c", "e"), "n": partial("b", "c", "d")})


def test_a_file_that_holds_no_rows_is_an_error(tmp_path, examples):
    (tmp_path / "r.jsonl").write_text('{"sample_ID": "a", "response": "x"}\n{"sample_ID"\n')
    with pytest.raises(DataError, match=r"r\.jsonl:2: not JSON"):
        read_responses(tmp_path / "r.jsonl", examples)
    (tmp_path / "r.json").write_text('{"IDTrain": []}')
    with pytest.raises(DataError, match="found an object; accepted is a list of rows"):
        read_responses(tmp_path / "r.json", examples)
    (tmp_path / "r.json").write_text('{"a": "x"}')
    with pytest.raises(DataError, match="found an object; accepted is a list of rows"):
        read_responses(tmp_path / "r.json", examples)


def test_nothing_is_written_that_could_not_be_read_back(tmp_path, examples):
    with pytest.raises(DataError, match="2 responses for 3 examples"):
        write_responses(tmp_path / "r.jsonl", examples, ["x", "y"])
    with pytest.raises(DataError, match="sample_ID 'b': response is empty"):
        write_responses(tmp_path / "r.jsonl", examples, ["x", "", "z"])
    assert list(tmp_path.iterdir()) == []
