"""The representation JSD against exact and literal answers, and its noise floor against what it
should be.
"""

import numpy as np
import pytest

from coevolve.errors import DataError, RecipeError
from coevolve.information.discrete import entropy, jensen_shannon
from coevolve.information.divergence import (
    gram,
    jsd_of_covariances,
    jsd_of_gram,
    measure_divergence,
    median_width,
    representation_jsd,
    unit_rows,
    von_neumann_entropy,
)


def rows(seed, count, dimensions, shift=0.0):
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions))
    vectors[:, 0] += shift
    return vectors


def test_entropy_of_a_diagonal_matrix_is_that_of_its_distribution():
    p = np.array([0.5, 0.3, 0.2, 0.0])
    assert von_neumann_entropy(np.diag(7 * p)) == pytest.approx(entropy(p))
    rotation = np.linalg.qr(rows(0, 4, 4))[0]
    assert von_neumann_entropy(rotation @ np.diag(p) @ rotation.T) == pytest.approx(entropy(p))


@pytest.mark.parametrize(
    ("n", "m", "dimensions"), [(5, 5, 30), (40, 40, 6), (7, 19, 12), (30, 4, 8)]
)
def test_covariance_and_gram_matrix_give_the_same_number(n, m, dimensions):
    x, y = unit_rows(rows(1, n, dimensions)), unit_rows(rows(2, m, dimensions, shift=2))
    by_covariance = jsd_of_covariances(x.T @ x / n, y.T @ y / m)
    by_gram = jsd_of_gram(gram(np.concatenate([x, y])), n)
    assert by_covariance == pytest.approx(by_gram, abs=1e-10)
    assert representation_jsd(3 * x, y) == pytest.approx(by_gram, abs=1e-10)


def test_of_one_hot_vectors_it_is_the_exact_jsd_of_the_frequencies():
    rng = np.random.default_rng(3)
    x, y = rng.choice(5, 40, p=[0.4, 0.3, 0.2, 0.1, 0]), rng.choice(5, 25)
    frequencies = [np.bincount(sample, minlength=5) / len(sample) for sample in (x, y)]
    assert representation_jsd(np.eye(5)[x], np.eye(5)[y]) == pytest.approx(
        jensen_shannon(*frequencies)
    )
    # A narrow Gaussian kernel tells all different vectors apart, as one-hot vectors are.
    words = rows(4, 5, 3)
    narrow = representation_jsd(words[x], words[y], kernel="gaussian", width=0.02)
    assert narrow == pytest.approx(jensen_shannon(*frequencies), abs=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_it_never_exceeds_the_exact_jsd_of_what_is_embedded(kernel):
    """Holevo's bound: a representation can only lose what distinguishes two distributions."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        words = rng.standard_normal((6, rng.integers(2, 5)))
        x, y = (
            rng.choice(6, 60, p=rng.dirichlet(np.ones(6))),
            rng.choice(6, 60, p=rng.dirichlet(np.ones(6))),
        )
        frequencies = [np.bincount(sample, minlength=6) / 60 for sample in (x, y)]
        found = representation_jsd(words[x], words[y], kernel=kernel, width=0.7)
        assert found <= jensen_shannon(*frequencies) + 1e-9


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_gram_matrix_is_the_kernel_pair_by_pair(kernel):
    x = unit_rows(rows(6, 6, 4))
    literal = {
        "linear": lambda a, b: float(a @ b),
        "gaussian": lambda a, b: float(np.exp(-np.sum((a - b) ** 2) / (2 * 0.7**2))),
    }[kernel]
    expected = [[literal(a, b) for b in x] for a in x]
    np.testing.assert_allclose(gram(x, kernel=kernel, width=0.7), expected, atol=1e-12)


def test_bounds_symmetry_and_identity():
    x, y = rows(7, 20, 5), rows(8, 20, 5, shift=1)
    assert representation_jsd(x, x) == pytest.approx(0, abs=1e-12)
    assert representation_jsd(x, y) == pytest.approx(representation_jsd(y, x), abs=1e-12)
    apart = np.concatenate([np.eye(4)[[0, 1]], np.eye(4)[[2, 3]]])
    assert representation_jsd(apart[:2], apart[2:]) == pytest.approx(np.log(2))


def test_width_is_the_median_distance_between_distinct_unit_vectors():
    x = rows(9, 11, 3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = [np.linalg.norm(unit[i] - unit[j]) for i in range(11) for j in range(i)]
    assert median_width(5 * x) == pytest.approx(np.median(distances))
    assert median_width(np.concatenate([x[:2]] * 9)) == pytest.approx(
        np.linalg.norm(unit[0] - unit[1])
    )
    with pytest.raises(DataError, match="all 3 vectors are alike"):
        median_width(np.ones((3, 2)))


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_without_a_shift_the_measure_is_its_noise_floor(kernel):
    x, y = rows(10, 400, 12), rows(11, 400, 12)
    found = measure_divergence(x, y, kernel=kernel, largest=50)
    assert found.floor > 0.02, "the bias that the floor is there to show"
    assert found.jsd == pytest.approx(found.floor, rel=0.1)
    assert found.excess < 0.1 * found.jsd


def test_a_shift_stands_above_the_noise_floor_and_the_floor_falls_with_the_size():
    x, y = rows(12, 300, 12), rows(13, 300, 12, shift=3)
    small, large = (measure_divergence(x, y, largest=size) for size in (30, 150))
    for found in (small, large):
        assert found.jsd > found.floor + 5 * found.floor_sd
    assert small.floor > 3 * large.floor
    assert small.excess == pytest.approx(large.excess, rel=0.4)
    assert (small.size, large.size) == (30, 150)


def test_sizes_are_equal_and_samples_are_seeded():
    x, y = rows(14, 31, 5), rows(15, 12, 5)
    found = measure_divergence(x, y, seed=3)
    assert found.size == 6, "half of the smaller sample"
    assert found == measure_divergence(x, y, seed=3) != measure_divergence(x, y, seed=4)


def test_what_cannot_be_measured_is_refused():
    x = rows(16, 8, 3)
    with pytest.raises(DataError, match="found 8 and 3 vectors"):
        measure_divergence(x, x[:3])
    with pytest.raises(DataError, match="vector 1 is zero"):
        representation_jsd(np.array([[1.0, 0], [0, 0]]), x[:, :2])
    with pytest.raises(DataError, match="3 and 2 dimensions"):
        representation_jsd(x, x[:, :2])
    with pytest.raises(RecipeError, match="kernel is 'cosine'"):
        measure_divergence(x, x, kernel="cosine")
    with pytest.raises(RecipeError, match="width is None"):
        representation_jsd(x, x, kernel="gaussian")
    with pytest.raises(RecipeError, match="repetitions is 0"):
        measure_divergence(x, x, repetitions=0)
    with pytest.raises(DataError, match="not symmetric"):
        von_neumann_entropy(np.array([[1.0, 2], [0, 1]]))
    with pytest.raises(DataError, match="eigenvalue of -1"):
        von_neumann_entropy(np.diag([2.0, -1.0]))
    with pytest.raises(DataError, match="first is 0"):
        jsd_of_gram(np.eye(3), 0)
