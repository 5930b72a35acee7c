"""Standard errors, intervals and tests: against loops, against the jackknife, and against what
repetition shows.
"""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.emi import difference, emi, emid
from coevolve.information.estimate import mutual_information
from coevolve.information.influence import Influence
from coevolve.information.uncertainty import Drawn, Sure, holm, standard_error
from coevolve.scoring.scores import Scores


def contrast_of(matrix, pairs=None):
    if pairs is None:
        return Contrast.from_matrix(Scores(matrix, np.array(1)), "per_response")
    return Contrast(
        matrix.diagonal(),
        matrix[pairs[:, 0], pairs[:, 1]],
        pairs,
        np.ones(len(matrix)),
        "per_response",
    )


def gaussian(count, rng, noise):
    """log q(y_j | x_i), (N, N), of golden responses and of a noisier model's; q is the true golden
    conditional.
    """
    x = rng.standard_normal((count, 2))
    contrasts = []
    for spread in (0.3, noise):
        y = x + spread * rng.standard_normal((count, 2))
        contrasts.append(-0.5 * ((y[None, :] - x[:, None]) ** 2).sum(axis=-1) / 0.3**2)
    return contrasts


def random_pairs(count, number, rng):
    every = np.argwhere(~np.eye(count, dtype=bool))
    return every[np.sort(rng.choice(len(every), number, replace=False))]


@pytest.mark.parametrize("further", [0, 3])
def test_the_variance_is_the_sum_over_entries_that_share_an_example(further):
    """Or a context of no response, of which there are 3 after the 7 examples."""
    rng = np.random.default_rng(0)
    pairs = random_pairs(7, 20, rng)
    pairs[:further, 0] = 7 + np.arange(further)
    influence = Influence(rng.standard_normal(7), rng.standard_normal(20), pairs)
    entries = [((i, i), value) for i, value in enumerate(influence.matched)]
    entries += [
        (tuple(pair), value)
        for pair, value in zip(pairs.tolist(), influence.mismatched, strict=True)
    ]
    total = sum(a * b for ends, a in entries for others, b in entries if set(ends) & set(others))
    assert standard_error(influence) == pytest.approx(np.sqrt(total / 7**2 * 7 / 6))


@pytest.mark.parametrize(
    "form", ["club", "fidelity", "calibrated", "barber_agakov", "leave_one_out", "info_nce"]
)
def test_close_to_the_jackknife(form):
    rng = np.random.default_rng(1)
    golden, model = gaussian(60, rng, noise=0.6)
    found = standard_error(emi(contrast_of(model), contrast_of(golden), form).influence)

    def without(index):
        kept = np.delete(np.arange(60), index)
        golden_kept, model_kept = (
            contrast_of(matrix[np.ix_(kept, kept)]) for matrix in (golden, model)
        )
        return emi(model_kept, golden_kept, form).value

    values = np.array([without(index) for index in range(60)])
    jackknife = np.sqrt(59 / 60 * np.sum((values - values.mean()) ** 2))
    assert found == pytest.approx(jackknife, rel=0.2)


@pytest.mark.parametrize(("form", "pairs"), [("club", None), ("calibrated", None), ("club", 150)])
def test_it_is_the_spread_that_repetition_shows(form, pairs):
    rng = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(120):
        golden, model = gaussian(50, rng, noise=0.5)
        chosen = None if pairs is None else random_pairs(50, pairs, rng)
        found = emi(contrast_of(model, chosen), contrast_of(golden, chosen), form)
        values.append(found.value)
        errors.append(standard_error(found.influence))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


@pytest.mark.parametrize("form", ["club", "info_nce", "leave_one_out", "barber_agakov"])
def test_of_the_golden_information_by_itself_it_is_the_spread_too(form):
    """Nothing cancels here: what a response owes to its own context among the averaged ones
    counts.
    """
    rng = np.random.default_rng(7)
    found = [
        mutual_information(contrast_of(gaussian(50, rng, noise=0.5)[0]), form) for _ in range(200)
    ]
    spread = np.std([each.value for each in found])
    assert np.mean([standard_error(each.influence) for each in found]) == pytest.approx(
        spread, rel=0.15
    )


