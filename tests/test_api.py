"""The commands as functions: the same work, typed results, the same errors."""

import json

import pytest

from coevolve.api import remid, score, train
from coevolve.errors import CoevolveError
from tests.fuzz.valid import RECIPE


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run, and its results."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "config.yaml").write_text(json.dumps(RECIPE))
    return folder / "run", train(folder, "seed=3", "rounds.count=0", output_dir=folder / "run")


def test_training_returns_its_results(run):
    folder, results = run
    written = json.loads((folder / "results.json").read_text())
    assert results.values() == written and results.seed == 3
    assert results.perplexity["full"]["IDTest"] > 1


def test_scores_and_remid_are_what_the_commands_write(run, tmp_path, capsys):
    estimator, data = run[0] / "estimator", run[0] / "world" / "dialogues.json"
    lines = score(estimator, data, reasoning="greedy", no_cache=True)
    golden = [row for rows in json.loads(data.read_text()).values() for row in rows]
    assert [line.sample_ID for line in lines] == [row["sample_ID"] for row in golden]
    assert all(line.log_prob < 0 and line.tokens > 0 for line in lines)

    responses = {"perfect": run[0] / "world" / "perfect.jsonl"}
    options = {"negatives": "4", "show_small_subsets": True, "no_cache": True}
    results = remid(estimator, data, responses, out=tmp_path / "out", **options)
    assert results.values() == json.loads((tmp_path / "out" / "results.json").read_text())
    assert remid(estimator, data, responses, **options).values() == results.values()
    options["negatives"] = 4
    assert remid(estimator, data, responses, **options).values() == results.values()
    assert not capsys.readouterr().out


def test_a_wrong_call_is_said_at_once(run, tmp_path):
    with pytest.raises(TypeError, match="score: dta is none of its options; they are estimator"):
        score(run[0] / "estimator", run[0], dta="x")
    with pytest.raises(CoevolveError, match="dtype: found 'int8'; accepted are float32"):
        score(run[0] / "estimator", run[0] / "world" / "dialogues.json", dtype="int8")
    with pytest.raises(CoevolveError, match="seed: found 'two'"):
        score(run[0] / "estimator", run[0] / "world" / "dialogues.json", seed="two")
    with pytest.raises(CoevolveError, match="nowhere"):
        remid(run[0] / "estimator", tmp_path / "nowhere.json", {"a": tmp_path / "a.jsonl"})
