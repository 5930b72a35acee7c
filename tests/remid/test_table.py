"""The table: its rows and columns, its plain-text form, and exact values beside the estimates."""

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from coevolve.data.corpus import Corpus
from coevolve.errors import DataError
from coevolve.information import density_ratio
from coevolve.remid import evaluate
from coevolve.remid.measures import PUBLISHED, RECOMMENDED
from coevolve.remid.pairs import PerContext
from coevolve.remid.score import Scoring
from coevolve.remid.table import (
    AVERAGE,
    CSV_COLUMNS,
    Value,
    difference_rows,
    remid_csv,
    remid_latex,
    remid_markdown,
    remid_rows,
    remid_table,
)
from coevolve.scoring.reasoning import Reasoning


def remid_text(results, exact=None):
    """The tables in plain text, a row per line: Markdown without its escapes."""
    return remid_markdown(results, exact).replace("\\", "")


def evaluate_remid(estimator, corpus, responses, *, measures=(), **scoring):
    scoring = Scoring(**scoring)
    return evaluate.evaluate_remid(estimator, corpus, responses, scoring, measures=measures)


@pytest.fixture
def results(corpus, estimator, responses):
    return evaluate_remid(estimator, corpus, responses, measures=[PUBLISHED], negatives="all")


@pytest.fixture
def two_measures(corpus, estimator, responses):
    return evaluate_remid(
        estimator, corpus, responses, measures=[RECOMMENDED, PUBLISHED], negatives="all"
    )


@pytest.fixture
def with_a_small_subset(corpus, estimator, responses):
    lone = Corpus(dict(corpus.splits) | {"OOD3Test": corpus.splits["OOD3Test"][:1]}, "lone")
    given = {
        name: {key: text for key, text in texts.items() if key != "w2"}
        for name, texts in responses.items()
    }
    return evaluate_remid(
        estimator,
        lone,
        given,
        measures=[RECOMMENDED, PUBLISHED],
        negatives="all",
        small_subsets="show",
    )


def test_a_fit_that_ended_at_its_lowest_temperature_is_spoken_of(
    corpus, estimator, responses, monkeypatch
):
    given = {"measures": [PUBLISHED, RECOMMENDED], "negatives": "all"}
    unmarked = evaluate_remid(estimator, corpus, responses, **given)
    assert "lowest temperature" not in remid_text(unmarked)
    fit = density_ratio.calibrate
    monkeypatch.setattr(
        density_ratio, "calibrate", lambda c: replace(fit(c), at_floor=c.examples == 3)
    )
    results = evaluate_remid(estimator, corpus, responses, **given)
    marked = [
        f"{name} in {row.row}"
        for row in results.subsets
        for name in ("golden", *results.models)
        if row.examples == 3
    ]
    assert marked
    assert f"information is underestimated: {', '.join(marked)}. There a" in remid_text(results)
    assert not any(row.golden.at_floor for row in results.subsets)


def numbers_of(row):
    return [value.number for value in row.values]


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
    by_row = {row.row: row.models for row in results.subsets}
    assert numbers_of(rows[0]) == [
        by_row["IDTest"]["echo"].remi,
        by_row["IDTest"]["persona"].remi,
    ]
    assert rows[1].values[0] == Value(
        by_row["OOD1Test/german"]["echo"].remid,
        by_row["OOD1Test/german"]["echo"].remid_error,
        significant=False,  # by CLUB, whose values are off
    )
    assert rows[-1].values[1].number == results.average["persona"].remid


def test_a_value_says_how_sure_it_is():
    assert str(Value(-0.0501, 0.02)) == "-0.050 ± 0.020"
    assert str(Value(0.5, 0.1, significant=True)) == "+0.500 ± 0.100*"
    assert str(Value(0.25)) == "+0.250"
    assert str(Value(None)) == "-"


@pytest.mark.parametrize(("p", "starred"), [(0.009, True), (0.011, False), (0.049, False)])
def test_a_star_is_a_loss_at_one_per_cent(corpus, estimator, responses, monkeypatch, p, starred):
    monkeypatch.setattr(
        "coevolve.remid.evaluate.holm_by_name", lambda given: dict.fromkeys(given, p)
    )
    found = evaluate_remid(estimator, corpus, responses, measures=[RECOMMENDED], negatives="all")
    of_german = found.subsets[1].models
    for name, lost in zip(of_german, (0.7, -0.7), strict=True):
        of_german[name] = of_german[name].model_copy(update={"remid": lost})
    values = remid_rows(found)[1][1].values
    assert all(value.significant is (starred and value.number > 0) for value in values)
    text = remid_text(found)
    line = next(line for line in text.splitlines() if line.startswith("| german"))
    losses = sum(value.number > 0 for value in values)
    assert losses and line.count("*") == (losses if starred else 0)
    assert "*: R-EMID above 0 at 1%" in text


