"""Corpora from the Hugging Face hub: a download, and a pure function on its folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from coevolve.data import arrow
from coevolve.data.corpus import (
    SHIFT_OF_SPLIT,
    Corpus,
    build_corpus,
    locate_splits,
    read_corpus,
    read_split_files,
)
from coevolve.data.persona_chat import persona_chat_corpus
from coevolve.errors import DataError
from coevolve.files import read_json

RPGBENCH = "YongqiLi/RPGBench"
PERSONA_CHAT = "google/Synthetic-Persona-Chat"


def load_hub(
    name: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Corpus:
    """Load a corpus from the hub, or from the hub's cache on this machine where there is no
    network.

    `name` is `YongqiLi/RPGBench`, `google/Synthetic-Persona-Chat` (made into a corpus by
    `persona_chat_corpus`), or any dataset that `datasets.load_dataset(name)` gives with the splits
    and columns of the RPGBench layout; `revision` is a branch, tag or commit.
    """
    if name == RPGBENCH:
        folder = _download(name, ["*.json", "*.jsonl"], revision, cache_dir)
        corpus = corpus_from_folder(folder)
    elif name == PERSONA_CHAT:
        folder = _download(name, ["*Synthetic-Persona-Chat_*.csv"], revision, cache_dir)
        corpus = persona_chat_corpus(folder)
    else:
        return _load_dataset(name, revision, cache_dir)
    # The folder of a snapshot is named after its commit.
    return replace(corpus, source=f"{name}@{folder.name}")


def corpus_from_folder(folder: str | Path) -> Corpus:
    """The corpus in a copy of a hub repository: its one JSON file of splits, or its files named
    after splits. Other JSON files (traces, results, metadata) may lie beside it.
    """
    folder = Path(folder)
    files = [
        file
        for file in sorted(folder.rglob("*.json*"))
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    by_split = [x for x in files if x.stem in SHIFT_OF_SPLIT and x.suffix in (".json", ".jsonl")]
    whole = [x for x in files if x.suffix == ".json" and x not in by_split and _holds_splits(x)]
    if by_split and not whole:
        return build_corpus(read_split_files(by_split, str(folder)), str(folder))
    if len(whole) == 1 and not by_split:
        return read_corpus(whole[0])
    problem = "more than one corpus" if whole else "no corpus"
    names = ", ".join(str(file.relative_to(folder)) for file in (whole + by_split or files))
    raise DataError(
        f"{folder}: {problem} among {names or 'no JSON file'}; accepted is one JSON object of "
        f"splits, or one file for each split ({', '.join(SHIFT_OF_SPLIT)}). Name the file to use "
        "with data.path=FILE."
    )


def _holds_splits(file: Path) -> bool:
    value = read_json(file)
    return isinstance(value, dict) and any(name in value for name in SHIFT_OF_SPLIT)


def _download(
    name: str, patterns: list[str], revision: str | None, cache_dir: str | Path | None
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        where: dict[str, Any] = {"repo_type": "dataset", "revision": revision}
        where |= {"cache_dir": cache_dir, "allow_patterns": patterns}
        folder: str = snapshot_download(name, **where)
    except Exception as error:  # network, access, disk: each its own kind, one remedy
        raise _unavailable(name, revision, "huggingface_hub.snapshot_download", error) from error
    return Path(folder)


def _load_dataset(name: str, revision: str | None, cache_dir: str | Path | None) -> Corpus:
    import datasets

    try:
        place = None if cache_dir is None else str(cache_dir)
        loaded = datasets.load_dataset(name, revision=revision, cache_dir=place)
    except Exception as error:  # as above
        raise _unavailable(name, revision, "datasets.load_dataset", error) from error
    source = f"{name}@{revision or 'main'}"
    rows = {key: arrow.json_rows(split) for key, split in loaded.items()}
    return build_corpus(locate_splits(rows, source), source)


def _unavailable(name: str, revision: str | None, tried: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"data.hub={name} (revision {revision or 'main'}): {tried} failed: {reason} "
        "Check the name and the network, or give a local copy of the data with data.path=FILE."
    )