def test_a_pairing_cancels_what_both_share():
    rng = np.random.default_rng(3)
    golden, model = gaussian(80, rng, noise=0.31)
    easy = 5 * rng.standard_normal((80, 1))  # contexts differ widely, for both alike
    paired = emi(contrast_of(model + easy), contrast_of(golden + easy), "club")
    alone = [mutual_information(contrast_of(matrix + easy), "club") for matrix in (golden, model)]
    assert standard_error(paired.influence) < 0.7 * np.hypot(
        *(standard_error(each.influence) for each in alone)
    )


def sure_of(estimate, subset=0):
    return Sure.of(estimate.value, estimate.influence, estimate.reach, subset)


@pytest.mark.parametrize("pairs", [None, 140])
def test_the_shares_of_the_examples_add_up_to_the_standard_error(pairs):
    rng = np.random.default_rng(4)
    golden, model = gaussian(70, rng, noise=0.5)
    chosen = pairs and random_pairs(70, pairs, rng)
    found = emi(contrast_of(model, chosen), contrast_of(golden, chosen), "club")
    sure = sure_of(found)
    assert sure.error == pytest.approx(standard_error(found.influence), rel=1e-12)
    assert sure.drawn[0].shares.sum() == pytest.approx(0, abs=1e-12)
    assert sure.drawn[0].examples == 70


def test_without_a_loss_the_intervals_hold_0_and_the_tests_seldom_fire():
    rng = np.random.default_rng(5)
    held, fired, trials = 0, 0, 200
    for _ in range(trials):
        sides = [gaussian(40, rng, noise=0.6) for _ in range(2)]
        p, q = (emi(contrast_of(model), contrast_of(golden), "club") for golden, model in sides)
        loss = Sure.combined([1, -1], [sure_of(p, 0), sure_of(q, 1)])
        assert loss.value == emid(p, q).value
        assert loss.error == pytest.approx(emid(p, q).standard_error)
        low, high = loss.interval()
        held += low <= 0 <= high
        fired += 1 - loss.chance_above() < 0.05
    assert held / trials >= 0.93
    assert fired / trials <= 0.07


def test_intervals_and_chances_by_hand():
    """Of two subsets, v = (4 + 0) and (1 + 4 (6 / 12)^2): 6 in all, of 36 / (16 / 3 + 4 / 11)
    degrees of freedom.
    """
    drawn = {0: Drawn(np.array([2.0, 0, 0, 0]), 4, 0.0), 1: Drawn(np.eye(12)[0], 12, 6.0)}
    number = Sure(3.0, drawn)
    assert number.error == pytest.approx(5**0.5)
    freedom = 36 / (16 / 3 + 4 / 11)
    half = stats.t.ppf(0.9, freedom) * 6**0.5
    assert number.interval(0.8) == pytest.approx((3 - half, 3 + half))
    assert number.chance_above(1.0) == pytest.approx(stats.t.cdf(2 / 6**0.5, freedom))
    assert not number.tells and Sure(3.0, {1: drawn[1]}).tells


def test_what_is_drawn_from_one_subset_cancels_or_adds_up():
    a, b = (Sure(1.0, {0: Drawn(np.array([x, -x]), 2, 1.0)}) for x in (3.0, 1.0))
    apart = Sure(1.0, {1: Drawn(np.array([1.0, -1.0]), 2, 1.0)})
    less, mean, two = Sure.combined([1, -1], [a, b]), Sure.mean([a, b]), Sure.mean([a, apart])
    assert (less.value, less.error, less.drawn[0].reach) == (0, pytest.approx(8**0.5), 1)
    assert (mean.error, mean.drawn[0].reach) == (pytest.approx(8**0.5), 1)
    assert (two.error, two.drawn[1].reach) == (pytest.approx(5**0.5), 0.5)