def test_of_few_examples_no_number_is_said_to_be_sure(corpus, estimator, responses, monkeypatch):
    """Neither in the tables nor in the files; and of 3 there are enough in distribution."""
    monkeypatch.setattr("coevolve.information.uncertainty.LEAST", 3)
    found = evaluate_remid(
        estimator, corpus, responses, measures=[RECOMMENDED, PUBLISHED], negatives="all"
    )
    usual, *_ = found.subsets
    assert all(x.remi_low < x.remi < x.remi_high for x in usual.models.values())
    for measured in found.by_measure():
        for subset in measured.subsets[1:]:
            assert subset.golden.mutual_information_error is None
        for losses in (*(x.models for x in measured.subsets[1:]), measured.average):
            for numbers in losses.values():
                unsaid = ("remid_error", "remid_low", "remid_high", "chance_of_loss")
                assert {getattr(numbers, name) for name in unsaid} == {None}
                assert getattr(numbers, "holm_p", None) is None
        assert {pair.measure for pair in measured.comparisons} == {"remi"}
    lines = remid_text(found).splitlines()
    rows = [x for x in lines if x.startswith(("| german", "| french", "| word", f"| {AVERAGE}"))]
    assert len(rows) == 2 * 4 and not any("±" in row or "*" in row for row in rows)
    assert any("too few to say how sure" in line and "german" in line for line in lines)


def test_a_measure_that_is_off_by_a_factor_marks_nothing(two_measures):
    """Its intervals stand; but what it calls a loss may be none."""
    for measured in two_measures.by_measure():
        of_model = measured.subsets[1].models["echo"]
        sure = of_model.model_copy(update={"remid": 9.0, "holm_p": 0.0})
        assert measured.is_loss(sure) is (measured.form == "calibrated")
        assert (of_model.holm_p is None) is (of_model.chance_of_loss is None) is measured.off
        assert of_model.remid_low < of_model.remid < of_model.remid_high
    first, second = remid_text(two_measures).split("subset ")[1:3]
    assert "*: R-EMID above 0" in first and "off by a factor" not in first
    assert "*: R-EMID above 0" not in second and "off by a factor" in second


def test_exact_values_stand_beside_the_estimates(results):
    exact = {
        ("persona", "IDTest"): -0.5,
        ("persona", "OOD1Test/german"): 1.0,
        ("persona", "OOD1Test/french"): 2.0,
        ("persona", "OOD3Test/word_composition"): 6.0,
    }
    columns, rows = remid_rows(results, exact)
    assert columns == ["echo", "persona", "persona exact"]
    assert [row.values[2] for row in rows] == [
        Value(number) for number in (-0.5, 1.0, 2.0, 6.0, 3.0)
    ]


def test_a_truth_known_in_part_leaves_the_rest_open(results):
    _, rows = remid_rows(results, {("echo", "IDTest"): -0.5})
    assert [row.values[1].number for row in rows] == [-0.5, None, None, None, None]
    line = next(
        line
        for line in remid_text(results, {("echo", "IDTest"): -0.5}).splitlines()
        if "german" in line
    )
    assert line.split(" | ")[2] == "-"


@pytest.mark.parametrize("key", [("nobody", "IDTest"), ("echo", "german")])
def test_exact_values_of_unknown_rows_are_refused(results, key):
    with pytest.raises(
        DataError,
        match=r"accepted are the models echo, persona and the rows IDTest, OOD1Test/german",
    ):
        remid_rows(results, {key: 0.0})


def test_differences_between_models_are_shown_with_their_intervals(
    corpus, estimator, responses, results
):
    ((pair, remi, remid),) = difference_rows(results)
    by_measure = {row.measure: row for row in results.comparisons}
    assert pair == "echo - persona"
    for cell, measure in ((remi, "remi"), (remid, "remid")):
        row = by_measure[measure]
        assert cell == f"{row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
    one = evaluate_remid(estimator, corpus, {"echo": responses["echo"]}, measures=[PUBLISHED])
    assert difference_rows(one) == []
    many = {f"model {index}": responses["echo"] for index in range(5)} | {
        "persona": responses["persona"]
    }
    found = evaluate_remid(estimator, corpus, many, measures=[PUBLISHED])
    best = min(found.models, key=lambda name: found.average[name].remid)
    listed = difference_rows(found)
    assert len(listed) == 5 and all(best in pair for pair, *_ in listed)  # of 15 pairs


def test_text_says_what_it_shows(results):
    text = remid_text(results)
    table, caption, *_ = text.split("\n\n")
    assert len([line for line in table.splitlines() if "±" in line]) == 5
    assert "\x1b" not in text
    assert "R-EMI ↑: higher is better" in caption
    assert "lower is better" in caption
    assert "nats per token" in caption
    assert "CLUB over all mismatched pairs" in caption
    assert "standard error" in caption
    assert "greedy" in caption


def test_caption_names_pairs_and_protocol(corpus, estimator, responses):
    sampled = evaluate_remid(estimator, corpus, responses, seed=17)
    assert "up to 1,000 mismatched pairs per subset (seed 17)" in remid_text(sampled)
    settings = {
        "negatives": PerContext(1),
        "seed": 3,
        "reasoning": Reasoning("marginal", samples=4, seed=9),
    }
    text = remid_text(
        evaluate_remid(estimator, corpus, responses, measures=[RECOMMENDED], **settings)
    )
    assert "up to 1 mismatched pairs per context (seed 3)" in text
    assert "log mean over 4 sampled per context (seed 9)" in text
    assert "nats per response" in text and "lower bound" in text


