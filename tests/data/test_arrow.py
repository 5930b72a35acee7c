"""Arrow and Parquet: what `datasets` made of rows is undone, and a damaged file is an error,
whatever it does to who reads it.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from coevolve.data import arrow, arrow_rows
from coevolve.data.corpus import read_corpus, read_data
from coevolve.data.example import Example
from coevolve.errors import DataError

ARROW = "data-00000-of-00001.arrow"


def save_to_disk(rows, folder):
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def to_parquet(rows, folder):
    datasets.Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def to_json(rows, folder):
    datasets.Dataset.from_list(rows).to_json(folder / "rows.jsonl")
    return folder / "rows.jsonl"


def mixed_as_json(rows, folder):
    """What differs in its kind from row to row is kept as JSON text,
    which the column's type says.
    """
    datasets.Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(folder / "mixed.parquet")
    return folder / "mixed.parquet"


@pytest.mark.parametrize("write", [save_to_disk, to_parquet, to_json, mixed_as_json])
def test_rows_come_back_as_they_were(tmp_path, make_row, write):
    """Keys that a row lacks, turns, and integers beside fractions and beside nothing at all."""
    ages = [
        {"age": 3, "name": "Ada"},
        {"age": 3.5},
        {"name": "Eve", "likes": {"tea": 1}},
        {"likes": {"tea": 0.5}},
    ]
    rows = [make_row(f"s{k}", agent_character=age) for k, age in enumerate(ages)]
    expected = tuple(Example.from_row(row, "row") for row in rows)
    with_split = [{"trace": None, **row, "split": "IDTrain"} for row in rows]
    found = read_corpus(write(with_split, tmp_path)).splits["IDTrain"]
    assert found == expected
    # 3 == 3.0, but a prompt does not show the same.
    assert [type(example.agent_character.get("age")) for example in found] == [
        int,
        float,
        type(None),
        type(None),
    ]
    assert found[2].agent_character["likes"]["tea"].__class__ is int


def test_a_character_that_differs_in_kind_is_read(tmp_path, make_row):
    rows = [
        make_row("a", agent_character={"name": "Ada"}),
        make_row("b", agent_character="I am Eve."),
    ]
    read = read_data(mixed_as_json(rows, tmp_path))
    assert [example.agent_character for example in read] == [{"name": "Ada"}, "I am Eve."]


def test_only_the_columns_of_a_datasets_format_are_read(tmp_path, make_row):
    rows = [make_row("a", split="IDTrain", note="x")]
    datasets.Dataset.from_list(rows).with_format(columns=[*make_row(), "split"]).save_to_disk(
        tmp_path / "saved"
    )
    assert read_corpus(tmp_path / "saved").splits["IDTrain"][0].sample_id == "a"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table({"sample_ID": pa.array([b"x"])}),
            "Object of type bytes is not JSON serializable",
        ),
        (pa.Table.from_arrays([pa.array(["a"])] * 2, ["x", "x"]), "a column is there twice"),
        (pa.table({"x": pa.nulls(10**6)}), "claims to have 1,000,000 rows"),
        (
            pa.table({"x": pa.array(["{,"], pa.string()).cast(pa.json_())}),
            "Expecting property name",
        ),
    ],
)
def test_a_table_that_holds_no_rows_of_ours(tmp_path, table, message):
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    with pytest.raises(
        DataError, match=rf"x\.arrow: cannot be read as Arrow \(.*{message}.*\)\. Again\."
    ):
        arrow._read([tmp_path / "x.arrow"], "Arrow", "Again.")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", "[]", "accepted is what datasets.save_to_disk writes"),
        (
            "state.json",
            '{"_data_files": [{"filename": "../rows.arrow"}]}',
            "accepted is what datasets.save_to_disk",
        ),
        ("state.json", '{"_data_files": [3]}', "accepted is what datasets.save_to_disk writes"),
        ("state.json", '{"_data_files": [{"filename": "none.arrow"}]}', "none.arrow: no such file"),
        (ARROW, "", "cannot be read as Arrow"),
    ],
)
def test_a_saved_folder_that_is_damaged(tmp_path, make_row, file, content, message):
    saved = save_to_disk([make_row(split="IDTrain")], tmp_path)
    (saved / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_corpus(saved)


def test_a_reader_that_crashes_is_an_error(tmp_path, make_row, monkeypatch):
    """A process that really dies by a segmentation fault, in place of one that a file
    can make die.
    """
    program = tmp_path / "crash.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(arrow_rows, "__file__", str(program))
    with pytest.raises(
        DataError, match=r"rows\.parquet: cannot be read as Parquet \(.*SIGSEGV: it is damaged\)"
    ):
        read_data(to_parquet([make_row()], tmp_path))


FLIPS = """
import io, json, sys
from pathlib import Path
path = Path(sys.argv[1])
sys.path.append(sys.argv[2])
from arrow_rows import write_rows
from random import Random
random, content, ends = Random(0), path.read_bytes(), set()
for _ in range(int(sys.argv[3])):
    damaged = bytearray(content)
    # Half of them among what says how the rest is to be read, which stands at the ends.
    edge = random.choice([len(content), 1000])
    place = random.randrange(min(edge, len(content))) * random.choice([1, -1])
    damaged[place] ^= 1 << random.randrange(8)
    path.write_bytes(damaged)
    out = io.StringIO()
    write_rows([str(path)], out)
    last = json.loads(out.getvalue().splitlines()[-1])
    ends.add(last if last == "end" else "error")
print(sorted(ends))
"""


@pytest.mark.parametrize("write", [save_to_disk, to_parquet])
@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_flipped_bits_crash_nothing(tmp_path, make_row, write, count):
    rows = [make_row(f"s{k}", user_persona=f"I like {k} teas.", split="IDTrain") for k in range(20)]
    path = write(rows, tmp_path)
    path = path / ARROW if path.is_dir() else path
    command = [
        sys.executable,
        "-P",
        "-c",
        FLIPS,
        path,
        Path(arrow_rows.__file__).parent,
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "['end', 'error']\n"), done.stderr[-2000:]


@pytest.mark.slow
def test_a_flipped_bit_gives_a_corpus_or_an_error(tmp_path, make_row):
    saved = save_to_disk([make_row(f"s{k}", split="IDTrain") for k in range(20)], tmp_path)
    content, generator, refused = (saved / ARROW).read_bytes(), random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (saved / ARROW).write_bytes(damaged)
        try:
            assert len(read_corpus(saved).examples) == 20
        except DataError as error:
            refused += 1
            assert os.fspath(saved) in str(error) and "Traceback" not in str(error)
    assert 0 < refused < 60