def test_where_all_examples_are_alike_the_next_one_may_not_be():
    """Every response is as telling as can be, so that nothing varies: no error, and an interval."""
    sides = [
        mutual_information(contrast_of(m), "calibrated")
        for m in (1e3 * np.eye(9), np.zeros((9, 9)))
    ]
    found = sure_of(difference(*sides))
    assert found.error == 0 and found.value > 2.5
    low, high = found.interval()
    assert high - found.value == pytest.approx(found.value - low)
    assert 0.2 < (high - low) / found.value < 2


def test_where_few_pairs_make_the_variance_negative_half_of_the_gathered_one_is_the_floor():
    """Of two examples, h = (0, 1): gathered is 1, and the one pair takes it all away again."""
    influence = Influence(np.array([-1.0, 0.0]), np.array([1.0]), np.array([[0, 1]]))
    assert influence.of_examples().tolist() == [0.0, 1.0]
    assert standard_error(influence) == pytest.approx(np.sqrt(1 / (2 * 2**2) * 2 / 1))


def test_certainty_has_no_spread():
    nothing = Influence(np.zeros(5), np.zeros(0), np.zeros((0, 2), dtype=int))
    assert standard_error(nothing) == 0
    certain = Sure.of(0.5, nothing, reach=0.0)
    assert certain.interval() == (0.5, 0.5)
    assert [certain.chance_above(x) for x in (0.4, 0.5)] == [1.0, 0.0]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1.0, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def power(in_distribution, shifted, effect, examples, *, rng, level=0.05, trials=1000):
    """How often a loss of `effect` is told from 0 with so many examples in each of the two subsets,
    by simulation.

    For 80 % of the time, `examples` must be about 12.4 (deviation / effect)^2, the deviation being
    that of the influences. To tell an R-EMID of 0.05 nats per token from 0, simulation gives:

    | influences of | deviation, nats per token | examples in each subset |
    |---|---|---|
    | `calibrated`, a pretrained 135 M model on real dialogues | 0.13 to 0.20 | 90 to 200 |
    | CLUB, the same | 0.33 | 520 to 570 |
    | `calibrated`, models of a synthetic world that falter | 0.35 to 0.45 | 650 to 960 |
    | CLUB, the same; it shows a true loss 3 to 4 times as large | 0.9 to 1.6 | 4,000 to 12,000 |

    Args:
        in_distribution, shifted: influences of the examples of a scored run
            (`Influence.of_examples`), taken for the populations; their unit is that of `effect`.
        effect: the true loss.
        examples: drawn from each of the two.
        level: one-sided, of each test.

    Returns:
        Share of the trials in which value / standard error exceeds the normal quantile.
    """
    value, variance = np.full(trials, effect), np.zeros(trials)
    for population in (in_distribution, shifted):
        drawn = rng.choice(population - population.mean(), size=(trials, examples))
        value += drawn.mean(axis=1)
        variance += drawn.var(axis=1, ddof=1) / examples
    return float(np.mean(value > NormalDist().inv_cdf(1 - level) * np.sqrt(variance)))


def test_power_grows_with_the_examples_and_is_the_level_without_an_effect():
    rng = np.random.default_rng(6)
    population = rng.standard_normal(500)
    found = [power(population, population, 0.3, count, rng=rng) for count in (20, 80, 320)]
    assert found == sorted(found) and found[0] < 0.5 < 0.9 < found[-1]
    assert power(population, population, 0.0, 100, rng=rng) == pytest.approx(0.05, abs=0.02)
    # By the normal approximation: 80 % at 2 (1.645 + 0.842)^2 (1 / 0.3)^2 = 137 examples.
    assert power(population, population, 0.3, 137, rng=rng) == pytest.approx(0.80, abs=0.05)


def test_what_has_no_error_is_refused():
    with pytest.raises(DataError, match="needs 2 or more"):
        standard_error(Influence(np.zeros(1), np.zeros(0), np.zeros((0, 2), dtype=int)))
    with pytest.raises(DataError, match="numbers from 0 to 1"):
        holm([0.5, float("nan")])
    with pytest.raises(DataError, match="no paired difference"):
        Influence(np.zeros(3), np.zeros(0), np.zeros((0, 2))) - Influence(
            np.zeros(2), np.zeros(0), np.zeros((0, 2))
        )