def test_without_reasoning_it_is_emi(corpus, estimator, responses):
    results = evaluate_remid(estimator, corpus, responses, reasoning=Reasoning("none"))
    text = remid_text(results) + remid_csv(results)
    assert "EMID ↓" in text
    assert "R-EMI" not in text


def test_each_measure_has_its_table(two_measures):
    first, second = remid_text(two_measures).split("subset ")[1:]
    assert "nats per response" in first and "calibrated" in first
    assert "nats per token" in second and "CLUB" in second
    beside = {row.row: row.models for row in two_measures.beside[0].subsets}
    assert f"{beside['OOD1Test/german']['echo'].remid:+z.3f}" in second


def test_a_subset_without_numbers_says_why(with_a_small_subset):
    for part in remid_text(with_a_small_subset).split("subset ")[1:]:
        line = next(line for line in part.splitlines() if "word_composition" in line)
        assert "a single example" in line
        assert line.endswith(" | - | - |")
    lines = list(csv.DictReader(io.StringIO(remid_csv(with_a_small_subset))))
    small = [line for line in lines if line["subset"] == "word_composition"]
    assert len(small) == 4
    assert all(line["value"] == "" and "single example" in line["reason"] for line in small)


def test_csv_holds_every_number(two_measures):
    exact = {("echo", "IDTest"): -0.5}
    lines = list(csv.DictReader(io.StringIO(remid_csv(two_measures, exact))))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert len(lines) == 2 * 2 * (4 + 1)  # measures, models, subsets and the average
    found = {(line["form"], line["subset"], line["model"]): line for line in lines}
    numbers = two_measures.subsets[1].models["persona"]
    line = found["calibrated", "german", "persona"]
    assert float(line["value"]) == numbers.remid
    assert float(line["standard_error"]) == numbers.remid_error
    assert float(line["holm_p"]) == numbers.holm_p
    assert found["club", "german", "persona"]["holm_p"] == ""
    assert (line["measure"], line["shift"], line["examples"]) == ("R-EMID", "user", "2")
    assert float(found["calibrated", "IDTest", "echo"]["exact"]) == -0.5
    assert found["club", "IDTest", "echo"]["exact"] == ""
    average = two_measures.beside[0].average["echo"].remid
    assert float(found["club", AVERAGE, "echo"]["value"]) == average


def test_latex_is_one_tabular_per_measure_and_takes_names_literally(corpus, estimator, responses):
    given = {"a_b & 50%": responses["echo"], "c": responses["persona"]}
    latex = remid_latex(
        evaluate_remid(estimator, corpus, given, measures=[RECOMMENDED, PUBLISHED], negatives="all")
    )
    assert latex.count(r"\begin{tabular}{lrr}") == latex.count(r"\end{tabular}") == 2
    assert r"a\_b \& 50\%" in latex
    assert r"word\_composition & " in latex
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert all(line.count(" & ") == 2 for line in body if "pm" in line)
    assert not any(character in "\n".join(body) for character in "±↑↓")


def test_names_in_wide_characters_and_brackets_are_shown_as_they_are(corpus, estimator, responses):
    def renamed(split, old, new):
        return tuple(
            type(x)(**(vars(x) | {"subset": new})) if x.subset == old else x
            for x in corpus.splits[split]
        )

    splits = dict(corpus.splits) | {"OOD1Test": renamed("OOD1Test", "german", "德语[bold]")}
    results = evaluate_remid(
        estimator, Corpus(splits, "renamed"), {"a[red]b": responses["echo"]}, negatives=2
    )
    assert any("德语[bold]" in line for line in remid_text(results).splitlines())
    shown = io.StringIO()
    Console(file=shown, width=100).print(remid_table(results))
    assert "德语[bold]" in shown.getvalue()
    assert "a[red]b" in shown.getvalue()


def test_terminal_table_shows_the_same_numbers_as_the_text(two_measures):
    shown = io.StringIO()
    Console(file=shown, width=150).print(remid_table(two_measures, {("echo", "IDTest"): -0.5}))
    numbers = [word for word in shown.getvalue().split() if word[0] in "+-" and word[1:2].isdigit()]
    text = remid_text(two_measures, {("echo", "IDTest"): -0.5})
    expected = [word for word in text.split() if word[0] in "+-" and word[1:2].isdigit()]
    assert numbers[: len(expected)] == expected
    assert len(expected) == 11 + 10 + 4  # and the differences


def test_without_shifted_subsets_there_is_no_average_row(corpus, estimator, responses):
    only = Corpus({"IDTest": corpus.splits["IDTest"]}, "in distribution only")
    given = {"echo": {x.sample_id: responses["echo"][x.sample_id] for x in only.examples}}
    assert [row.label for row in remid_rows(evaluate_remid(estimator, only, given))[1]] == [
        "IDTest"
    ]
