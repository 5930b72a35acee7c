"""Reading a corpus: every layout gives the same examples, and every fault is an error that says
where.
"""

import json
from pathlib import Path

import datasets
import pytest

from coevolve.data.corpus import SHIFT_OF_SPLIT, Corpus, read_corpus, read_data, read_examples
from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.files import write_json, write_jsonl

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "roleplay-shared.json"


@pytest.fixture
def splits(make_row):
    """Rows of two splits, in an order that is not the canonical one, with characters of different
    keys.
    """
    return {
        "OOD1Test": [
            make_row("g1", subset_tag="german", agent_character={"persona": ["Ich segle."]}),
            make_row("k1", subset_tag="korean", agent_character={"persona": ["선원"]}),
            make_row("g2", subset_tag="german", agent_character={"name": "Ada"}),
        ],
        "IDTrain": [make_row("t1", trace="think"), make_row("t2")],
    }


def write_object(folder, splits):
    write_json(folder / "data.json", splits)
    return folder / "data.json"


def write_object_reformatted(folder, splits):
    reordered = {
        name: [dict(reversed(row.items())) for row in splits[name]] for name in reversed(splits)
    }
    (folder / "data.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(reordered, indent=7).encode())
    return folder / "data.json"


def write_split_files(folder, splits):
    write_jsonl(folder / "OOD1Test.jsonl", splits["OOD1Test"])
    write_json(folder / "IDTrain.json", splits["IDTrain"])
    (folder / "README.md").write_text("about")
    return folder


def write_one_jsonl(folder, splits):
    write_jsonl(
        folder / "rows.jsonl",
        [row | {"split": name} for name, rows in splits.items() for row in rows],
    )
    return folder / "rows.jsonl"


def write_saved_dict(folder, splits):
    saved = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_dataset(folder, splits):
    # from_list takes the columns of the first row, so that row needs all of them
    rows = [
        {"trace": None} | row | {"split": name} for name, rows in splits.items() for row in rows
    ]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def write_parquet_files(folder, splits):
    for name, rows in splits.items():
        as_text = [row | {"agent_character": json.dumps(row["agent_character"])} for row in rows]
        datasets.Dataset.from_list(as_text).to_parquet(folder / f"{name}.parquet")
    return folder


LAYOUTS = [
    write_object,
    write_object_reformatted,
    write_split_files,
    write_one_jsonl,
    write_saved_dict,
    write_saved_dataset,
    write_parquet_files,
]


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_corpus(tmp_path, splits, write):
    expected = {
        name: tuple(Example.from_row(row, "") for row in rows) for name, rows in splits.items()
    }
    corpus = read_corpus(write(tmp_path, splits))
    assert list(corpus.splits) == ["IDTrain", "OOD1Test"]
    assert corpus.splits == expected
    assert corpus.fingerprint == Corpus(expected, "memory").fingerprint
    assert read_examples(corpus.source) == [*expected["IDTrain"], *expected["OOD1Test"]]


def test_a_corpus_answers_by_split_and_subset(tmp_path, splits):
    corpus = read_corpus(write_object(tmp_path, splits))
    subsets = corpus.subsets("OOD1Test")
    assert {name: [example.sample_id for example in group] for name, group in subsets.items()} == {
        "german": ["g1", "g2"],
        "korean": ["k1"],
    }
    assert list(subsets) == ["german", "korean"]
    assert corpus.test_splits == ("OOD1Test",)
    with pytest.raises(DataError, match=r"split 'IDTest' is needed, found are IDTrain, OOD1Test"):
        corpus.require("IDTest")


def test_to_json_is_read_back(tmp_path, splits):
    corpus = read_corpus(write_object(tmp_path, splits))
    corpus.to_json(tmp_path / "copy.json")
    copy = read_corpus(tmp_path / "copy.json")
    assert copy.splits == corpus.splits
    assert copy.fingerprint == corpus.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows["IDTrain"].reverse(),
        lambda rows: rows["IDTrain"][0].update(agent_golden_response="To land."),
        lambda rows: rows["IDTrain"][0].update(
            agent_character={"facts": ["I am a sailor."], "name": "Ada"}
        ),
        lambda rows: rows.update(IDTest=rows.pop("IDTrain")),
    ],
    ids=["row order", "text", "key order of a character", "split"],
)
def test_the_fingerprint_changes_with_what_a_model_would_see(tmp_path, splits, change):
    before = read_corpus(write_object(tmp_path, splits)).fingerprint
    change(splits)
    assert read_corpus(write_object(tmp_path, splits)).fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.update(valid=[], dev=[]),
            r"data\.json: unknown split 'valid', 'dev'; accepted are IDTrain, .*, train, test",
        ),
        (
            lambda rows: rows.update(train=rows["OOD1Test"]),
            r"data\.json: IDTrain is there under 'train' too\. Keep one",
        ),
        (lambda rows: rows.update(IDTest=[]), r"data\.json: split 'IDTest' has no rows"),
        (
            lambda rows: rows.update(IDTest={}),
            r"data\.json: split 'IDTest' is an object; accepted: a list",
        ),
        (lambda rows: rows.clear(), r"data\.json: has no splits; accepted are IDTrain, "),
        (
            lambda rows: rows["IDTrain"][1].pop("agent_golden_response"),
            r"data\.json: IDTrain\[1\] \(sample_ID 't2'\): "
            "field 'agent_golden_response' is missing",
        ),
        (
            lambda rows: rows["OOD1Test"][2].update(sample_ID="t1"),
            r"data\.json: OOD1Test\[2\]: sample_ID 't1' is also that of .*data\.json: IDTrain\[0\]",
        ),
        (
            lambda rows: rows["OOD1Test"].append(5),
            r"data\.json: OOD1Test\[3\]: a number; accepted is an object",
        ),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, splits, change, message):
    change(splits)
    path = write_object(tmp_path, splits)
    for read in (read_corpus, read_examples):
        with pytest.raises(DataError, match=message):
            read(path)


