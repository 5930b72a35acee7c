"""Rankings and ways of training against numbers that are known, and their tests against chance."""

import numpy as np
import pytest

from coevolve.compare.evaluate import against_truth, compare_models, ranked, row_name
from coevolve.compare.results import Compared, Figure, Place, Ranking
from coevolve.information.agreement import agreements
from coevolve.information.uncertainty import Drawn, Sure
from coevolve.remid.evaluate import MeasuredCorpus
from coevolve.remid.measures import Measure
from coevolve.remid.readers import Reading
from coevolve.remid.score import Scoring, score_corpus
from coevolve.remid.subsets import Subset
from tests.remid.conftest import corpus, estimator, responses, two_are_enough  # noqa: F401

CLUB = Measure("club", "per_token")


def mean_of(values, name=0):
    """A mean of examples as `Sure` has it, with nothing unseen."""
    values = np.asarray(values, dtype=float)
    shares = (values - values.mean()) / np.sqrt(values.size * (values.size - 1))
    return Sure(float(values.mean()), {name: Drawn(shares, values.size, 0.0)})


def test_models_that_are_alike_are_seldom_told_from_the_best():
    """Of six that differ by chance only, one seems best; without the correction for all pairs, half
    of the times some other would be told from it.
    """
    rng, told, alone = np.random.default_rng(0), 0, 0
    for _ in range(300):
        common = rng.normal(size=40)  # what makes an example easy for all
        numbers = {f"m{i}": mean_of(common + rng.normal(size=40)) for i in range(6)}
        first, *others = ranked(numbers, higher=True)
        told += any(place.p < 0.05 for place in others)
        pairs = [Sure.combined([1, -1], [numbers[first.name], numbers[x.name]]) for x in others]
        alone += any(pair.p < 0.05 for pair in pairs)
    assert told / 300 < 0.08 < 0.2 < alone / 300


def test_paired_differences_tell_what_each_interval_by_itself_does_not():
    rng = np.random.default_rng(1)
    common = 10 * rng.normal(size=50)
    numbers = {"a": mean_of(common), "b": mean_of(common + 1 + 0.5 * rng.normal(size=50))}
    first, second = ranked(numbers, higher=True)
    assert (first.name, second.name) == ("b", "a") and first.behind is None
    assert second.behind.high < 0 and second.p < 1e-6
    assert second.behind.value == pytest.approx(numbers["a"].value - numbers["b"].value)
    assert first.figure.low < second.figure.value  # which the intervals would not tell
    worst, _ = ranked(numbers, higher=False)
    assert worst.name == "a"


def test_the_same_model_twice_is_told_from_nothing():
    of_both = mean_of([1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0, 2.0, 9.0])
    first, second = ranked({"a": of_both, "b": of_both}, higher=True)
    assert first.name == "a" and second.p == 1 and second.behind.value == 0


def test_few_examples_tell_nothing(monkeypatch):
    monkeypatch.setattr("coevolve.information.uncertainty.LEAST", 8)
    first, second = ranked({"a": mean_of([1.0, 2.0]), "b": mean_of([7.0, 9.0])}, higher=True)
    assert first.name == "b" and second.p is None and second.figure.low is None


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_intervals_of_correlations_hold_the_true_one(rho):
    """Of a normal pair: Pearson's is rho, Spearman's 6/pi asin(rho/2), Kendall's 2/pi asin(rho)."""
    true = {"pearson": rho, "spearman": 6 / np.pi * np.arcsin(rho / 2)}
    true["kendall"] = 2 / np.pi * np.arcsin(rho)
    rng, held = np.random.default_rng(2), dict.fromkeys(true, 0)
    for trial in range(60):
        a, noise = rng.normal(size=(2, 80))
        b = rho * a + np.sqrt(1 - rho**2) * noise
        for name, found in agreements(a, b, resamples=120, seed=trial).items():
            held[name] += found.low <= true[name] <= found.high
    assert all(0.85 <= count / 60 <= 1 for count in held.values()), held


def test_kendall_is_the_share_of_pairs_in_order():
    found = agreements([1, 2, 3, 4], [1, 3, 2, 4], resamples=10)
    assert found["kendall"].value == pytest.approx((5 - 1) / 6)
    assert agreements([1, 1, 1], [1, 2, 3], resamples=10)["kendall"].value is None


def subset(split, tag, shift):
    return Subset(f"{split}/{tag}", split, tag, shift, ())


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (Subset("IDTest", "IDTest", "IDTest", None, ()), "in distribution"),
        (subset("OOD1Test", "german", "user"), "user shift, German"),
        (subset("OOD2Test", "literature", "character"), "character shift, literature"),
        (subset("OOD3Test", "turn_composition", "dialogue"), "dialogue shift, turn composition"),
        (subset("OOD1Test", "user", "user"), "user shift"),
    ],
)
def test_rows_have_the_names_of_the_public_leaderboard(of, name):
    assert row_name(of) == name


