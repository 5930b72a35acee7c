"""What `coevolve remid --own` reads responses by, and what it refuses before a model is loaded."""

import argparse
import json

import numpy as np
import pytest

from coevolve.cli import main
from coevolve.cli import readers as command
from coevolve.cli.readers import (
    add_reader_arguments,
    chosen_reader,
    chosen_readers,
    planned_fits,
)
from coevolve.cli.scoring import add_estimator_arguments, add_responses_arguments, read_answered
from coevolve.data.corpus import Corpus, read_corpus
from coevolve.data.example import Example, Turn
from coevolve.data.responses import write_responses
from coevolve.errors import ChatError, DataError, RecipeError
from coevolve.recipe.optimization import Sft
from coevolve.remid.score import Scoring
from coevolve.training.distributed.stopping import Stop
from coevolve.worlds.tiny import write_tiny_base


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus, responses, and a model with random weights."""
    folder = tmp_path_factory.mktemp("own")
    write_tiny_base(folder / "model", 0)
    rows = {
        split: tuple(
            Example(f"{split}-{i}", tag, "a sailor", "a friend", (Turn("user", f"say {i}"),), "aye")
            for i in range(4)
        )
        for split, tag in {"IDTest": "IDTest", "OOD1Test": "german"}.items()
    }
    Corpus(rows, "here").to_json(folder / "data.json")
    ids = [x.sample_id for examples in rows.values() for x in examples]
    said = [{"sample_ID": x, "response": "aye aye"} for x in ids]
    cut = [said[0] | {"cut_off": True}, *said[1:]]
    (folder / "asked.yaml").write_text("system: ''\nuser: say aye\n")
    for name, lines in {"said": said, "cut": cut}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def options_of(place, *arguments, responses="mine=said"):
    parser = argparse.ArgumentParser()
    for add in (add_reader_arguments, add_responses_arguments, add_estimator_arguments):
        add(parser)
    parser.add_argument("--data")
    parser.set_defaults(contexts=0)
    name, _, file = responses.partition("=")
    given = ["--estimator", "e", "--data", f"{place}/data.json", "--device", "cpu", "--no-cache"]
    given += ["--responses", f"{name}={place}/{file}.jsonl"]
    options = parser.parse_args([*given, *arguments])
    options.stop = Stop()
    return options


def chosen(options):
    return chosen_readers(options, read_answered(options))


def test_own_weights_read_the_models_and_the_golden_responses(place):
    options = options_of(place, "--own", f"mine={place}/model")
    (reader,) = chosen(options)
    assert reader.name == {None: "own of mine", "mine": "own"} and not reader.reasoned
    assert chosen_reader(options) == "best"
    weights = reader.open()
    examples = read_answered(options).corpus.splits["IDTest"]
    found = weights.log_prob_pairs(examples, ["aye aye"], [None] * 4, np.array([(0, 0), (1, 0)]))
    assert found.sum.shape == (2,) and np.all(found.sum < 0)

    asked = options_of(place, "--own", f"mine={place}/model", "--prompt", f"{place}/asked.yaml")
    other = chosen(asked)[0].open()
    pairs = np.array([(0, 0), (1, 0)])
    same = other.log_prob_pairs(examples, ["aye aye"], [None] * 4, pairs).sum
    assert same[0] == same[1] and same[0] != found.sum[0]  # all were asked the same


def test_without_own_weights_the_estimator_reads(place):
    options = options_of(place)
    assert chosen(options) == [] and chosen_reader(options) == "estimator"
    assert chosen(options_of(place, "--reader", "estimator")) == []


@pytest.mark.parametrize(
    ("arguments", "responses", "error", "words"),
    [
        (["--own", "mine"], "mine=said", DataError, "accepted is NAME=PATH_OR_HUB"),
        (["--own", "his=m"], "mine=said", RecipeError, "'his' has no responses; accepted are mine"),
        (["--own", "mine=m"], "mine=cut", DataError, "1 of 8 responses were cut off"),
        (["--reader", "best"], "mine=said", RecipeError, "--reader: is for models that --own"),
        (["--prompt", "x"], "mine=said", RecipeError, "--prompt: is for models that --own"),
    ],
)
def test_what_is_in_the_way_is_said_before_a_model_is_loaded(
    place, monkeypatch, arguments, responses, error, words
):
    monkeypatch.delattr(command, "_opened")
    with pytest.raises(error, match=words):
        chosen(options_of(place, *arguments, responses=responses))


def test_an_endpoint_is_named_with_its_model(place):
    (reader,) = chosen(options_of(place, "--own", "mine=http://127.0.0.1:9/v1"))
    with pytest.raises(ChatError, match=r"names no model\. Accepted is URL#MODEL"):
        reader.open()


def test_a_model_that_is_not_there_is_named(place):
    (reader,) = chosen(options_of(place, "--own", f"mine={place}/nowhere"))
    with pytest.raises(ChatError, match="nowhere"):
        reader.open()


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """40 rows of each split, and responses to the test contexts alone, to all,
    and to a few more.
    """
    folder = tmp_path_factory.mktemp("fit")
    splits = {"IDTrain": "IDTrain", "IDTest": "IDTest", "OOD1Test": "german"}
    rows = {
        split: tuple(
            Example(f"{split}-{i}", tag, "a sailor", "a friend", (Turn("user", f"say {i}"),), "aye")
            for i in range(40)
        )
        for split, tag in splits.items()
    }
    corpus = Corpus(rows, "here")
    corpus.to_json(folder / "data.json")
    tests = [x.sample_id for split in corpus.test_splits for x in rows[split]]
    train = [x.sample_id for x in rows["IDTrain"]]
    files = {"tests": tests, "all": [*tests, *train], "some": [*tests, *train[:5]]}
    for name, ids in files.items():
        lines = [{"sample_ID": x, "response": f"aye {x}"} for x in ids]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def planned(place, *arguments, responses):
    options = options_of(place, "--fit-reader", *arguments, responses=responses)
    answered = read_answered(options)
    assert chosen_reader(options) == "best" and chosen_readers(options, answered) == []
    return planned_fits(options, answered, Scoring("all", halved=True)), answered


@pytest.mark.parametrize("responses", ["mine=tests", "mine=some"])
def test_no_reader_reads_what_it_was_fitted_to(larger, responses):
    fits, answered = planned(larger, responses=responses)
    half_of = Scoring("all", halved=True).half_of(answered.corpus)
    assert [fit.model for fit in fits] == [None, "mine"] and all(fit.halved for fit in fits)
    for fit in fits:
        for reads, (examples, texts) in enumerate(fit.parts):
            assert {half_of[x.sample_id] for x in examples} == {1 - reads}
            said = [
                x.golden_response if fit.model is None else f"aye {x.sample_id}" for x in examples
            ]
            assert texts == said and len(examples) == 40
    scoring = Scoring("all", halved=True)
    for subset, pairs in scoring.subsets_with_pairs(answered.corpus)[0]:
        half = [half_of[x] for x in subset.ids]
        assert all(half[i] == half[j] for i, j in pairs)


def test_responses_for_training_contexts_are_what_a_reader_is_fitted_to(larger):
    fits, answered = planned(larger, responses="mine=all")
    assert not any(fit.halved for fit in fits)
    for fit in fits:
        ((examples, texts),) = fit.parts
        assert examples == list(answered.whole.splits["IDTrain"]) and len(texts) == 40
    assert fits[1].parts[0][1][0] == "aye IDTrain-0"


@pytest.mark.parametrize(
    ("place_of", "arguments", "responses", "error", "words"),
    [
        (
            "place",
            [],
            "mine=said",
            DataError,
            "mine has 4 responses in half of the test contexts; a",
        ),
        ("place", ["--own", "mine=m"], "mine=said", RecipeError, "every model has its --own"),
    ],
)
def test_what_no_reader_can_be_fitted_to_is_said(
    place_of, arguments, responses, error, words, request
):
    options = options_of(
        request.getfixturevalue(place_of), "--fit-reader", *arguments, responses=responses
    )
    with pytest.raises(error, match=words):
        planned_fits(options, read_answered(options), Scoring("all"))


def test_responses_that_were_cut_off_teach_no_reader(larger):
    lines = [json.loads(x) for x in (larger / "all.jsonl").read_text().splitlines()]
    lines[0]["cut_off"] = lines[-1]["cut_off"] = True
    (larger / "cut.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with pytest.raises(
        DataError, match=r"mine: 1 of 40 responses were cut off \(first 'IDTrain-39'"
    ):
        planned(larger, responses="mine=cut")


def test_remid_fits_readers_once_and_says_what_to(run, tmp_path, monkeypatch):
    """The estimator hardly knows anything; what a fit is worth is in
    tests/training/test_reader.py.
    """
    from coevolve.remid import readers as least
    from coevolve.training import reader as fits

    monkeypatch.setattr(least, "LEAST_FITTED", 8)
    quick = Sft(epochs=2, learning_rate=1e-3, train_batch_size=8)
    monkeypatch.setattr(fits, "SETTINGS", quick)
    data = run / "world" / "dialogues.json"
    corpus = read_corpus(data)
    tests = [x for split in corpus.test_splits for x in corpus.splits[split]]
    for name, examples in {"halves": tests, "train": corpus.examples}.items():
        said = [x.golden_response for x in examples]
        write_responses(tmp_path / f"{name}.jsonl", examples, said[1:] + said[:1])
    arguments = [
        "remid",
        "--estimator",
        str(run / "estimator"),
        "--data",
        str(data),
        "--fit-reader",
    ]
    arguments += ["--device", "cpu", "--cache", str(tmp_path / "cache"), "--responses"]
    arguments += [f"{name}={tmp_path}/{name}.jsonl" for name in ("halves", "train")]
    assert main([*arguments, "--out", str(tmp_path / "once")]) == 0
    once = json.loads((tmp_path / "once" / "results.json").read_text())
    fitted = {one["model"]: one for one in once["fitted"]["readers"]}
    assert [*fitted] == [None, "halves", "train"]
    assert fitted[None]["contexts"] == fitted["halves"]["contexts"] == "halves of the test contexts"
    sizes = [sum(fitted["halves"][x]) for x in ("responses", "held_out")]
    assert sum(sizes) == len(tests) and len(fitted["halves"]["epochs"]) == 2
    assert fitted["train"]["contexts"] == "IDTrain" and len(fitted["train"]["epochs"]) == 1
    assert once["fitted"]["settings"]["learning_rate"] == 1e-3
    assert once["subsets"][0]["contexts"] == len(corpus.splits["IDTest"]) // 2 - 1
    assert {"estimator", "fitted"} >= set(once["subsets"][0]["models"]["train"]["readers"])

    monkeypatch.delattr(fits, "run_sft")
    by_fitted = ["--reader", "fitted", "--out", str(tmp_path / "again")]
    assert main([*arguments, *by_fitted]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["fitted"] == once["fitted"]
    assert again["subsets"][0]["golden"]["readers"] == ["fitted"]
