"""The table: its rows and columns, its plain-text form, and exact values beside the estimates."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from coevolve.data.corpus import Corpus
from coevolve.errors import DataError
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.table import AVERAGE, remid_rows, remid_table, remid_text


@pytest.fixture
def results(corpus, estimator, responses):
    return evaluate_remid(estimator, corpus, responses, negatives="all")


def test_rows_are_the_leaderboards(results):
    columns, rows = remid_rows(results)
    assert columns == ["echo", "persona"]
    assert [(row.heading, row.label) for row in rows] == [
        ("in distribution, R-EMI ↑", "IDTest"),
        ("user shift, R-EMID ↓", "german"),
        ("user shift, R-EMID ↓", "french"),
        ("dialogue shift, R-EMID ↓", "word_composition"),
        ("over all shifted subsets, R-EMID ↓", AVERAGE),
    ]
    by_row = {row["row"]: row["models"] for row in results["subsets"]}
    assert rows[0].values == (by_row["IDTest"]["echo"]["remi"], by_row["IDTest"]["persona"]["remi"])
    assert rows[1].values[0] == by_row["OOD1Test/german"]["echo"]["remid"]
    assert rows[-1].values[1] == results["average"]["persona"]["remid"]


def test_exact_values_stand_beside_the_estimates(results):
    exact = {
        ("persona", "IDTest"): -0.5,
        ("persona", "OOD1Test/german"): 1.0,
        ("persona", "OOD1Test/french"): 2.0,
        ("persona", "OOD3Test/word_composition"): 6.0,
    }
    columns, rows = remid_rows(results, exact)
    assert columns == ["echo", "persona", "persona exact"]
    assert [row.values[2] for row in rows] == [-0.5, 1.0, 2.0, 6.0, 3.0]


def test_a_truth_known_in_part_leaves_the_rest_open(results):
    _, rows = remid_rows(results, {("echo", "IDTest"): -0.5})
    assert [row.values[1] for row in rows] == [-0.5, None, None, None, None]
    line = next(line for line in remid_text(results, {("echo", "IDTest"): -0.5}).splitlines() if "german" in line)
    assert line.split()[2] == "-"


@pytest.mark.parametrize("key", [("nobody", "IDTest"), ("echo", "german")])
def test_exact_values_of_unknown_rows_are_refused(results, key):
    with pytest.raises(DataError, match=r"accepted are the models echo, persona and the rows IDTest, OOD1Test/german"):
        remid_rows(results, {key: 0.0})


def test_text_is_aligned_and_says_what_it_shows(results):
    text = remid_text(results)
    table, caption = text.rstrip("\n").split("\n\n")
    numbers = [line for line in table.splitlines() if line.startswith("  ")]
    assert len(numbers) == 5
    assert len({cell_len(line) for line in numbers}) == 1
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "\x1b" not in text
    assert "R-EMI ↑: higher is better" in caption
    assert "lower is better" in caption
    assert "nats per token" in caption
    assert "CLUB over all mismatched pairs" in caption


def test_caption_names_the_sample(corpus, estimator, responses):
    text = remid_text(evaluate_remid(estimator, corpus, responses, seed=17, normalisation="per_response"))
    assert "up to 1,000 mismatched pairs per subset (seed 17)" in text
    assert "nats per response" in text


def test_names_in_wide_characters_and_brackets_are_shown_as_they_are(corpus, estimator, responses):
    def renamed(split, old, new):
        return tuple(type(x)(**(vars(x) | {"subset": new})) if x.subset == old else x for x in corpus.splits[split])

    splits = dict(corpus.splits) | {"OOD1Test": renamed("OOD1Test", "german", "德语[bold]")}
    results = evaluate_remid(estimator, Corpus(splits, "renamed"), {"a[red]b": responses["echo"]})
    lines = [line for line in remid_text(results).splitlines() if line.startswith("  ")]
    assert any("德语[bold]" in line for line in lines)
    assert len({cell_len(line) for line in lines}) == 1
    shown = io.StringIO()
    Console(file=shown, width=100).print(remid_table(results))
    assert "德语[bold]" in shown.getvalue()
    assert "a[red]b" in shown.getvalue()


def test_terminal_table_shows_the_same_numbers_as_the_text(results):
    shown = io.StringIO()
    Console(file=shown, width=120).print(remid_table(results, {("echo", "IDTest"): -0.5}))
    numbers = [word for word in shown.getvalue().split() if word[0] in "+-" and word[1:2].isdigit()]
    text = remid_text(results, {("echo", "IDTest"): -0.5})
    assert numbers == [word for word in text.split() if word[0] in "+-" and word[1:2].isdigit()]
    assert len(numbers) == 11


def test_without_shifted_subsets_there_is_no_average_row(corpus, estimator, responses):
    only = Corpus({"IDTest": corpus.splits["IDTest"]}, "in distribution only")
    given = {"echo": {x.sample_id: responses["echo"][x.sample_id] for x in only.examples}}
    assert [row.label for row in remid_rows(evaluate_remid(estimator, only, given))[1]] == ["IDTest"]
