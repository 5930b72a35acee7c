"""Run as a program, `arrow_rows.py FILE...`: the rows of Arrow and Parquet files as lines of JSON
on standard output.

A flipped bit in such a file can crash whoever reads it, deep in compiled code. So the files are
read here, in a process of its own, and checked before a value is taken. Each line is a row,
`[number of the file, row]`, but for the last one: `"end"`, or `{"error": reason, "file": number}`.
Nothing of coevolve is loaded.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1000


def main(files: list[str]) -> None:
    # What a library prints goes elsewhere than what is read.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        write_rows(files, out)


def write_rows(files: list[str], out: IO[str]) -> None:
    """Write the lines for these files."""
    for number, file in enumerate(files):
        try:
            for row in rows_of(file):
                text = json.dumps([number, row], ensure_ascii=False, default=date_text)
                out.write(f"{text}\n")
        except Exception as error:  # several kinds of pyarrow's, and of Python's own
            reason = " ".join(str(error).split()) or type(error).__name__
            out.write(f"{json.dumps({'error': reason[:300], 'file': number})}\n")
            return
    out.write('"end"\n')


def date_text(value: Any) -> str:
    """A date or a time, which JSON does not know, as text."""
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, or of an Arrow stream as `datasets` saves it."""
    import pyarrow as pa
    import pyarrow.parquet

    if file.endswith(".parquet"):
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as parquet:
            parts = parquet.iter_batches(ROWS_AT_ONCE, use_threads=False)
            yield from rows_in(file, parquet.schema_arrow, parquet.metadata.num_rows, parts)
        return
    with pa.memory_map(file) as source, pa.ipc.open_stream(source) as stream:
        table = stream.read_all()
    table.validate(full=True)
    yield from rows_in(file, table.schema, table.num_rows, table.to_batches(ROWS_AT_ONCE))


def rows_in(
    file: str, schema: "pa.Schema", count: int, batches: "Iterable[pa.RecordBatch]"
) -> Iterator[dict[str, Any]]:
    """The rows of batches, each checked before a value is taken."""
    if count > 8 * os.path.getsize(file):
        raise ValueError(f"it claims to have {count:,} rows")
    if len(set(schema.names)) != len(schema.names):
        raise ValueError("a column is there twice")
    decoders = {field.name: decoder(field.type) for field in schema}
    for batch in batches:
        batch.validate(full=True)
        for row in batch.to_pylist():
            yield {name: decoders[name](value) for name, value in row.items()}


def decoder(kind: "pa.DataType") -> Callable[[Any], Any]:
    """What makes a type's values plain: `datasets` keeps uneven objects as JSON text."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return lambda text: None if text is None else json.loads(text)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = decoder(kind.value_type)
        return lambda items: None if items is None else [inner(item) for item in items]
    if pa.types.is_struct(kind):
        fields = {field.name: decoder(field.type) for field in kind}
        return lambda row: None if row is None else {key: fields[key](row[key]) for key in row}
    return lambda value: value


if __name__ == "__main__":
    main(sys.argv[1:])
