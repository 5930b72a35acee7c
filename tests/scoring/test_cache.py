"""Work is found again by content, by any number of processes, and what is damaged is done again."""

import logging
import multiprocessing
import os
import signal
import sqlite3
import time

import numpy as np
import pytest

from coevolve import ProbabilityEstimator
from coevolve.errors import ArtifactError
from coevolve.scoring.cache import WorkCache, cached_scores, cached_texts, fingerprint, taken
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR

PROMPTS, RESPONSES = [[1, 2, 3], [1, 2], [9]], [[4], [5, 6]]
ALL = np.array([(i, j) for i in range(3) for j in range(2)])


class Model:
    """Scores by arithmetic, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, pairs, found):
        self.asked += [tuple(pair) for pair in pairs.tolist()]
        values = [-np.pi * (1 + np.arange(len(RESPONSES[j]))) / sum(PROMPTS[i]) for i, j in pairs]
        for place, value in enumerate(values):
            found([(place, value)])
        return values


def scores(folder, model, pairs=ALL, progress=None):
    return cached_scores(WorkCache(folder, "model"), PROMPTS, RESPONSES, pairs, model, progress)


def test_only_what_is_new_is_computed_and_the_bits_are_the_same(tmp_path):
    first, second, done = Model(), Model(), []
    expected = scores(tmp_path, first, ALL[:4])
    found = scores(tmp_path, second, ALL[[5, 3, 0, 4, 0]], done.append)
    assert first.asked == [tuple(pair) for pair in ALL[:4].tolist()]
    assert second.asked == [(2, 1), (2, 0)]
    assert done == [3]
    assert all(
        np.array_equal(a, b) for a, b in zip(found[1:3], [expected[3], expected[0]], strict=True)
    )
    assert np.array_equal(found[4], expected[0]) and found[0].dtype == np.float64


def test_it_is_the_content_that_counts(tmp_path):
    """Other indices, same ids: found. Same indices, other ids or another model: not."""
    scores(tmp_path, Model())
    again = Model()
    cached_scores(WorkCache(tmp_path, "model"), PROMPTS[::-1], RESPONSES[::-1], ALL, again, None)
    assert again.asked == []
    for cache, prompts in (
        (WorkCache(tmp_path, "other"), PROMPTS),
        (WorkCache(tmp_path, "model"), [[7], [8], [6]]),
    ):
        other = Model()
        cached_scores(cache, prompts, RESPONSES, ALL, other, None)
        assert len(other.asked) == len(ALL)
    moved = Model()  # a token that moves from the response into the prompt makes another question
    pair = np.array([[0, 0]])
    cached_scores(WorkCache(tmp_path, "model"), [[9, 5]], [[6], [6]], pair, moved, None)
    assert moved.asked == [(0, 0)]


def test_a_text_is_found_by_its_settings_too(tmp_path):
    def write(places, keep):
        keep(range(len(places)), [([place, 7], place == 0) for place in places])

    def never(places, keep):
        raise AssertionError(places)

    greedy, drawn = [{"length": 9}] * 2, [{"length": 9, "seed": 1, "key": k} for k in range(2)]
    assert cached_texts(WorkCache(tmp_path, "m"), PROMPTS[:2], greedy, write, None) == [
        ([0, 7], True),
        ([1, 7], False),
    ]
    assert cached_texts(WorkCache(tmp_path, "m"), PROMPTS[:2], greedy, never, None)[1] == (
        [1, 7],
        False,
    )
    with pytest.raises(AssertionError, match=r"\[0, 1\]"):
        cached_texts(WorkCache(tmp_path, "m"), PROMPTS[:2], drawn, never, None)


def test_texts_that_were_written_before_the_work_was_left_are_kept(tmp_path):
    def leaves(places, keep):
        keep([2, 0], [([2], True), ([0], True)])
        raise KeyboardInterrupt

    def rest(places, keep):
        assert places == [1]
        keep([0], [([1], False)])

    settings = [{"length": 9, "key": key} for key in range(3)]
    with pytest.raises(KeyboardInterrupt):
        cached_texts(WorkCache(tmp_path, "m"), PROMPTS[:1] * 3, settings, leaves, None)
    found = cached_texts(WorkCache(tmp_path, "m"), PROMPTS[:1] * 3, settings, rest, None)
    assert found == [([0], True), ([1], False), ([2], True)]


def database(folder):
    return sqlite3.connect(folder / "work.sqlite")


def test_a_damaged_value_is_said_once_and_computed_again(tmp_path, caplog):
    expected = scores(tmp_path, Model())
    with database(tmp_path) as connection:
        for (key,) in connection.execute("SELECT key FROM work").fetchall()[:2]:
            connection.execute("UPDATE work SET value = ? WHERE key = ?", (b"another's", key))
    model = Model()
    with caplog.at_level(logging.WARNING):
        found = scores(tmp_path, model)
    assert len(model.asked) == 2
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert ["2 damaged values" in record.message for record in caplog.records] == [True]
    scores(tmp_path, again := Model())
    assert again.asked == []


@pytest.mark.parametrize("harm", ["another file", "holes", "another table"])
def test_a_damaged_database_is_begun_anew(tmp_path, harm, caplog):
    scores(tmp_path, Model())
    file = tmp_path / "work.sqlite"
    if harm == "another file":
        file.write_bytes(b"no database" * 1000)
    elif harm == "holes":
        content = bytearray(file.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        file.write_bytes(content)
    else:
        with database(tmp_path) as connection:
            connection.execute("DROP TABLE work")
            connection.execute("CREATE TABLE work (something BLOB)")
    with caplog.at_level(logging.WARNING):
        found = scores(tmp_path, model := Model())
    assert len(model.asked) == len(ALL) == len(found)
    assert len(caplog.records) == 1 and str(file) in caplog.records[0].message
    scores(tmp_path, Model())
    scores(tmp_path, again := Model())
    assert len(again.asked) == (len(ALL) if harm == "another table" else 0)


def test_what_was_not_asked_for_the_longest_goes_first(tmp_path):
    cache = WorkCache(tmp_path, "model", most_bytes=200_000)
    cache.put([("dear", b"kept")])
    for count in range(40):
        cache.put([(f"{count}", bytes([count]) * 9_000)])
        with database(tmp_path) as connection:  # a day goes by
            connection.execute("UPDATE work SET used = used - 86400")
        assert cache.get("scores", ["dear"]) == [b"kept"]
    values = cache.get("scores", [str(count) for count in range(40)])
    gone = [value is None for value in values]
    assert gone == sorted(gone, reverse=True) and 15 < sum(gone) < 35
    assert (tmp_path / "work.sqlite").stat().st_size < 260_000


def _write_for_ever(folder, number):
    cache = WorkCache(folder, "model")
    for count in range(1_000_000):
        cache.put([(f"{number}-{count}", f"{number} {count}".encode() * 40)])
        time.sleep(0.01)  # a model is asked between two values; without it the others starve


def test_killed_writers_leave_only_whole_values(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_write_for_ever, args=(tmp_path, number)) for number in range(3)
    ]
    for writer in writers:
        writer.start()
    cache = WorkCache(tmp_path, "model")
    first = [f"{number}-0" for number in range(3)]
    limit = time.monotonic() + 60
    while None in cache.get("scores", first) and time.monotonic() < limit:
        time.sleep(0.02)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    keys = [*first, *(f"{number}-{count}" for number in range(3) for count in range(1, 30))]
    values = cache.get("scores", keys)
    assert None not in values[: len(first)]
    for key, value in zip(keys, values, strict=True):
        assert value in (None, key.replace("-", " ").encode() * 40)
    cache.put([("another", b"value")])  # nobody is kept waiting by the dead
    assert cache.get("scores", ["another"]) == [b"value"] and not caplog.records


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    model = Model()
    with caplog.at_level(logging.WARNING):
        found = scores(tmp_path / "file", model)
    assert len(found) == len(model.asked) == len(ALL)
    assert len(caplog.records) == 1 and "not kept" in caplog.records[0].message


def test_fingerprints_differ_by_every_part():
    parts = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_an_estimator_asks_its_model_for_the_new_only(
    exported, examples, responses, tmp_path, monkeypatch
):
    """Same numbers with and without; another process's work is found; other weights are not
    confused.
    """
    _, folder = exported
    plain = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    reasoning = plain.reason(examples)
    expected = plain.log_prob_matrix(examples, responses, reasoning)
    first = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    first.use_cache(tmp_path)
    assert first.reason(examples[:4]) == reasoning[:4]
    assert first.reason(examples[:4], seed=1) == plain.reason(examples[:4], seed=1)
    half = first.log_prob_matrix(examples, responses[:3], reasoning)
    assert np.array_equal(half.tokens, expected.tokens[:3])

    second = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    second.use_cache(tmp_path)
    assert second.reason(examples) == reasoning
    found = second.log_prob_matrix(examples, responses, reasoning)
    assert np.abs(found.sum - expected.sum).max() < 1e-4
    assert np.array_equal(found.sum[:, :3], half.sum)
    assert second.caches[CONNECTOR].found == {"reasonings": 4}
    assert second.caches[ESTIMATOR].found == {"scores": 3 * len(examples)}
    said = taken([second.caches[CONNECTOR], second.caches[ESTIMATOR]])
    assert said == f"4 of 7 reasonings and 21 of 49 scores taken from the cache in {tmp_path}"

    def forbidden(*args, **kwargs):
        raise AssertionError("the model was run")

    third = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    third.use_cache(tmp_path)
    monkeypatch.setattr("coevolve.scoring.estimator.score_pairs", forbidden)
    third.writer = forbidden
    assert third.reason(examples) == reasoning
    again = third.log_prob_matrix(examples, responses, reasoning)
    assert np.array_equal(again.sum, found.sum)
    tokens = third.token_log_probs(examples[:2], [responses[1], responses[0]], reasoning[:2])
    assert tokens[0].sum() == found.sum[0, 1] and tokens[1].sum() == found.sum[1, 0]
    with pytest.raises(AssertionError, match="the model was run"):
        third.reason(examples, seed=2)


def test_unknown_weights_have_no_cache(exported, tmp_path):
    estimator, folder = exported
    for unknown in (
        estimator,
        ProbabilityEstimator.from_pretrained(folder, device="cpu", verify=False),
    ):
        with pytest.raises(ArtifactError, match="verify=True"):
            unknown.use_cache(tmp_path)