def test_a_jsonl_fault_is_named_with_its_line(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [make_row("a", split="IDTrain"), make_row("b")])
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: field 'split' is absent; accepted are IDTrain"
    ):
        read_corpus(path)
    write_jsonl(path, [make_row("a", split="IDTrain"), make_row("b", split=["IDTest"])])
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: field 'split' is \['IDTest'\]; accepted are IDTrain"
    ):
        read_corpus(path)
    write_jsonl(path, [make_row("a", split="IDTrain"), make_row("a", split="IDTest")])
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: sample_ID 'a' is also that of .*rows\.jsonl:1"
    ):
        read_corpus(path)
    path.write_text(json.dumps(make_row("a", split="IDTrain")) + "\n\n{,\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not JSON"):
        read_corpus(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"IDTrain": [\n{"sample_ID": "\xff"}]}', r"data\.json:2: byte .* is not UTF-8"),
        (b'{"IDTrain": [\n{]}', r"data\.json:2: not JSON"),
        (b"", r"data\.json:1: not JSON"),
        (b"3", r"data\.json: found a number; accepted: an object of splits, a list of rows"),
        (b"[]", r"data\.json: has no rows"),
    ],
)
def test_a_file_that_is_no_corpus_is_an_error(tmp_path, content, message):
    (tmp_path / "data.json").write_bytes(content)
    for read in (read_corpus, read_examples):
        with pytest.raises(DataError, match=message):
            read(tmp_path / "data.json")


def test_a_path_that_holds_nothing_readable_is_an_error(tmp_path, make_row):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "bad.parquet").write_text("hello")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["IDTrain"]}')
    (tmp_path / "empty").mkdir()
    for name, message in {
        "absent": "no such file or folder",
        "absent.json": "no such file",
        "absent.parquet": "no such file",
        "notes.txt": "is neither .json nor .jsonl",
        "bad.parquet": "cannot be read as Parquet",
        "saved": r"IDTrain/state\.json: no such file",
        "empty": "holds no data; accepted are <split>",
    }.items():
        with pytest.raises(DataError, match=message):
            read_corpus(tmp_path / name)


def test_a_folder_must_name_each_split_once(tmp_path, make_row):
    write_jsonl(tmp_path / "IDTrain.jsonl", [make_row()])
    write_json(tmp_path / "IDTrain.json", [make_row()])
    with pytest.raises(DataError, match="split 'IDTrain' is there in two formats"):
        read_corpus(tmp_path)
    (tmp_path / "IDTrain.json").rename(tmp_path / "traces.json")
    with pytest.raises(DataError, match="unknown split 'traces'; accepted are IDTrain"):
        read_corpus(tmp_path)


def test_prose_that_begins_with_a_brace_stays_a_string(tmp_path, make_row):
    write_saved_dict(tmp_path, {"IDTrain": [make_row(agent_character="{smiles} I am Ada.")]})
    assert (
        read_corpus(tmp_path / "saved").splits["IDTrain"][0].agent_character == "{smiles} I am Ada."
    )


def test_flat_rows_need_no_split_and_no_golden_response(tmp_path, make_row):
    row = make_row("b")
    del row["agent_golden_response"]
    rows = [make_row("a", response="Aye."), row]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "rows.json", rows)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        examples = read_examples(tmp_path / name)
        assert [(example.sample_id, example.golden_response) for example in examples] == [
            ("a", "To sea."),
            ("b", None),
        ]


