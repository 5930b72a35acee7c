"""Weights, bound and resampling, against a small problem that is known by enumeration."""

import itertools

import numpy as np
import pytest

from coevolve.information.importance import (
    effective_samples,
    log_mean_exp,
    mixture_log_prob,
    resample,
    self_normalised,
)

PRIOR = np.array([0.5, 0.3, 0.2])
LIKELIHOOD = np.array([0.1, 0.6, 0.3])
PROPOSAL = np.array([0.2, 0.2, 0.6])
EVIDENCE = PRIOR @ LIKELIHOOD
POSTERIOR = PRIOR * LIKELIHOOD / EVIDENCE
LOG_WEIGHTS = np.log(PRIOR * LIKELIHOOD / PROPOSAL)


def groups(size):
    """(probability, indices) of each group of candidates that the proposal may give."""
    for group in itertools.product(range(3), repeat=size):
        yield PROPOSAL[list(group)].prod(), list(group)


def test_every_reasoning_once_gives_the_exact_posterior():
    # A uniform proposal that gave each of them: its density is the same for all.
    weights = self_normalised(np.log(PRIOR) + np.log(LIKELIHOOD) - np.log(1 / 3))
    assert weights == pytest.approx(POSTERIOR)
    assert log_mean_exp(np.log(PRIOR * LIKELIHOOD * 3)) == pytest.approx(np.log(EVIDENCE))


def test_in_the_proportions_of_the_proposal_too():
    candidates = np.repeat(np.arange(3), (PROPOSAL * 10).astype(int))
    weights = self_normalised(LOG_WEIGHTS[candidates])
    assert np.bincount(candidates, weights) == pytest.approx(POSTERIOR)
    assert log_mean_exp(LOG_WEIGHTS[candidates]) == pytest.approx(np.log(EVIDENCE))


def test_the_bound_is_below_the_evidence_and_rises_with_the_candidates():
    bounds = [
        sum(p * log_mean_exp(LOG_WEIGHTS[g]) for p, g in groups(size)) for size in range(1, 7)
    ]
    assert bounds == sorted(bounds) and bounds[-1] < np.log(EVIDENCE)
    assert np.log(EVIDENCE) - bounds[-1] < (np.log(EVIDENCE) - bounds[0]) / 4
    means = [sum(p * np.exp(log_mean_exp(LOG_WEIGHTS[g])) for p, g in groups(s)) for s in (1, 4)]
    assert means == pytest.approx([EVIDENCE] * 2)  # without the logarithm it is unbiased


def test_what_is_resampled_comes_near_the_posterior_as_candidates_grow():
    def distance(size):
        drawn = sum(p * np.bincount(g, self_normalised(LOG_WEIGHTS[g]), 3) for p, g in groups(size))
        return np.abs(drawn - POSTERIOR).sum()

    assert distance(1) == pytest.approx(np.abs(PROPOSAL - POSTERIOR).sum())
    assert distance(8) < distance(4) < distance(2) < distance(1)
    assert distance(8) < 0.6 * distance(4)  # a bias of order 1 / K


def test_it_does_not_matter_which_part_of_a_mixture_drew_a_candidate():
    parts = np.log(np.stack([PRIOR, PROPOSAL], axis=-1))
    mixed = mixture_log_prob(parts, np.array([3, 1]))
    assert np.exp(mixed) == pytest.approx(0.75 * PRIOR + 0.25 * PROPOSAL)
    weights = PRIOR * LIKELIHOOD / np.exp(mixed)
    assert weights @ np.exp(mixed) == pytest.approx(EVIDENCE)
    assert (weights <= LIKELIHOOD / 0.75 + 1e-12).all()  # what makes it defensive
    assert np.array_equal(mixture_log_prob(parts, np.array([0, 2])), parts[:, 1])


@pytest.mark.parametrize("count", [1, 3])
def test_each_index_is_drawn_as_often_as_its_weight_says(count):
    weights = np.array([0.0, 0.15, 0.6, 0.0, 0.25, 0.0])
    drawn = [resample(weights, count, (k + 0.5) / 2000) for k in range(2000)]
    shares = np.bincount(np.concatenate(drawn), minlength=6) / (2000 * count)
    assert shares == pytest.approx(weights, abs=1e-3)
    for indices in drawn:
        times = np.bincount(indices, minlength=6)
        assert (np.abs(times - count * weights) < 1).all()


def test_the_ends_of_the_unit_interval_draw_something_of_weight():
    weights = np.array([0.0, 0.1 + 0.2, 0.7 - 1e-17, 0.0])
    assert resample(weights, 1, 0.0).tolist() == [1]
    assert resample(weights, 1, np.nextafter(1, 0)).tolist() == [2]


def test_what_candidates_are_worth_by_hand():
    assert effective_samples(np.array([[0.25] * 4, [1, 0, 0, 0]])) == pytest.approx([4, 1])
    assert self_normalised(np.array([0.0, -np.inf])).tolist() == [1, 0]
