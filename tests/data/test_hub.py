"""Corpora from the hub, read out of a hub cache that the tests fill; nothing here touches the
network.
"""

import csv
import json
from dataclasses import replace

import datasets
import huggingface_hub
import pytest

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.data.hub import PERSONA_CHAT, RPGBENCH, corpus_from_folder, load_hub
from coevolve.errors import DataError
from coevolve.files import write_json, write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cached(tmp_path):
    """Makes an empty snapshot of a repository in a hub cache at `tmp_path`, as a download leaves
    it.
    """

    def make(name):
        repository = tmp_path / f"datasets--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        return snapshot

    return make


@pytest.fixture
def splits(make_row):
    return {
        "IDTrain": [make_row("a"), make_row("b")],
        "OOD2Test": [make_row("c", subset_tag="gaming")],
    }


@pytest.fixture
def expected(splits):
    return Corpus(
        {name: tuple(Example.from_row(row, "") for row in rows) for name, rows in splits.items()},
        "memory",
    )


def test_rpgbench_comes_from_the_cache_when_offline(tmp_path, cached, offline, splits, expected):
    write_json(cached(RPGBENCH) / "RPGBench.json", splits)
    corpus = load_hub(RPGBENCH, cache_dir=tmp_path)
    assert corpus == replace(expected, source=f"{RPGBENCH}@{COMMIT}")


def test_persona_chat_comes_from_the_cache_when_offline(tmp_path, cached, offline):
    chat = "\n".join(f"User {1 + turn % 2}: line {turn} of the chat" for turn in range(16))
    data = cached(PERSONA_CHAT) / "data"
    data.mkdir()
    for name in ("train", "valid", "test"):
        with open(
            data / f"Synthetic-Persona-Chat_{name}.csv", "w", encoding="utf-8", newline=""
        ) as file:
            columns = ["user 1 personas", "user 2 personas", "Best Generated Conversation"]
            csv.writer(file).writerows([columns, ["I sail.", "I code.", chat]])
    corpus = load_hub(PERSONA_CHAT, cache_dir=tmp_path)
    assert corpus.source == f"{PERSONA_CHAT}@{COMMIT}"
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {
        "IDTrain": 1,
        "IDTest": 1,
        "OOD3Test": 2,
    }
    assert corpus.require("IDTrain")[0].golden_response == "line 7 of the chat"


@pytest.mark.parametrize("name", [RPGBENCH, PERSONA_CHAT, "somebody/else"])
def test_without_network_or_cache_the_error_says_what_to_do(tmp_path, offline, name):
    with pytest.raises(
        DataError, match=rf"data\.hub={name} \(revision v2\): .* failed: .*data\.path=FILE"
    ):
        load_hub(name, revision="v2", cache_dir=tmp_path)


def write_repository(folder, splits):
    """A dataset repository of another name: a card that says which file is which split, and the
    files.
    """
    folder.mkdir()
    listed = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in splits)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n"
    )
    for name, rows in splits.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return str(folder)


def test_any_other_dataset_is_loaded_by_its_splits(tmp_path, offline, splits, expected, make_row):
    splits["IDTrain"].append(make_row("d", agent_character={"persona": ["I dive."]}))
    name = write_repository(tmp_path / "theirs", splits)
    corpus = load_hub(name, cache_dir=tmp_path / "cache")
    assert corpus.splits["IDTrain"][:2] == expected.splits["IDTrain"]
    assert corpus.splits["IDTrain"][2].agent_character == {"persona": ["I dive."]}
    assert corpus.splits["OOD2Test"] == expected.splits["OOD2Test"]
    assert corpus.source == f"{name}@main"


def test_a_dataset_with_other_splits_is_an_error(tmp_path, offline, splits):
    name = write_repository(tmp_path / "theirs", {"dev": splits["IDTrain"]})
    with pytest.raises(DataError, match="unknown split 'dev'; accepted are IDTrain"):
        load_hub(name, cache_dir=tmp_path / "cache")


def test_files_that_are_no_corpus_may_lie_beside_it(tmp_path, splits, expected):
    write_json(tmp_path / "Benchmark" / "v1" / "bench.json", splits)
    write_json(tmp_path / "cold_start.json", [splits["IDTrain"][0] | {"SThought": "because"}])
    write_json(tmp_path / "info.json", {"licence": "MIT"})
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "bench.json").write_text(json.dumps(splits))
    assert corpus_from_folder(tmp_path).splits == expected.splits


def test_a_repository_of_split_files_is_read(tmp_path, splits, expected):
    for name, rows in splits.items():
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    write_json(tmp_path / "data" / "info.json", {"licence": "MIT"})
    corpus = corpus_from_folder(tmp_path)
    assert (corpus.splits, corpus.fingerprint) == (expected.splits, expected.fingerprint)


def test_a_repository_with_no_corpus_or_several_is_an_error(tmp_path, splits):
    with pytest.raises(DataError, match=r"no corpus among no JSON file; .*data\.path=FILE"):
        corpus_from_folder(tmp_path)
    write_json(tmp_path / "info.json", {"licence": "MIT"})
    with pytest.raises(DataError, match=r"no corpus among info\.json; accepted"):
        corpus_from_folder(tmp_path)
    write_json(tmp_path / "v1.json", splits)
    write_json(tmp_path / "v2.json", splits)
    with pytest.raises(DataError, match=r"more than one corpus among v1\.json, v2\.json; accepted"):
        corpus_from_folder(tmp_path)
