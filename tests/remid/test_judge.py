"""Correlations with a judge: against literal definitions, and every way in which a file of scores
can be wrong.
"""

import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from coevolve.errors import DataError, RecipeError
from coevolve.files import write_json, write_jsonl
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.grid import grid_table
from coevolve.remid.judge import judge_correlations, judge_grid, read_judge_scores
from coevolve.remid.results import (
    Beside,
    ChosenReasoning,
    OfModel,
    RemidResults,
    SubsetNumbers,
    SubsetResults,
)
from coevolve.remid.score import Scoring

MODELS = [f"m{index}" for index in range(5)]
ROWS = ["IDTest", "OOD1Test/german", "OOD1Test/french", "OOD3Test/word_order"]
SAMPLES = {
    "i1": "IDTest",
    "i2": "IDTest",
    "g1": "OOD1Test/german",
    "g2": "OOD1Test/german",
    "f1": "OOD1Test/french",
}


MAIN = "R-EMI, calibrated per_response"
BESIDE = "R-EMI, club per_token"
PLAIN = "EMI, calibrated per_response"


def rows_of(values, model_of_rows):
    """Rows of results whose R-EMI is an array (model, row); NaN stands for a subset without
    numbers.
    """
    return [
        model_of_rows.model_construct(
            row=row,
            golden=None,
            models={
                model: None
                if np.isnan(values[i, j])
                else OfModel.model_construct(remi=float(values[i, j]))
                for i, model in enumerate(MODELS)
            },
        )
        for j, row in enumerate(ROWS)
    ]


def results_of(values, beside=None, kind="greedy"):
    club = {"form": "club", "normalisation": "per_token"}
    return RemidResults.model_construct(
        models=MODELS,
        reasoning=ChosenReasoning(kind=kind),
        form="calibrated",
        normalisation="per_response",
        subsets=rows_of(values, SubsetResults),
        beside=[]
        if beside is None
        else [Beside.model_construct(**club, subsets=rows_of(beside, SubsetNumbers))],
    )


def scores_of(values):
    return {
        (model, row): float(values[i, j])
        for i, model in enumerate(MODELS)
        for j, row in enumerate(ROWS)
    }


@pytest.fixture
def measured():
    rng = np.random.default_rng(3)
    return rng.normal(size=(2, len(MODELS), len(ROWS)))


def text_of(comparison):
    console = Console(file=io.StringIO(), width=160)
    console.print(grid_table(judge_grid(comparison)))
    return console.file.getvalue()


def ranks(values):
    return np.array([sum(other < value for other in values) for value in values], dtype=float)


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


def kendall(x, y):
    signs = [
        np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
        for i, j in itertools.combinations(range(len(x)), 2)
    ]
    return np.mean(signs)


def test_values_are_the_definitions(measured):
    remi, judged = measured
    found = judge_correlations(results_of(remi), scores_of(judged), resamples=20).measures[MAIN]
    x, y = remi.T.ravel(), judged.T.ravel()
    assert found["pearson"].value == pytest.approx(pearson(x, y))
    assert found["spearman"].value == pytest.approx(pearson(ranks(x), ranks(y)))
    assert found["kendall"].value == pytest.approx(kendall(x, y))


def test_a_judge_who_agrees_or_disagrees_altogether(measured):
    remi = measured[0]
    agreeing = judge_correlations(results_of(remi), scores_of(2 * remi + 1), resamples=50)
    opposite = judge_correlations(results_of(remi), scores_of(-remi), resamples=50)
    for name in ("pearson", "spearman", "kendall"):
        assert agreeing.measures[MAIN][name].low == pytest.approx(1)
        assert opposite.measures[MAIN][name].high == pytest.approx(-1)


