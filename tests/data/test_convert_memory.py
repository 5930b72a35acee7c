"""A file of any size becomes a corpus in little memory."""

import json
import subprocess
import sys

import pytest

from coevolve.data.corpus import read_corpus

ROW = {
    "system": "Ada, a sailor",
    "conversations": [
        {"from": "human", "value": "Hi!"},
        {"from": "gpt", "value": "Ahoy."},
        {"from": "human", "value": "Where to?"},
        {"from": "gpt", "value": "To sea."},
    ],
}
BIG = """
import resource, sys
from coevolve.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main(["convert", sys.argv[1], "--out", sys.argv[2]]) == 0
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_a_big_file_needs_little_memory(tmp_path, form):
    row = ROW | {"note": "x" * 2000}
    text, count = json.dumps(row), 48_000
    path = tmp_path / f"in.{form}"
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [row | {"note": f"{n}" * 400} for n in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
    else:
        between, ends = ("\n", "") if form == "jsonl" else (",\n", "[]")
        path.write_text(ends[:1] + between.join([text] * count) + ends[1:])
    assert path.stat().st_size > 80e6
    words = [sys.executable, "-c", BIG, str(path), str(tmp_path / "out.json")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, of_children = (int(text) * 1024 for text in done.stdout.splitlines()[-1].split())
    assert grown < 60e6 and of_children < 500e6
    assert read_corpus(tmp_path / "out.json").require("IDTest")
