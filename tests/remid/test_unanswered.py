"""An example that one model has not answered is left out for all, counted, and named in every
table.
"""

import csv
import io
from dataclasses import replace

import pytest

from coevolve.data.corpus import Corpus
from coevolve.data.responses import answered_by_all, read_partial_responses
from coevolve.files import write_jsonl
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.score import Scoring
from coevolve.remid.subsets import evaluated_examples
from coevolve.remid.table import (
    AVERAGE,
    remid_csv,
    remid_latex,
    remid_markdown,
    remid_rows,
)
from coevolve.remid.unanswered import count_unanswered

LEFT_OUT = {"i1", "i3", "g1"}
LABELS = [
    "IDTest (2 of 6 left out)",
    "german (1 of 4 left out)",
    "french",
    "word_composition",
    AVERAGE,
]


def remid_text(results, exact=None):
    """The tables in plain text, a row per line: Markdown without its escapes."""
    return remid_markdown(results, exact).replace("\\", "")


@pytest.fixture
def whole(corpus):
    """Every test example twice, so that something is left of each subset."""
    doubled = {
        split: tuple(
            x
            for given in examples
            for x in (given, replace(given, sample_id=f"{given.sample_id}b"))
        )
        for split, examples in corpus.splits.items()
    }
    return Corpus(doubled, "by hand")


@pytest.fixture
def partial(tmp_path, whole, responses):
    """`echo` lacks i1 and answers g1 with a blank; `persona` answers i3 twice."""
    examples = evaluated_examples(whole)
    rows = {
        name: [
            {"sample_ID": x.sample_id, "response": given[x.sample_id.rstrip("b")]} for x in examples
        ]
        for name, given in responses.items()
    }
    rows["echo"] = [
        {**row, "response": " "} if row["sample_ID"] == "g1" else row
        for row in rows["echo"]
        if row["sample_ID"] != "i1"
    ]
    rows["persona"].append({"sample_ID": "i3", "response": "once more"})
    for name, of_model in rows.items():
        write_jsonl(tmp_path / f"{name}.jsonl", of_model)
    return {name: read_partial_responses(tmp_path / f"{name}.jsonl", examples) for name in rows}


@pytest.fixture
def results(estimator, whole, partial):
    answered = answered_by_all(whole, partial)
    ids = [example.sample_id for example in evaluated_examples(answered)]
    given = {
        name: {sample_id: found.by_id[sample_id] for sample_id in ids}
        for name, found in partial.items()
    }
    results = evaluate_remid(estimator, answered, given, Scoring(negatives="all"))
    unanswered = count_unanswered(whole, answered, partial)
    return results.model_copy(update={"unanswered": unanswered})


def test_the_faults_are_counted_by_model_and_by_row(results):
    none = {"missing": [], "empty": [], "duplicated": []}
    assert results.unanswered.values() == {
        "rows": {"IDTest": {"left_out": 2, "of": 6}, "OOD1Test/german": {"left_out": 1, "of": 4}},
        "models": {
            "echo": none | {"missing": ["i1"], "empty": ["g1"]},
            "persona": none | {"duplicated": ["i3"]},
        },
    }
    assert [row.examples for row in results.subsets] == [4, 3, 4, 4]


def test_the_numbers_are_those_of_a_corpus_without_these_examples(
    results, estimator, whole, responses
):
    """The reduced corpus is made here without the code under test."""
    splits = {
        split: tuple(example for example in examples if example.sample_id not in LEFT_OUT)
        for split, examples in whole.splits.items()
    }
    reduced = Corpus(splits, "by hand")
    tests = [example.sample_id for example in evaluated_examples(reduced)]
    given = {
        name: {sample_id: texts[sample_id.rstrip("b")] for sample_id in tests}
        for name, texts in responses.items()
    }
    expected = evaluate_remid(estimator, reduced, given, Scoring(negatives="all"))
    assert results.model_copy(update={"unanswered": None}) == expected


def test_every_table_says_what_was_left_out_and_why(results):
    assert [row.label for row in remid_rows(results)[1]] == LABELS
    why = "echo has 1 missing, 1 empty; persona has 1 duplicated."
    for text in (
        remid_text(results),
        remid_latex(results),
        remid_markdown(results).replace("\\", ""),
    ):
        assert LABELS[0] in text and why in text
    lines = list(csv.DictReader(io.StringIO(remid_csv(results))))
    assert {(line["subset"], line["left_out"]) for line in lines} == {
        ("IDTest", "2"),
        ("german", "1"),
        ("french", "0"),
        ("word_composition", "0"),
        (AVERAGE, ""),
    }
    assert results.label("OOD1Test/german") == "OOD1Test/german (1 of 4 left out)"


def test_where_all_have_answered_everything_nothing_is_said(estimator, corpus, responses):
    results = evaluate_remid(estimator, corpus, responses)
    assert "left out" not in remid_text(results)