def test_a_monotone_judge_is_seen_by_ranks_alone(measured):
    remi = measured[0]
    found = judge_correlations(
        results_of(remi), scores_of(np.exp(4 * remi)), resamples=20
    ).measures[MAIN]
    assert found["spearman"].value == pytest.approx(1) and found["kendall"].value == pytest.approx(
        1
    )
    assert found["pearson"].value < 0.95


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """20 independent pairs of correlated normals with a known correlation, many times over."""
    rng = np.random.default_rng(0)
    truth, covered, repetitions = 0.6, 0, 60
    for _ in range(repetitions):
        x, noise = rng.normal(size=(2, len(MODELS), len(ROWS)))
        y = truth * x + np.sqrt(1 - truth**2) * noise
        interval = judge_correlations(
            results_of(x), scores_of(y), level=0.9, resamples=59
        ).measures[MAIN]
        covered += interval["pearson"].low <= truth <= interval["pearson"].high
    # Percentile intervals of 20 pairs are a little narrow.
    assert 0.75 <= covered / repetitions <= 0.98


def test_plain_emi_and_what_stands_beside_are_compared_too(measured):
    remi, judged = measured
    plain = results_of(remi - judged, kind="none")
    comparison = judge_correlations(
        results_of(remi, remi + judged), scores_of(judged), plain=plain, resamples=30, seed=4
    )
    assert list(comparison.measures) == [MAIN, BESIDE, PLAIN]
    only = judge_correlations(results_of(remi), scores_of(judged), resamples=30, seed=4)
    assert only.measures == {MAIN: comparison.measures[MAIN]}  # the resamples are the same
    assert only != judge_correlations(results_of(remi), scores_of(judged), resamples=30, seed=5)
    assert (
        json.loads(json.dumps(comparison.values()))["measures"][PLAIN]["kendall"]["undefined"] == 0
    )
    assert "R-EMI" in text_of(comparison) and "20 model x subset pairs" in text_of(comparison)
    plain = plain.model_copy(update={"models": MODELS[1:]})
    with pytest.raises(DataError, match="without reasoning are of other models or rows"):
        judge_correlations(results_of(remi), scores_of(judged), plain=plain)


def test_the_results_of_an_evaluation_are_compared(corpus, estimator, responses):
    results = evaluate_remid(estimator, corpus, responses, Scoring(negatives="all"))
    scores = {
        (model, row.row): row.models[model].remi
        for row in results.subsets
        for model in results.models
    }
    comparison = judge_correlations(results, scores, resamples=20)
    first = next(iter(comparison.measures.values()))
    assert comparison.pairs == len(scores) and first["pearson"].value == pytest.approx(1)


def test_pairs_without_a_score_or_without_numbers_are_counted(measured):
    remi, judged = measured
    scores = scores_of(judged)
    del scores["m3", "OOD1Test/german"]
    remi[:, 2] = np.nan
    comparison = judge_correlations(results_of(remi), scores, resamples=20)
    assert (comparison.pairs, comparison.unscored) == (14, (("m3", "OOD1Test/german"),))
    assert comparison.unmeasured == tuple((model, "OOD1Test/french") for model in MODELS)
    assert "without score: 1 pairs, the first m3 on OOD1Test/german" in text_of(comparison)
    assert "without numbers: 5 pairs, the first m0 on OOD1Test/french" in text_of(comparison)


def test_a_judge_who_always_says_the_same_gives_no_number_and_the_reason(measured):
    comparison = judge_correlations(
        results_of(measured[0]), scores_of(np.ones((5, 4))), resamples=20
    )
    assert comparison.measures[MAIN]["pearson"].value is None
    assert "undefined" in text_of(comparison) and "the same for every pair" in text_of(comparison)
    assert "nan" not in text_of(comparison)


def test_resamples_without_a_value_are_counted(measured):
    """Of three pairs, one resample in nine repeats a single pair."""
    scores = dict(list(scores_of(measured[1]).items())[:3])
    comparison = judge_correlations(results_of(measured[0]), scores, resamples=900)
    assert 60 < comparison.measures[MAIN]["pearson"].undefined < 140
    assert "resamples had the same value" in text_of(comparison)


