"""Foreign files and foreign JSON: what cannot be taken as it stands is one sentence that says
where.
"""

import errno
import json
import os
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import save_file

from coevolve.errors import DataError
from coevolve.files import (
    DEEPEST,
    is_folder,
    parse_json,
    read_json,
    read_jsonl,
    read_text,
    write_file,
    write_text,
    writing,
)
from tests.refusals import largest_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "here: key 'a' is there twice."),
        ('{"a": [0, {"b": {"c": 1, "c": 1}}]}', "key 'c' is there twice in a[1].b."),
        ('{"x": {"c": 1, "c": 1}, "x": {}}', "key 'x' is there twice."),
        ("[" * 101 + "]" * 101, "too deep; accepted are 100 levels"),
        ('{"a":' * 200 + "1" + "}" * 200, "too deep; accepted are 100 levels"),
        ("[" * 100_000, "too deep"),
        ("[NaN]", "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ("1e400", "the number 1e400 is beyond a float"),
        ("[" + "7" * 302 + "]", "7777777777... has 302 characters; accepted are 300"),
        ("7" * 5000, "has 5,000 characters"),
        ("0." + "7" * 5000, "has 5,002 characters"),
        ("{,}", "here: not JSON (Expecting property name"),
    ],
)
def test_json_that_is_not_accepted(text, message):
    with pytest.raises(DataError) as caught:
        parse_json(text, "here")
    assert message in str(caught.value)
    assert str(caught.value).startswith("here: ")


def test_json_that_is_accepted():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "here") == json.loads(
        "[" * DEEPEST + "]" * DEEPEST
    )
    # Brackets in text are no levels.
    assert parse_json(json.dumps({"a": "[{" * 500}), "here") == {"a": "[{" * 500}
    assert parse_json("7" * 300, "here") == int("7" * 300)
    assert repr(parse_json("[1, 1.0, NaN, -Infinity]", "here", nan=True)) == "[1, 1.0, nan, -inf]"
    assert parse_json('[{"a": {"b": 1}}, {"a": {"b": 1}}]', "here") == [{"a": {"b": 1}}] * 2


def test_a_line_or_a_path_of_keys_names_the_place(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 1, "a": 2}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: key 'a' is there twice\."):
        list(read_jsonl(tmp_path / "rows.jsonl"))
    (tmp_path / "data.json").write_text('{\n"IDTrain": [{}, {"a": 1, "a": 2}]}')
    with pytest.raises(DataError, match=r"data\.json: key 'a' is there twice in IDTrain\[1\]\."):
        read_json(tmp_path / "data.json")
    (tmp_path / "data.json").write_text('{\n"IDTrain": [{}, }')
    with pytest.raises(DataError, match=r"data\.json:2: not JSON"):
        read_json(tmp_path / "data.json")


def test_ends_of_lines_and_byte_order_marks(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf1\r\n2\r\r3\n")
    assert list(read_jsonl(path)) == [(1, 1), (2, 2), (4, 3)]
    path.write_bytes(b"\xef\xbb\xbf1\n\xff")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: byte 5 is not UTF-8"):
        read_text(path)


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("1")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for path, message in {
        tmp_path / "pipe": "pipe: is a pipe; accepted is a plain file",
        tmp_path / "folder": "folder: is a folder",
        tmp_path / "socket": "socket: is a socket",
        tmp_path / "loop": "Too many levels of symbolic links",
        tmp_path / "none": "none: no such file",
        tmp_path / "sparse": "has 1,099,511,627,776 bytes; accepted are at most 2,147,483,648",
        tmp_path / "file" / "below": "Not a directory",
        tmp_path / ("n" * 300): "File name too long",
        f"{tmp_path}/nu\0l": "null byte",
        "/dev/zero": "/dev/zero: is a device",
        "": "No such file or directory",
    }.items():
        for read in (read_text, read_json, lambda path: list(read_jsonl(path))):
            with pytest.raises(DataError, match=message):
                read(path)
    assert (
        is_folder(tmp_path / "folder")
        and not is_folder(tmp_path / "file")
        and not is_folder(tmp_path / "none")
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to the superuser")
def test_a_file_that_is_closed_to_us(tmp_path):
    (tmp_path / "closed").write_text("1")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(DataError, match=r"closed: cannot be read \(Permission denied\)"):
        read_text(tmp_path / "closed")


@pytest.mark.parametrize(
    "value",
    [{"a": "word " * 10_000_000}, {"a": [{"b": "word " * 50}] * 200_000}],
    ids=["text", "objects"],
)
def test_a_row_of_50_mb_costs_little_more_than_reading_it(tmp_path, value):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(value) + "\n")
    assert path.stat().st_size > 50_000_000
    before = time.process_time()
    plain = json.loads(path.read_text())
    between = time.process_time()
    assert list(read_jsonl(path)) == [(1, plain)]
    assert time.process_time() - between < between - before + 1


def by_rust(path):
    save_file({"x": torch.zeros(100_000)}, path / "weights")


def by_copying(path):
    shutil.copytree(path.parent / "much", path / "copy")


WRITERS = {
    "text": lambda path: write_text(path / "a", "x" * 10_000),
    "pieces": lambda path: write_file(path / "a", ("x" * 1000 for _ in range(10))),
    "rust": by_rust,
    "copies": by_copying,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_the_disk_does_not_hold_is_named_whoever_writes(tmp_path, name):
    (tmp_path / "much").mkdir()
    (tmp_path / "much" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError) as raised, largest_file(2000), writing(tmp_path / "out"):
        WRITERS[name](tmp_path / "out")
    assert raised.value.errno == errno.EFBIG
    assert str(raised.value.filename).startswith(str(tmp_path / "out"))


def test_what_is_no_refusal_of_the_machine_passes(tmp_path):
    for error in (ValueError("[Errno 2] no"), OSError("nothing"), KeyError("x")):
        with pytest.raises(type(error)) as raised, writing(tmp_path):
            raise error
        assert raised.value is error