def test_golden_responses_can_be_left_open(tmp_path, make_row):
    row = make_row()
    del row["agent_golden_response"]
    write_json(tmp_path / "data.json", {"IDTest": [row]})
    (example,) = read_corpus(tmp_path / "data.json", require_golden=False).require("IDTest")
    assert example.golden_response is None
    with pytest.raises(DataError, match=r"IDTest\[0\] .*field 'agent_golden_response' is missing"):
        read_data(tmp_path / "data.json")
    assert read_data(tmp_path / "data.json", require_golden=False).require("IDTest") == (example,)
    write_json(tmp_path / "list.json", [row])
    assert read_data(tmp_path / "list.json") == [example]


def test_flat_rows_are_checked(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [make_row("a"), make_row("a")])
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: sample_ID 'a' is also that of .*rows\.jsonl:1"
    ):
        read_examples(path)
    write_jsonl(path, [make_row("a"), make_row("b", split="IDTest")])
    with pytest.raises(DataError, match=r"rows\.jsonl:2 \(sample_ID 'b'\): unknown field 'split'"):
        read_examples(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        read_examples(path)


def test_a_corpus_made_in_memory_has_known_splits_only():
    with pytest.raises(DataError, match="world: unknown split 'dev'; accepted are IDTrain"):
        Corpus({"dev": ()}, "world")


@pytest.mark.skipif(
    not SHARED.exists(), reason="the shared role-play data is not beside the checkout"
)
def test_the_shared_dialogues_are_read():
    corpus = read_corpus(SHARED)
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {
        "IDTrain": 914,
        "IDTest": 150,
        "OOD1Test": 600,
        "OOD2Test": 150,
        "OOD3Test": 300,
    }
    assert corpus.test_splits == tuple(
        name for name in SHIFT_OF_SPLIT if name not in ("IDTrain", "OOD4Test")
    )
    assert list(corpus.subsets("OOD3Test")) == ["turn_composition", "word_composition"]
    assert {
        name: [example.to_row() for example in rows] for name, rows in corpus.splits.items()
    } == json.loads(SHARED.read_text(encoding="utf-8"))


def test_train_and_test_are_the_first_two_splits(tmp_path, splits, make_row):
    rows = {"test": [make_row("s", split="test")], "train": [make_row("t", split="train")]}
    write_jsonl(tmp_path / "rows.jsonl", [*rows["test"], *rows["train"]])
    found = read_corpus(tmp_path / "rows.jsonl").splits
    assert {name: rows[0].sample_id for name, rows in found.items()} == {
        "IDTrain": "t",
        "IDTest": "s",
    }
    bare = {name: [{**row, "split": None} for row in of_split] for name, of_split in rows.items()}
    write_json(tmp_path / "data.json", bare)
    assert read_corpus(tmp_path / "data.json").splits == found


def test_fields_beside_are_left_out_with_one_line(tmp_path, splits, make_row, caplog):
    rows = [
        make_row(str(number), source_url="x", **({"note": 1} if number else {}))
        for number in range(3)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_examples(tmp_path / "rows.jsonl") == [
        Example.from_row(make_row(str(number)), "") for number in range(3)
    ]
    (line,) = caplog.records
    assert (
        "rows.jsonl: fields that are not read: source_url (3 rows), note (2 rows)." in line.message
    )


def test_a_field_that_is_almost_one_is_a_mistake(tmp_path, make_row):
    row = make_row("a")
    row["agent_golden_respons"] = row.pop("agent_golden_response")
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match="unknown field 'agent_golden_respons'; accepted are"):
        read_examples(tmp_path / "rows.jsonl")


def test_an_integer_is_an_id(tmp_path, make_row):
    rows = [make_row(7), make_row(8.0)]  # a table of integers with a gap has made floats of them
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [example.sample_id for example in read_examples(tmp_path / "rows.jsonl")] == ["7", "8"]
    write_jsonl(tmp_path / "rows.jsonl", [make_row(True)])
    with pytest.raises(DataError, match="sample_ID is a boolean"):
        read_examples(tmp_path / "rows.jsonl")


def test_all_faults_of_a_file_come_at_once_by_kind(tmp_path, make_row):
    rows = [make_row(f"r{number}") for number in range(60)]
    for number in range(0, 50, 2):
        rows[number]["user_persona"] = number
    rows[1]["dialogue_context"] = []
    rows[3]["sample_ID"] = "r5"
    write_json(tmp_path / "data.json", {"IDTrain": rows})
    with pytest.raises(DataError) as error:
        read_corpus(tmp_path / "data.json")
    first, *lines = str(error.value).splitlines()
    assert first.endswith("data.json: 27 rows cannot be read.")
    assert [line.split("IDTrain")[1] for line in lines[:20]] == [
        f"[{number}] (sample_ID 'r{number}'): user_persona is a number; accepted is a string."
        for number in range(0, 40, 2)
    ]
    assert lines[20] == "... and 5 more of this kind."
    assert "dialogue_context is an empty list" in lines[21] and "also that of" in lines[22]
    assert len(lines) == 23