def test_what_cannot_be_compared_is_refused(measured):
    remi, judged = measured
    results, scores = results_of(remi), scores_of(judged)
    with pytest.raises(
        DataError, match="scores model 'm9' on 'IDTest'; accepted are the models m0, m1"
    ):
        judge_correlations(results, {**scores, ("m9", "IDTest"): 1.0})
    with pytest.raises(
        DataError, match="2 of 20 model x subset pairs have a judge's score and numbers"
    ):
        judge_correlations(results, dict(list(scores.items())[:2]))
    with pytest.raises(RecipeError, match=r"level is 1\.0"):
        judge_correlations(results, scores, level=1.0)
    with pytest.raises(RecipeError, match="resamples is 0"):
        judge_correlations(results, scores, resamples=0)


def read(path):
    return read_judge_scores(path, MODELS, ROWS, SAMPLES)


def test_scores_of_subsets_are_read_as_they_are(tmp_path):
    rows = [
        {"model": "m0", "subset": "IDTest", "score": 4},
        {"model": "m1", "subset": "OOD1Test/german", "score": 2.5},
    ]
    write_json(tmp_path / "scores.json", rows)
    assert read(tmp_path / "scores.json") == {("m0", "IDTest"): 4.0, ("m1", "OOD1Test/german"): 2.5}


def test_scores_of_samples_are_averaged_over_judges_then_samples(tmp_path):
    rows = [
        {"sample_ID": "i1", "model": "m0", "score": 1, "judge": "ann"},
        {"sample_ID": "i1", "model": "m0", "score": 3, "judge": "bob"},
        {"sample_ID": "i2", "model": "m0", "score": 5, "judge": "ann"},
        {"sample_ID": "f1", "model": "m0", "score": 0, "judge": "ann"},
    ]
    write_jsonl(tmp_path / "scores.jsonl", rows)
    assert read(tmp_path / "scores.jsonl") == {
        ("m0", "IDTest"): 3.5,
        ("m0", "OOD1Test/french"): 0.0,
    }


GOOD = {"model": "m0", "subset": "IDTest", "score": 4}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "model": "m9"}, "model 'm9' is not in the results: m0, m1"),
        (
            {**GOOD, "subset": "german"},
            "subset 'german' is not in the results: IDTest, OOD1Test/german",
        ),
        (
            {"model": "m0", "sample_ID": "i1", "score": 1},
            "found 'model', 'sample_ID', 'score'; .*all rows alike",
        ),
        ({**GOOD, "sample_ID": "i1"}, "found 'model', 'subset', 'score', 'sample_ID'"),
        ({**GOOD, "score": True}, "score is True; accepted is a number"),
        ({**GOOD, "score": "4"}, "score is '4'"),
        ({**GOOD, "score": float("nan")}, "NaN is no number of JSON"),
        ({"model": "m0", "subset": "IDTest"}, "found 'model', 'subset'; accepted"),
        ({**GOOD, "note": "x"}, "found 'model', 'subset', 'score', 'note'"),
        ({**GOOD, "model": "m1"}, "'IDTest' of 'm1' has a score already"),
        ([1], "found a list"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, row, message):
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in ({**GOOD, "model": "m1"}, row)))
    with pytest.raises(DataError, match=rf"scores\.jsonl:2: .*{message}"):
        read(path)


@pytest.mark.parametrize("first", [{"model": "m0", "score": 1}, {**GOOD, "sample_ID": "i1"}, "x"])
def test_a_file_that_scores_neither_subsets_nor_samples_is_refused(tmp_path, first):
    (tmp_path / "scores.json").write_text(json.dumps([first]))
    with pytest.raises(DataError, match=r"scores\.json\[0\]: found .*; accepted is an object"):
        read(tmp_path / "scores.json")
    write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="has no scores"):
        read(tmp_path / "empty.jsonl")


def test_an_unknown_sample_is_named(tmp_path):
    write_jsonl(tmp_path / "scores.jsonl", [{"sample_ID": "zz", "model": "m0", "score": 1}])
    with pytest.raises(DataError, match=r"scores\.jsonl:1: sample_ID 'zz' is not in the results"):
        read(tmp_path / "scores.jsonl")
