"""Reasonings that were written elsewhere are matched by sample_ID, in either layout."""

import json

import pytest

from coevolve.data.reasonings import read_reasonings
from coevolve.errors import DataError
from coevolve.worlds.corpus import world_corpus

TEXTS = ["one\n[Features] a", "", "drei"]


@pytest.fixture(scope="module")
def examples():
    return list(world_corpus(0, train=4, test=3).require("IDTest"))


def in_order(examples):
    return dict(zip([example.sample_id for example in examples], TEXTS, strict=True))


def rows(texts):
    return [
        {"sample_ID": sample_id, "reasoning": text, "log_prob": -1.0}
        for sample_id, text in texts.items()
    ]


@pytest.mark.parametrize(
    "layout", ["x.jsonl", "x.json", "[ckpt]-[FullSize]-SThought_dict.json", "a.json.tmp"]
)
def test_every_layout_gives_the_same(examples, tmp_path, layout):
    texts = in_order(examples[::-1])
    path = tmp_path / layout
    if layout == "x.jsonl":
        path.write_text("\n".join(map(json.dumps, rows(texts))))
    else:
        path.write_text(json.dumps(rows(texts) if layout == "x.json" else texts))
    found = read_reasonings(path, examples, examples)
    assert found == texts and list(found) == [example.sample_id for example in examples]
    assert list(read_reasonings(path, examples[1:2], examples)) == [examples[1].sample_id]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda texts: {**texts, "x": "y"}, "sample_ID 'x' is not in the data"),
        (
            lambda texts: dict(list(texts.items())[:1]),
            "lacks a reasoning for 2 of 3 samples: 'IDTest-",
        ),
        (
            lambda texts: {key: {"reasoning": "x"} for key in texts},
            "IDTest-000000 is an object; accepted is a string",
        ),
        (lambda texts: 3, "found a number; accepted is an object of sample_ID and text, or a list"),
        (
            lambda texts: rows(texts) + rows(texts),
            r"\[3\]: sample_ID 'IDTest-000000' was there before",
        ),
        (lambda texts: [{"sample_ID": "x"}], r"\[0\]: no reasoning there"),
        (lambda texts: ["x"], r"\[0\]: no sample_ID there"),
    ],
)
def test_what_cannot_be_matched_is_named(examples, tmp_path, content, message):
    (tmp_path / "x.json").write_text(json.dumps(content(in_order(examples))))
    with pytest.raises(DataError, match=rf"x\.json.*{message}"):
        read_reasonings(tmp_path / "x.json", examples, examples)
