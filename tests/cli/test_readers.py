"""What `coevolve remid --own` reads responses by, and what it refuses before a model is loaded."""

import argparse
import json

import numpy as np
import pytest

from coevolve.cli import readers as command
from coevolve.cli.readers import add_reader_arguments, chosen_reader, chosen_readers
from coevolve.cli.scoring import add_estimator_arguments, add_responses_arguments, read_answered
from coevolve.data.corpus import Corpus
from coevolve.data.example import Example, Turn
from coevolve.errors import ChatError, DataError, RecipeError
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
