"""Data files of every format: read by the readers, and by `coevolve shift`, which needs no model.

An accepted corpus has exactly the rows that an independent reading of the damaged file finds, each
well formed.
"""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fuzz.core import Case
from tests.fuzz.mutate import mutate_file, mutate_folder, mutate_json, to_json, to_jsonl
from tests.fuzz.strict import (
    Unreadable,
    as_meant,
    is_text,
    same,
    strict_json,
    strict_jsonl,
    without_nulls,
)

SPLITS = ("IDTrain", "IDTest", "OOD1Test", "OOD2Test", "OOD3Test", "OOD4Test")
ARROW = ("saved splits", "saved rows", "parquet", "folder of parquet")
FORMATS = (*("splits", "splits", "rows", "lines", "folder", "nulls", "persona chat") * 2, *ARROW)


class DataFiles:
    name = "data"
    share = 18

    def run(self, case: Case) -> None:
        form = case.rng.choice(FORMATS)
        case.note(form)
        if form == "persona chat":
            _persona_chat(case)
            return
        path = _damaged(case, form)
        arrow = form in ARROW
        how = case.rng.random()
        if how < 0.55:
            corpus = case.call(_read_corpus, path)
            check_corpus(case, corpus.splits, None if arrow else _expected(case, path))
        elif how < 0.75:
            examples = case.call(_read_examples, path)
            check_examples(case, examples)
            if not arrow:
                expected = _expected(case, path, splits_needed=False)
                rows = [row for split in sorted(expected, key=_order) for row in expected[split]]
                _check_rows(case, "all", examples, rows)
        else:
            _shift(case, path, None if arrow else path)


