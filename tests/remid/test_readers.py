"""Responses read by others than the estimator: what they add, and that nothing else changes."""

import random

import numpy as np
import pytest
from rich.console import Console

from coevolve.data.corpus import Corpus
from coevolve.errors import DataError, RecipeError
from coevolve.remid.evaluate import evaluate_remid, shares_of_examples, summarise
from coevolve.remid.measures import RECOMMENDED, Measure
from coevolve.remid.readers import Reading
from coevolve.remid.results import RemidResults
from coevolve.remid.score import Reader, Scoring, score_corpus
from coevolve.remid.table import remid_csv, remid_latex, remid_markdown, remid_table
from tests.remid.conftest import UnigramEstimator, make_example, vocabulary_of

N = 24
MEASURES = [RECOMMENDED, Measure("club", "per_token"), Measure("leave_one_out")]


class Decoder:
    """Reads a code as the estimator reads what was put into it."""

    def __init__(self, estimator):
        self.estimator, self.asked = estimator, 0

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        assert set(reasoning) == {None}
        self.asked += len(pairs)
        plain = [coded(response) for response in responses]
        return self.estimator.log_prob_pairs(examples, plain, reasoning, pairs)


def coded(text):
    """Its own inverse: the words' letters back to front."""
    return " ".join(word[::-1] for word in text.split())


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)

    def rows(split, subset):
        for i in range(N):
            words = [f"{rng.choice('bcdfg')}a{rng.choice('klmnp')}o" for _ in range(4)]
            golden = " ".join(words[:3])
            yield make_example(f"{split}-{i:02}", subset, " ".join(words), "say", golden)

    splits = {"IDTest": "IDTest", "OOD1Test": "german"}
    return Corpus({x: tuple(rows(x, subset)) for x, subset in splits.items()}, "by hand")


@pytest.fixture(scope="module")
def estimator(corpus):
    return UnigramEstimator(vocabulary_of(corpus))


@pytest.fixture(scope="module")
def responses(corpus):
    tests = corpus.examples
    return {
        "plain": {x.sample_id: x.golden_response for x in tests},
        "code": {x.sample_id: coded(x.golden_response) for x in tests},
    }


@pytest.fixture(scope="module")
def scored(corpus, estimator, responses):
    reader = Reader(lambda: Decoder(estimator), {None: "own of code", "code": "own"})
    how = Scoring("all", seed=0)
    return score_corpus(estimator, corpus, responses, how, measures=MEASURES, readers=[reader])


def numbers(results, model, row=0):
    return results.subsets[row].models[model]


def test_the_best_reader_finds_what_the_estimator_cannot_read(scored):
    best, alone = summarise(scored, MEASURES, "best"), summarise(scored, MEASURES)
    for row in (0, 1):
        code = numbers(best, "code", row)
        assert code.readers == ["own"] and best.subsets[row].golden.readers == ["estimator"]
        assert code.remi == pytest.approx(0, abs=0.3)  # it says what golden responses say
        assert code.remi_by_estimator == numbers(alone, "code", row).remi < -1
        assert code.beyond_golden == pytest.approx(code.remi - code.remi_by_estimator)
        assert numbers(best, "plain", row) == numbers(alone, "plain", row).model_copy(
            update={
                "readers": ["estimator"],
                "remi_by_estimator": numbers(best, "plain", row).remi,
                "beyond_golden": 0.0,
            }
        )
    beside = best.beside[0].subsets[0].models["code"]  # another measure, by the same readers
    assert beside.readers == ["own"]
    assert beside.remi > alone.beside[0].subsets[0].models["code"].remi


def test_further_readers_change_nothing_for_the_estimator(corpus, estimator, responses, scored):
    alone = evaluate_remid(estimator, corpus, responses, Scoring("all"), measures=MEASURES)
    assert summarise(scored, MEASURES, "estimator").values() == alone.values()
    assert "readers" not in str(alone.values())


def test_each_is_read_by_the_reader_that_was_chosen_for_all(scored):
    own = Reading(scored, "best").by("own", 0, "code", RECOMMENDED)
    assert Reading(scored, "best").estimate(0, "code", RECOMMENDED).value == own.value
    with pytest.raises(RecipeError, match="reader own: 'plain' has none in IDTest"):
        summarise(scored, MEASURES, "own")
    with pytest.raises(RecipeError, match=r"reader is 'parrot'.*accepted are estimator, own"):
        Reading(scored, "parrot")


def test_shares_of_examples_are_of_the_same_reader(scored):
    results = summarise(scored, MEASURES, "best")
    shares = list(shares_of_examples(scored, RECOMMENDED, "best"))
    mean = np.mean([x.remi for x in shares if (x.row, x.model) == ("IDTest", "code")])
    assert mean == pytest.approx(numbers(results, "code").remi)


def test_results_say_who_read_and_are_read_back(scored, capsys):
    results = summarise(scored, MEASURES, "best")
    again = RemidResults.model_validate(results.values())
    assert again.values() == results.values()
    Console(width=180).print(remid_table(results))
    shown = capsys.readouterr().out
    for text in (shown, remid_markdown(results), remid_latex(results)):
        assert "beyond golden" in text and "own" in text
    beyond = numbers(results, "code").beyond_golden
    assert f"{beyond:+.3f}" in shown
    assert "beyond" not in remid_markdown(summarise(scored, MEASURES))
    lines = remid_csv(results).splitlines()
    assert lines[0].endswith("readers")
    assert any(",code," in line and line.endswith(",own") for line in lines)


def test_a_reader_cannot_be_chosen_from_a_sample_of_pairs(corpus, estimator, responses):
    opened = []
    reader = Reader(lambda: opened.append(1), {"code": "own"})
    with pytest.raises(DataError, match="equally many other contexts"):
        score_corpus(estimator, corpus, responses, Scoring(50), readers=[reader])
    assert not opened


def test_further_contexts_are_met_by_every_reader(corpus, estimator, responses):
    rng = random.Random(1)
    more = tuple(
        make_example(f"more-{i}", "x", f"b{rng.choice('aeiou')}mo", "say", "no") for i in range(6)
    )
    reader = Reader(lambda: Decoder(estimator), {None: "own of code", "code": "own"})
    how = Scoring("all", further={"IDTest": more, "OOD1Test/german": more})
    scored = score_corpus(estimator, corpus, responses, how, measures=MEASURES, readers=[reader])
    results = summarise(scored, MEASURES, "best")
    assert results.subsets[0].contexts == N - 1 + 6
    assert numbers(results, "code").readers == ["own"]
    assert numbers(results, "code").remi == pytest.approx(0, abs=0.3)


def test_within_halves_all_readers_meet_the_same_contexts(corpus, estimator, responses):
    names = {None: "fitted"}, {"code": "fitted"}
    readers = [
        Reader(lambda: estimator, names[0], reasoned=True),
        Reader(lambda: Decoder(estimator), names[1]),
    ]
    how = Scoring("all", halved=True)
    results = summarise(
        score_corpus(estimator, corpus, responses, how, readers=readers), (), "best"
    )
    for row in (0, 1):
        assert results.subsets[row].contexts == N // 2 - 1
        code = numbers(results, "code", row)
        assert code.readers == ["fitted"] and code.remi == pytest.approx(0, abs=0.4)
        assert code.remi_by_estimator < -1
    assert (results.form, results.beside[0].form) == ("calibrated", "club")