@pytest.fixture
def scored(corpus, estimator, responses):  # noqa: F811
    tests = [x for split in corpus.test_splits for x in corpus.splits[split]]
    golden = {x.sample_id: x.golden_response for x in tests}
    return score_corpus(estimator, corpus, {**responses, "golden": golden}, Scoring("all"))


MODELS = [
    Compared(name="echo", remedy="none", start=None, reward=None, responses="e"),
    Compared(name="persona", remedy="sft", start="echo", reward=None, responses="p"),
    Compared(name="golden", remedy="sft", start="echo", reward=None, responses="g"),
]


def test_rows_shifts_and_ways_are_means_of_the_same_numbers(scored):
    found = compare_models(scored, CLUB, "estimator", MODELS)
    measured = MeasuredCorpus(scored, CLUB, Reading(scored))
    loss = {name: np.array([x.value for x in of]) for name, of in measured.remid.items()}
    rows = {row.row: row for row in found["rows"]}
    assert list(rows) == [
        "in distribution",
        *("user shift, German", "user shift, French"),
        "dialogue shift, word composition",
        *("user shift, mean", "aggregate average"),
    ]
    value = {row: {x.name: x.figure.value for x in of.places} for row, of in rows.items()}
    for name in scored.models:
        assert value["in distribution"][name] == measured.remi[name][0].value
        assert value["user shift, mean"][name] == pytest.approx(loss[name][:2].mean())
        assert value["aggregate average"][name] == pytest.approx(loss[name].mean())
    assert value["in distribution"]["golden"] == 0  # R-EMI of golden responses
    for of in rows.values():
        ordered = [x.figure.value for x in of.places]
        assert ordered == sorted(ordered, reverse=of.measure == "remi")
    shifts = {x.name: x.figure.value for x in found["shifts"].places}
    every = np.array(list(loss.values()))
    assert shifts["user shift"] == pytest.approx(every[:, :2].mean())
    assert shifts["dialogue shift"] == pytest.approx(every[:, 2].mean())
    assert found["shifts"].places[0].figure.value == max(shifts.values())
    ways = {way.name: way for way in found["remedies"]}
    assert ways["none"].remi_gain is None and ways["sft"].models == ["persona", "golden"]
    gained = np.mean([loss["persona"].mean(), loss["golden"].mean()]) - loss["echo"].mean()
    assert ways["sft"].remid_gain.figure.value == pytest.approx(gained)
    start = measured.remi["echo"][0].value
    assert ways["sft"].remi_gain.figure.value == pytest.approx(ways["sft"].remi.value - start)
    assert found["readers"] == []


def test_estimates_are_held_against_the_truth():
    def row(name, measure, subset, pairs):
        places = [
            Place(name=f"m{i}", figure=Figure(value=a, error=0.1), exact=b)
            for i, (a, b) in enumerate(pairs)
        ]
        return Ranking(
            row=name, subset=subset, shift=None, measure=measure, examples=9, places=places
        )

    rows = [
        row("in distribution", "remi", "IDTest", [(-1.0, -2.0), (-2.0, -3.0), (-3.0, -4.0)]),
        # Too near to 0; not told from it; right; wrong.
        row("a", "remid", "OOD1Test/a", [(0.3, 0.02), (0.3, -0.15), (0.9, 0.5)]),
        row("b", "remid", "OOD1Test/b", [(-0.9, 0.5), (0.9, 0.5), (0.9, 0.6)]),
        row("aggregate average", "remid", None, [(0.3, 3.0), (0.2, 2.0), (0.1, 4.0)]),
    ]
    truth = against_truth(rows, Measure("calibrated"))
    assert (truth.models, truth.pairs, truth.told, truth.right) == (3, 6, 4, 3)
    assert truth.remi["spearman"].value == 1
    assert truth.remid["spearman"].value == pytest.approx(-0.5)
    exact = {place.name for place in rows[0].places}
    assert exact == {"m0", "m1", "m2"}


def test_exact_values_go_to_every_row_whose_subsets_have_one(scored):
    exact = {
        (name, row): number
        for number, name in enumerate(("echo", "persona"))
        for row in ("IDTest", "OOD1Test/german", "OOD1Test/french")
    }
    within = dict.fromkeys(exact, 0.25)
    found = compare_models(scored, CLUB, "estimator", MODELS, exact=exact, within=within)
    off = {place.within for row in found["rows"] for place in row.places if place.exact is not None}
    assert off == {0.25}
    known = {row.row: {x.name: x.exact for x in row.places} for row in found["rows"]}
    assert known["user shift, mean"] == {"echo": 0.0, "persona": 1.0, "golden": None}
    assert set(known["aggregate average"].values()) == {None}
    assert found["truth"].models == 2 and found["truth"].remi == {}
