"""Readers fitted to responses: what they find, what they never read, and that it is done once."""

from dataclasses import replace

import numpy as np
import pytest

from coevolve.errors import ArtifactError
from coevolve.information.contrast import Contrast
from coevolve.information.estimate import mutual_information
from coevolve.recipe.optimization import Sft
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR
from coevolve.scoring.scores import Scores
from coevolve.training import reader as readers
from coevolve.training.distributed.stopping import StopRequested
from coevolve.training.reader import CrossFitted, Fitting
from coevolve.worlds.corpus import world_corpus
from tests.scoring.conftest import base_folder, build, exported  # noqa: F401

TRAIN, TEST = 96, 24
WORDS = "boldly", "slowly"


@pytest.fixture(scope="module")
def examples():
    return world_corpus(0, train=TRAIN, test=TEST).splits


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    quick = {"epochs": 12, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    monkeypatch.setattr(readers, "SETTINGS", Sft(**quick, adam_beta2=0.98, train_batch_size=8))


@pytest.fixture
def loaded(exported):  # noqa: F811
    return ProbabilityEstimator.from_pretrained(exported[1], device="cpu")


def fitting(estimator, folder=None, kind="none", **options):
    return Fitting(estimator, Reasoning(kind), seed=3, folder=folder, **options)


def coded(examples):
    """One of two words for what the user does: a code that nobody has taught the estimator."""
    return [WORDS[x.dialogue[-1].text == "invite"] for x in examples]


def information(scorer, examples):
    """Of the coded responses to the examples, nats per response, calibrated."""
    count = len(examples)
    pairs = np.argwhere(np.ones((count, count), dtype=bool))
    found = scorer.log_prob_pairs(examples, coded(examples), [None] * count, pairs)
    matrix = Scores(found.sum.reshape(count, count), found.tokens[:count])
    return mutual_information(Contrast.from_matrix(matrix, "per_response"), "calibrated").value


def same(one, other):
    return one.keys() == other.keys() and all((one[x] == other[x]).all() for x in one)


# Adapters cannot teach a random base to say one word.
@pytest.mark.parametrize("exported", ["full"], indirect=True)
def test_a_reader_finds_what_the_estimator_cannot_read(loaded, examples, tmp_path, monkeypatch):
    train, test = examples["IDTrain"], examples["IDTest"]
    before, plain = loaded.roles.weights(ESTIMATOR), information(loaded, test)
    reader = fitting(loaded, tmp_path).reader(train, coded(train))
    assert (reader.fitted_to, reader.held_out) == (77, 19) and reader.epochs > 0
    read = information(reader, test)
    assert plain < 0.2 < 0.5 < read  # of log 2
    assert same(loaded.roles.weights(ESTIMATOR), before)  # the estimator is what it was
    assert information(loaded, test) == plain

    # The order of the rows changes nothing; another process finds it, and its scores.
    monkeypatch.delattr(readers, "run_sft")
    again = fitting(loaded, tmp_path).reader(train[::-1], coded(train)[::-1])
    assert same(again.weights, reader.weights) and again.epochs == reader.epochs
    with pytest.raises(NameError):
        fitting(loaded, tmp_path).reader(train[1:], coded(train[1:]))
    assert information(again, test) == read
    cache = again.estimator.caches[ESTIMATOR]
    assert cache.found["scores"] == cache.asked["scores"] == TEST**2


def test_a_fit_that_was_killed_is_begun_again_and_ends_with_the_same_bits(
    loaded, examples, tmp_path
):
    train = examples["IDTrain"][:40]
    whole, before = fitting(loaded).reader(train, coded(train)), loaded.roles.weights(ESTIMATOR)
    looks = iter(range(7))

    def poll():
        if next(looks, None) is None:
            raise StopRequested

    with pytest.raises(StopRequested):
        fitting(loaded, tmp_path, poll=poll).reader(train, coded(train))
    assert same(loaded.roles.weights(ESTIMATOR), before)
    assert same(fitting(loaded, tmp_path).reader(train, coded(train)).weights, whole.weights)
    other = replace(fitting(loaded, tmp_path), seed=4).reader(train, coded(train))
    assert not same(other.weights, whole.weights)


def test_reasonings_are_shown_as_the_form_has_them(loaded, examples, monkeypatch):
    seen = []
    monkeypatch.setattr(readers, "run_sft", lambda plan, rows, settings: seen.extend(rows))
    train = examples["IDTrain"][:10]
    form = Reasoning("mixture", weight=0.5)
    Fitting(loaded, form, seed=3).reader(train, coded(train))
    render = loaded.renderer
    shown = {tuple(row.prompt) for row in seen}
    without = {tuple(render.prompt_ids(render.estimator(x, None))) for x in train}
    written = dict(zip(train, loaded.reason(train), strict=True))
    reasoned = {tuple(render.prompt_ids(render.estimator(x, written[x]))) for x in train}
    assert len(seen) == 16 and len(shown & without) == len(shown & reasoned) == 8


def test_a_base_model_as_it_is_has_nothing_to_begin_at(loaded, examples, monkeypatch):
    monkeypatch.setattr(loaded.roles, "tuning", {CONNECTOR: "none", ESTIMATOR: "none"})
    with pytest.raises(ArtifactError, match="from the weights of a trained estimator"):
        fitting(loaded).reader(examples["IDTrain"], coded(examples["IDTrain"]))


class Spy:
    def __init__(self, value):
        self.value, self.asked = value, []

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        self.asked += [examples[i].sample_id for i in pairs[:, 0]]
        return Scores(np.full(len(pairs), self.value), np.ones(len(pairs), dtype=int))


def test_contexts_of_a_half_are_read_by_the_reader_of_the_half(examples):
    some = examples["IDTest"][:6]
    half_of = {x.sample_id: number % 2 for number, x in enumerate(some)}
    spies = Spy(-1.0), Spy(-2.0)
    pairs = np.array([(0, 2), (1, 3), (3, 3), (4, 0)])
    found = CrossFitted(spies, half_of).log_prob_pairs(some, ["a"] * 6, [None] * 6, pairs)
    assert found.sum.tolist() == [-1.0, -2.0, -2.0, -1.0]
    for number, spy in enumerate(spies):
        assert {half_of[x] for x in spy.asked} == {number}