def _order(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _read_corpus(path: Path) -> Any:
    from coevolve.data.corpus import read_corpus

    return read_corpus(path)


def _read_examples(path: Path) -> Any:
    from coevolve.data.corpus import read_examples

    return read_examples(path)


def _shift(case: Case, path: Path, readable: Path | None) -> None:
    """The command that writes the data again with a few rows more."""
    out = case.outputs / "shifted.json"
    kinds = ("word_order", "longer_turns", "unseen_character", "language")
    kind = "word_order" if case.untouched else case.rng.choice(kinds)
    options: list[Any] = {
        "language": ["--language", "chinese"],
        "longer_turns": ["--turns", "1"],
    }.get(kind, [])
    if kind == "unseen_character" and case.chance(0.7):
        pool = case.inputs / case.rng.choice(("pool.json", "pool.jsonl"))
        characters = [
            "Ann, a sailor.",
            {"name": "Ben", "age": 7},
            {"name": "Cy", "traits": ["calm"]},
        ]
        lines = pool.suffix == ".jsonl"
        pool.write_text(
            to_jsonl(characters, case.rng) if lines else to_json(characters, case.rng), "utf-8"
        )
        case.note(mutate_file(case.rng, pool))
        options = ["--characters", pool]
    case.command("shift", kind, "--data", path, "--out", out, "--samples", "1", *options)
    written = strict_json(out.read_bytes())
    if readable is not None:
        for split, rows in _expected(case, readable).items():
            kept = without_nulls(written.get(split, []))
            missing = [
                row["sample_ID"]
                for row in _canonical(rows)
                if not any(same(row, one) for one in kept)
            ]
            case.wrong_if(bool(missing), "shift lost or changed a row", missing)


def _persona_chat(case: Case) -> None:
    """The CSV files of Synthetic-Persona-Chat."""
    from coevolve.data.persona_chat import persona_chat_corpus

    folder = case.inputs / "chat"
    folder.mkdir()
    talk = "\n".join(
        f"User {1 + number % 2}: This is turn {number}, and so it goes." for number in range(16)
    )
    for name in ("train", "test"):
        with open(
            folder / f"Synthetic-Persona-Chat_{name}.csv", "w", encoding="utf-8", newline=""
        ) as file:
            rows = csv.writer(file)
            rows.writerow(["user 1 personas", "user 2 personas", "Best Generated Conversation"])
            rows.writerows(
                [[f"I am {name} {number}.\nI bake.", "I sail.", talk] for number in range(4)]
            )
    if not case.untouched:
        files = sorted(folder.iterdir())
        case.note(
            mutate_file(case.rng, case.rng.choice(files))
            if case.chance(0.85)
            else mutate_folder(case.rng, folder)
        )
    corpus = case.call(persona_chat_corpus, folder, test_size=2, turns=2, long_turns=3)
    check_corpus(case, corpus.splits, None)


def _damaged(case: Case, form: str) -> Path:
    """The corpus in one format, with damage somewhere; its path."""
    rng, rows = case.rng, case.valid.rows()
    if form in ARROW or form == "nulls":
        return _damaged_arrow(case, form)
    level = "none" if case.untouched else rng.choice(("json", "json", "json", "bytes", "place"))
    if level == "json":
        rows, did = mutate_json(rng, rows)
        case.note(did)
    if not (isinstance(rows, dict) and all(isinstance(split, list) for split in rows.values())):
        form = "splits"
    if form == "splits":
        path = case.inputs / "data.json"
        path.write_text(to_json(rows, rng), "utf-8")
    elif form == "folder":
        path = case.inputs / "data"
        path.mkdir()
        for split, listed in rows.items():
            jsonl = rng.random() < 0.5
            name = "".join(letter for letter in split if letter.isalnum())[:50] or "x"
            text = to_jsonl(listed, rng) if jsonl else to_json(listed, rng)
            (path / f"{name}.{'jsonl' if jsonl else 'json'}").write_text(text, "utf-8")
    else:
        flat = [
            {**row, "split": split} if isinstance(row, dict) else row
            for split, rows_ in rows.items()
            for row in rows_
        ]
        path = case.inputs / ("data.jsonl" if form == "lines" else "data.json")
        path.write_text(to_jsonl(flat, rng) if form == "lines" else to_json(flat, rng), "utf-8")
    if level in ("bytes", "place"):
        _damage_place(case, path, level)
    return path


def _damaged_arrow(case: Case, form: str) -> Path:
    saved = {
        "saved splits": "splits",
        "saved rows": "one",
        "parquet": "one.parquet",
        "nulls": "one.jsonl",
    }
    source = case.valid.folder / "saved" / saved.get(form, "folder")
    path = case.inputs / source.name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
    if not case.untouched:
        if form == "nulls":
            case.note(mutate_file(case.rng, path))
        else:
            _damage_place(case, path, "bytes" if case.chance(0.8) else "place")
    return path


def _damage_place(case: Case, path: Path, level: str) -> None:
    """Damage a file's bytes, or what lies at the path."""
    if level == "place":
        if path.is_dir():
            case.note(mutate_folder(case.rng, path))
        else:
            case.note(mutate_folder(case.rng, path.parent))
        return
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    binary = [file for file in files if file.suffix in (".arrow", ".parquet")]
    file = case.rng.choice(binary if binary and case.chance(0.75) else files)
    case.note(mutate_file(case.rng, file, as_json=0.5 if binary else 0.0))


def _expected(case: Case, path: Path, *, splits_needed: bool = True) -> Mapping[str, list[Any]]:
    """The rows of each split by an independent reading. What it cannot read should not have been
    accepted.
    """
    try:
        return _strict_rows(path, splits_needed)
    except Unreadable as error:
        case.wrong_if(True, f"not JSON by the letter: {str(error).partition(':')[0][:40]}", error)
        raise AssertionError from error


def _strict_rows(path: Path, splits_needed: bool) -> dict[str, list[Any]]:
    if path.is_dir():
        files = [
            file
            for file in path.iterdir()
            if file.suffix in (".json", ".jsonl") and file.name[0] != "."
        ]
        return {file.stem: _strict_file(file) for file in files}
    value = _strict_file(path)
    if isinstance(value, dict):
        return value
    if not splits_needed and not (value and isinstance(value[0], dict) and "split" in value[0]):
        return {"all": value}
    grouped: dict[str, list[Any]] = {}
    for row in value:
        grouped.setdefault(row["split"], []).append(
            {key: part for key, part in row.items() if key != "split"}
        )
    return grouped


def _strict_file(path: Path) -> Any:
    content = path.read_bytes()
    return strict_jsonl(content) if path.suffix == ".jsonl" else strict_json(content)


def check_corpus(
    case: Case, splits: Mapping[str, Any], expected: Mapping[str, list[Any]] | None
) -> None:
    """An accepted corpus against what the file says."""
    case.wrong_if(not splits or not all(splits.values()), "an empty corpus or split")
    case.wrong_if(not set(splits) <= set(SPLITS), "an unknown split", list(splits))
    check_examples(case, [example for split in splits.values() for example in split])
    if expected is not None:
        case.wrong_if(
            set(splits) != set(expected),
            "other splits than in the file",
            [list(splits), list(expected)],
        )
        for split, rows in expected.items():
            _check_rows(case, split, splits[split], rows)


def check_examples(case: Case, examples: Any) -> None:
    """What must hold for any example, wherever it came from."""
    ids = [example.sample_id for example in examples]
    case.wrong_if(not ids, "no examples")
    case.wrong_if(len(set(ids)) != len(ids), "a sample_ID twice")
    for example in examples:
        texts = [example.user_persona, *(turn.text for turn in example.dialogue)]
        ok = (
            is_text(example.sample_id)
            and is_text(example.subset)
            and all(is_text(x, empty=True) for x in texts)
        )
        case.wrong_if(not ok, "a text that is empty, no string, or no UTF-8", example)
        case.wrong_if(
            not example.dialogue or example.dialogue[-1].speaker != "user",
            "no user's turn at the end",
        )
        for text in (example.golden_response, example.trace):
            case.wrong_if(
                text is not None and not is_text(text), "a response or trace that is no text", text
            )
        if not isinstance(example.agent_character, str):
            try:
                json.dumps(example.agent_character, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError) as error:
                case.wrong_if(True, "a character that is not JSON", error)


def _check_rows(case: Case, split: str, examples: Any, rows: list[Any]) -> None:
    found = without_nulls([example.to_row() for example in examples])
    expected = _canonical(rows)
    case.wrong_if(
        len(found) != len(expected),
        "more or fewer rows than in the file",
        (split, len(found), len(expected)),
    )
    for one, other in zip(found, expected, strict=True):
        if not same(one, other):
            names = [key for key in {**one, **other} if not same(one.get(key), other.get(key))]
            case.wrong_if(
                True,
                f"another {names[0]} than in the file",
                (one.get(names[0]), other.get(names[0])),
            )


def _canonical(rows: list[Any]) -> list[Any]:
    """Rows as `Example.to_row` must give them: one name for a trace, nothing that is null, no
    judged response.
    """
    renamed = [
        {"trace" if key == "SThought" else key: value for key, value in row.items()}
        if isinstance(row, dict)
        else row
        for row in as_meant(rows)
    ]
    other = ("response", "model_response")
    return [
        {k: v for k, v in row.items() if k not in other} if isinstance(row, dict) else row
        for row in renamed
    ]


AREA = DataFiles()
