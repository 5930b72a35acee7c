"""A corpus: training split, in-distribution test split and shifted ones, from any format."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from coevolve.data import arrow
from coevolve.data.example import OPTIONAL_FIELDS, REQUIRED_FIELDS, Example, kind, plain_row
from coevolve.errors import DataError
from coevolve.files import is_folder, look, read_json, read_jsonl, write_json

logger = logging.getLogger(__name__)

FIELDS = frozenset((*REQUIRED_FIELDS, *OPTIONAL_FIELDS))

# Which factor of x = (user, character, dialogue) each split shifts. The last one is an addition to
# the RPGBench layout: worlds with a known truth use it to shift every factor at once.
Shift = Literal["user", "character", "dialogue", "all"]
SHIFT_OF_SPLIT: Mapping[str, Shift | None] = {
    "IDTrain": None,
    "IDTest": None,
    "OOD1Test": "user",
    "OOD2Test": "character",
    "OOD3Test": "dialogue",
    "OOD4Test": "all",
}

TRAIN_SPLIT = "IDTrain"
SPLIT_NAMES = {**{name: name for name in SHIFT_OF_SPLIT}, "train": TRAIN_SPLIT, "test": "IDTest"}
"""What a split may be called -> the split."""
MOST_FAULTS = 20
"""Of a kind that are listed one by one."""

Row = tuple[str, Any]
"""(what to call the row in an error, its decoded JSON value)."""


@dataclass(frozen=True)
class Corpus:
    """Examples by split; `source` is where they came from, for the log and the manifest."""

    splits: Mapping[str, tuple[Example, ...]]
    source: str

    def __post_init__(self) -> None:
        _check_split_names(self.splits, self.source, SHIFT_OF_SPLIT)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the examples, whatever file format they were read from.

        The order of the rows counts, and so does the order of the keys in an `agent_character`:
        prompts show both to the model.
        """
        plain: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False}
        canonical = json.dumps(self.to_splits(), separators=(",", ":"), **plain)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    @property
    def split_fingerprints(self) -> dict[str, str]:
        """The fingerprint of each split by itself."""
        return {x: Corpus({x: rows}, self.source).fingerprint for x, rows in self.splits.items()}

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The names of the splits to evaluate on: IDTest first, then the shifted ones."""
        return tuple(name for name in _in_order(self.splits) if name != TRAIN_SPLIT)

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples of every split, in the order of SHIFT_OF_SPLIT."""
        return tuple(example for name in _in_order(self.splits) for example in self.splits[name])

    def require(self, split: str) -> tuple[Example, ...]:
        """The examples of `split`."""
        if split not in self.splits:
            found = ", ".join(_in_order(self.splits)) or "no split"
            raise DataError(f"{self.source}: split {split!r} is needed, found are {found}. Add it.")
        return self.splits[split]

    def subsets(self, split: str) -> dict[str, tuple[Example, ...]]:
        """The examples of `split` by their `subset_tag`, in order of first appearance."""
        groups: dict[str, list[Example]] = {}
        for example in self.require(split):
            groups.setdefault(example.subset, []).append(example)
        return {name: tuple(group) for name, group in groups.items()}

    def to_splits(self) -> dict[str, list[dict[str, Any]]]:
        """The RPGBench layout, one JSON object of splits, which `read_corpus` reads back."""
        return {name: [x.to_row() for x in self.splits[name]] for name in _in_order(self.splits)}

    def to_json(self, path: str | Path) -> None:
        """Write `to_splits`."""
        write_json(path, self.to_splits())


def read_corpus(path: str | Path, *, require_golden: bool = True) -> Corpus:
    """Read and check a corpus: every row is checked before any is returned, and sample_IDs are
    unique.

    Accepted, told apart by what is at `path`: a `.json` file with an object of splits, each a list
    of rows (the RPGBench layout); a `.jsonl` file, a `.json` file with a list, or a `.parquet`
    file, whose rows have one more field, `split`; a folder with a file `<split>.jsonl`,
    `<split>.json` or `<split>.parquet` for each split; a folder written by `save_to_disk` of a
    `datasets.DatasetDict`, or of a Dataset with a column `split`.

    Every row must have a golden response, as training and evaluation need it, unless
    `require_golden` is off.
    """
    rows = _read(path)
    if isinstance(rows, list):
        rows = _group_by_split(rows, Path(path))
    return build_corpus(rows, str(Path(path)), require_golden=require_golden)


def read_examples(path: str | Path) -> list[Example]:
    """Those of `read_data`, splits concatenated in the order of SHIFT_OF_SPLIT."""
    data = read_data(path)
    return list(data.examples) if isinstance(data, Corpus) else data


def read_data(path: str | Path, *, require_golden: bool = True) -> Corpus | list[Example]:
    """A corpus where the data has splits, a list of examples where it has none.

    Accepted are a `.jsonl`, `.json` (a list) or `.parquet` file of rows without the field `split`,
    and everything that `read_corpus` accepts. In a file without splits the golden response is
    optional, and a row may carry a model's response, which is left to `read_responses`.
    """
    if is_folder(path):
        return read_corpus(path, require_golden=require_golden)
    rows, path = _read(path), Path(path)
    if isinstance(rows, list) and not rows:
        raise DataError(f"{path}: has no rows. Give at least one.")
    if isinstance(rows, list) and isinstance(rows[0][1], Mapping) and "split" in rows[0][1]:
        rows = _group_by_split(rows, path)
    if isinstance(rows, Mapping):
        return build_corpus(rows, str(path), require_golden=require_golden)
    rows = [(where, _without_response(row)) for where, row in rows]
    (examples,) = _check_rows({"": rows}, str(path), Example.from_row).values()
    return list(examples)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a `.jsonl` file, or of a `.json` file that holds a list, each with its place."""
    rows = _rows_or_object(Path(path))
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: found an object; accepted is a list of rows, or a .jsonl file with one row a "
            "line."
        )
    return [(where, plain_row(row)) for where, row in rows]


def read_split_files(files: Iterable[Path], source: str) -> dict[str, list[Row]]:
    """The rows of files that are named after the split they hold, such as `IDTrain.jsonl`."""
    files = sorted(files)
    _check_split_names([file.stem for file in files], source)
    double = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    if double:
        raise DataError(f"{source}: split {double[0]!r} is there in two formats. Remove one.")
    parquet = [file for file in files if _is_parquet(file)]
    rows = dict(zip(parquet, arrow.read_parquet(parquet), strict=True)) if parquet else {}
    return {x.stem: _located(rows[x], str(x)) if x in rows else read_rows(x) for x in files}


def build_corpus(
    rows_by_split: Mapping[str, Iterable[Row]], source: str, *, require_golden: bool = True
) -> Corpus:
    """A Corpus of rows that are grouped by split, checked."""
    _check_split_names(rows_by_split, source)
    if not rows_by_split:
        raise DataError(f"{source}: has no splits; accepted are {', '.join(SHIFT_OF_SPLIT)}.")
    rows: dict[str, list[Row]] = {}
    for name in sorted(rows_by_split, key=list(SPLIT_NAMES).index):
        if (split := SPLIT_NAMES[name]) in rows:
            raise DataError(f"{source}: {split} is there under {name!r} too. Keep one of the two.")
        rows[split] = list(rows_by_split[name])
        if not rows[split]:
            raise DataError(f"{source}: split {name!r} has no rows. Give it some, or leave it out.")
    read = _with_golden_response if require_golden else Example.from_row
    splits = _check_rows(rows, source, read)
    return Corpus({name: splits[name] for name in _in_order(splits)}, source)


def locate_splits(rows_by_split: Mapping[str, Any], source: str) -> dict[str, list[Row]]:
    """Give every row of an object of splits its place, for example `data.json: IDTrain[3]`."""
    _check_split_names(rows_by_split, source)
    for name, rows in rows_by_split.items():
        if not isinstance(rows, list):
            raise DataError(f"{source}: split {name!r} is {kind(rows)}; accepted: a list of rows.")
    return {name: _located(rows, f"{source}: {name}") for name, rows in rows_by_split.items()}


def _read(path: str | Path) -> list[Row] | dict[str, list[Row]]:
    """Rows, or rows by split where the file or folder holds splits."""
    at_folder, path = is_folder(path), Path(path)
    if at_folder and not arrow.is_saved(path):
        return _read_split_folder(path)
    if at_folder:
        value: Any = arrow.read_saved(path)
    elif _is_parquet(path):
        value = arrow.read_parquet([path])[0]
    else:
        value = _rows_or_object(path)
        return value if isinstance(value, list) else locate_splits(value, str(path))
    give_places = _located if isinstance(value, list) else locate_splits
    return give_places(value, str(path))


def _rows_or_object(path: Path) -> list[Row] | Mapping[str, Any]:
    """Rows with their places, or the object that a .json file holds."""
    if path.suffix == ".jsonl":
        return [(f"{path}:{number}", row) for number, row in read_jsonl(path)]
    if path.suffix != ".json":
        problem = "is neither .json nor .jsonl" if look(path) else "no such file or folder"
        raise DataError(f"{path}: {problem}. Check the path; rows are in .json and .jsonl files.")
    value = read_json(path)
    if isinstance(value, list):
        return _located(value, str(path))
    if isinstance(value, Mapping):
        return value
    raise DataError(f"{path}: found {kind(value)}; accepted: an object of splits, a list of rows.")


def _read_split_folder(folder: Path) -> dict[str, list[Row]]:
    """The rows of every data file in `folder`, beside which other files may lie."""
    suffixes = (".json", ".jsonl", ".parquet")
    try:
        files = [x for x in folder.iterdir() if x.suffix in suffixes and x.name[0] != "."]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}).") from None
    if not files:
        raise DataError(
            f"{folder}: holds no data; accepted are <split>.jsonl, .json or .parquet, <split> one "
            f"of {', '.join(SHIFT_OF_SPLIT)}, or a folder written by datasets.save_to_disk."
        )
    return read_split_files(files, str(folder))


def _group_by_split(rows: list[Row], path: Path) -> dict[str, list[Row]]:
    """Group rows by their field `split`, and take the field off."""
    groups: dict[str, list[Row]] = {}
    for where, row in rows:
        name = row.get("split") if isinstance(row, Mapping) else None
        if name not in list(SPLIT_NAMES):
            found = f"{name!r}" if isinstance(row, Mapping) and "split" in row else "absent"
            raise DataError(
                f"{where}: field 'split' is {found}; accepted are {', '.join(SHIFT_OF_SPLIT)} (in "
                "every row, or one file for each split, or an object of splits in "
                f"{path.stem}.json)."
            )
        rest = {key: value for key, value in row.items() if key != "split"}
        groups.setdefault(name, []).append((where, rest))
    if not groups:
        raise DataError(f"{path}: has no rows. Give at least one.")
    return groups


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _located(rows: list[Any], place: str) -> list[Row]:
    return [(f"{place}[{index}]", row) for index, row in enumerate(rows)]


def _with_golden_response(row: Any, where: str) -> Example:
    example = Example.from_row(row, where)
    if example.golden_response is None:
        lacks = "field 'agent_golden_response' is missing; training and evaluation need it"
        raise DataError(f"{where} (sample_ID {example.sample_id!r}): {lacks} in every row.")
    return example


def _without_response(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    return {key: value for key, value in row.items() if key not in ("response", "model_response")}


def _check_rows(
    rows_by_split: Mapping[str, Iterable[Row]], source: str, read: Callable[[Any, str], Example]
) -> dict[str, tuple[Example, ...]]:
    """The examples of each split, or all that is wrong with any row in one error."""
    first: dict[str, str] = {}
    faults: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    splits: dict[str, list[Example]] = {}
    for name, rows in rows_by_split.items():
        splits[name] = []
        for where, row in rows:
            extra = _extra_fields(row)
            left_out.update(extra)
            if extra:
                row = {key: value for key, value in row.items() if key not in extra}
            try:
                example = read(row, where)
                if example.sample_id in first:
                    _refuse_double(example, where, first[example.sample_id])
            except DataError as error:
                faults.append((where, str(error)))
            else:
                first[example.sample_id] = where
                splits[name].append(example)
    if faults:
        raise DataError(_listed_faults(faults, source))
    if left_out:
        listed = ", ".join(f"{name} ({count} rows)" for name, count in left_out.most_common(20))
        logger.warning("%s: fields that are not read: %s.", source, listed)
    return {name: tuple(examples) for name, examples in splits.items()}


def _extra_fields(row: Any) -> list[str]:
    """Fields beside those of a row. One that is almost called like a field that the row lacks is
    a mistake, and so is a split where rows have none; neither is among them.
    """
    if not isinstance(row, Mapping) or FIELDS.issuperset(row):
        return []
    lacking = [name for name in FIELDS if name not in row]
    names = [x for x in row if x not in FIELDS and isinstance(x, str) and x != "split"]
    return [name for name in names if not get_close_matches(name, lacking, 1, 0.8)]


def _refuse_double(example: Example, where: str, earlier: str) -> None:
    raise DataError(
        f"{where}: sample_ID {example.sample_id!r} is also that of {earlier}; accepted is one row "
        "for each sample_ID, over all splits, as responses are matched by it. Rename or remove one."
    )


def _listed_faults(faults: Sequence[tuple[str, str]], source: str) -> str:
    """One message of all, by kind: what it says of any place, name or number."""
    if len(faults) == 1:
        return faults[0][1]
    kinds: dict[str, list[str]] = {}
    for where, message in faults:
        of_row = re.sub(r"^ \(sample_ID .*?\): ", "", message.removeprefix(where))
        kinds.setdefault(re.sub(r"'[^']*'|\d+", "", of_row), []).append(message)
    lines = [f"{source}: {len(faults)} rows cannot be read."]
    for messages in kinds.values():
        lines += messages[:MOST_FAULTS]
        if len(messages) > MOST_FAULTS:
            lines.append(f"... and {len(messages) - MOST_FAULTS} more of this kind.")
    return "\n".join(lines)


def _check_split_names(
    names: Iterable[str], source: str, accepted: Iterable[str] = SPLIT_NAMES
) -> None:
    unknown = [name for name in names if name not in accepted]
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise DataError(
            f"{source}: unknown split {', '.join(map(repr, unknown[:8]))}{more}; accepted are "
            f"{', '.join(accepted)}."
        )


def _in_order(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=list(SHIFT_OF_SPLIT).index)
