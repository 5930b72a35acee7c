"""Work that is never done twice: reasonings and scores on disk, found again by what they were
computed from.

All models share one SQLite database, CACHE/work.sqlite, which any number of commands may use at a
time. A row is found by the SHA-256 of all that its value depends on: the model (see `fingerprint`),
prompt, response, settings. Beyond MOST_BYTES the rows go that were not asked for the longest. A
damaged value is left out by its CRC-32, a damaged database begun anew; either is said once, and its
work is done again. The whole folder may be deleted at any time.
"""

import hashlib
import json
import logging
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from coevolve.scoring.batching import Ids
from coevolve.scoring.roles import Role

logger = logging.getLogger(__name__)

VERSION = 2
"""Goes up when the same question gets another answer, or is kept in another form."""
MOST_BYTES = 1 << 33
"""Of the database: 8 GiB, about ten million scores."""
_AT_ONCE = 500  # keys in one query
_PATIENCE = 60.0  # seconds until another command's writing is taken for a fault
_STALE = 3600  # seconds; that a row was asked for is noted no more often
_TABLE = (
    "CREATE TABLE IF NOT EXISTS work"
    " (key BLOB PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL, used INTEGER NOT NULL)"
)


class WorkCache:
    """What one model, by its fingerprint, answered; `asked` and `found` count values by kind."""

    def __init__(self, folder: str | Path, fingerprint: str, *, most_bytes: int = MOST_BYTES):
        self.folder = Path(folder).expanduser()
        self.path = self.folder / "work.sqlite"
        self.fingerprint, self.most_bytes = fingerprint, most_bytes
        self.asked: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._opened: sqlite3.Connection | None = None
        self._warned: set[str] = set()

    def get(self, kind: str, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, None where there is none."""
        hashes, values, damaged = [self._hash(key) for key in keys], dict[bytes, bytes](), 0
        for start in range(0, len(hashes), _AT_ONCE):
            for key, value, crc in self._rows(hashes[start : start + _AT_ONCE]):
                whole = isinstance(key, bytes) and isinstance(value, bytes)
                if whole and crc == zlib.crc32(key + value):
                    values[key] = value
                else:
                    damaged += 1
        if damaged:
            self._warn("damage", "%s: %d damaged values are computed again.", self.path, damaged)
        self.asked[kind] += len(keys)
        self.found[kind] += sum(key in values for key in hashes)
        return [values.get(key) for key in hashes]

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Keep values by key. A disk that takes no more is said once, and stops nobody."""
        now = int(time.time())
        rows = [(self._hash(key), value) for key, value in values]

        def keep(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT OR REPLACE INTO work VALUES (?, ?, ?, ?)",
                [(key, value, zlib.crc32(key + value), now) for key, value in rows],
            )
            while _bytes_used(database) > self.most_bytes:
                some = "LIMIT (SELECT 1 + count(*) / 10 FROM work)"
                oldest = f"key IN (SELECT key FROM work ORDER BY used {some})"
                if not database.execute(f"DELETE FROM work WHERE {oldest}").rowcount:
                    break

        self._in_database(keep)

    def _rows(self, hashes: Sequence[bytes]) -> list[tuple[bytes, bytes, int]]:
        """(key, value, CRC) of these keys, which are noted as used."""
        among, now = f"key IN ({','.join('?' * len(hashes))})", int(time.time())
        rows: list[tuple[bytes, bytes, int]] = []

        def look(database: sqlite3.Connection) -> None:
            rows.extend(database.execute(f"SELECT key, value, crc FROM work WHERE {among}", hashes))
            noted = f"UPDATE work SET used = ? WHERE used < ? AND {among}"
            database.execute(noted, (now, now - _STALE, *hashes))

        self._in_database(look)
        return rows

    def _in_database(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do work in a transaction. One that fails is undone and said once; it is no error."""
        try:
            if self._opened is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._opened = sqlite3.connect(self.path, timeout=_PATIENCE)
                self._opened.execute(_TABLE)
            with self._opened:
                work(self._opened)
        except (OSError, sqlite3.OperationalError) as error:
            self._warn("use", "%s: what is computed is not kept (%s).", self.path, error)
        except sqlite3.Error as error:
            self._warn("damage", "%s: damaged, so it is begun anew (%s).", self.path, error)
            if self._opened is not None:
                self._opened.close()
            self._opened = None
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
                self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)

    def _hash(self, key: str) -> bytes:
        return hashlib.sha256(f"{self.fingerprint}\n{key}".encode()).digest()

    def _warn(self, about: str, message: str, *values: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *values)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A name for a model by all that its answers depend on."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint_of(manifest: Mapping[str, Any], role: Role, parameters: Iterable[Tensor]) -> str:
    """The name of an exported estimator's model, as it is held here."""
    held, base = list(parameters), manifest["roles"][role]["base"]
    files = {name: sha for name, sha in manifest["files"].items() if name.startswith(f"{role}/")}
    parts = {"files": files, "base": base["fingerprint"], "device": held[0].device.type}
    parts["dtype"] = sorted({str(parameter.dtype) for parameter in held})
    settings = {} if base["settings"] is None else {"settings": base["settings"]}
    return fingerprint({**parts, **settings})


def cached_scores(
    cache: WorkCache,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    pairs: np.ndarray,
    compute: Callable[..., list[np.ndarray]],
    progress: Callable[[int], None] | None,
) -> list[np.ndarray]:
    """Token log-probabilities of each pair, of which `compute` is asked for the new ones only.

    `pairs` is (Q, 2), (prompt index, response index). `compute` takes some of them and, as `found`,
    what to call with the index and values of each when known; `progress` is told of cached ones.
    """
    prompt_hash = {i: _ids_hash(prompts[i]) for i in np.unique(pairs[:, 0]).tolist()}
    response_hash = {j: _ids_hash(responses[j]) for j in np.unique(pairs[:, 1]).tolist()}
    keys = [f"score {prompt_hash[i]} {response_hash[j]}" for i, j in pairs.tolist()]

    def keep(known: Iterable[tuple[int, np.ndarray]]) -> None:
        cache.put((keys[new[index]], np.asarray(x, dtype="<f8").tobytes()) for index, x in known)

    values = cache.get("scores", keys)
    read = partial(np.frombuffer, dtype="<f8")
    results: list[Any] = [None if x is None else read(x).astype(np.float64) for x in values]
    new = _missing(values, progress)
    if new:
        for index, computed in zip(new, compute(pairs[new], found=keep), strict=True):
            results[index] = computed
    return results


Found = Callable[[Sequence[int], Iterable[tuple[Ids, bool]]], None]


def cached_texts(
    cache: WorkCache,
    prompts: Sequence[Ids],
    settings: Sequence[Any],
    compute: Callable[[list[int], Found], object],
    progress: Callable[[int], None] | None,
) -> list[tuple[list[int], bool]]:
    """Generated ids, and whether each text was finished; `compute` is asked for those that are new,
    and hands over some at a time, by their places among these: what it had is kept if it is left.

    `settings` are JSON values: whatever else than its prompt a text depends on.
    """
    keys = [
        f"text {_ids_hash(prompt)} {json.dumps(options)}"
        for prompt, options in zip(prompts, settings, strict=True)
    ]
    values = cache.get("reasonings", keys)
    results: list[Any] = [None if value is None else tuple(json.loads(value)) for value in values]
    new = _missing(values, progress)
    if new:

        def keep(places: Sequence[int], texts: Iterable[tuple[Ids, bool]]) -> None:
            rows = [new[place] for place in places]
            for index, (ids, finished) in zip(rows, texts, strict=True):
                results[index] = list(map(int, ids)), finished
            cache.put((keys[index], json.dumps(results[index]).encode()) for index in rows)

        compute(new, keep)
    return results


def taken(caches: Sequence[WorkCache]) -> str:
    """In words, how much of the work was found."""
    asked = sum((cache.asked for cache in caches), Counter[str]())
    found = sum((cache.found for cache in caches), Counter[str]())
    parts = [f"{found[kind]} of {asked[kind]} {kind}" for kind in sorted(asked)]
    return f"{' and '.join(parts) or 'nothing'} taken from the cache in {caches[0].folder}"


def _missing(values: Sequence[Any], progress: Callable[[int], None] | None) -> list[int]:
    """The indices of the values that are new."""
    new = [index for index, value in enumerate(values) if value is None]
    if progress is not None and len(new) < len(values):
        progress(len(values) - len(new))
    return new


def _bytes_used(database: sqlite3.Connection) -> int:
    size, pages, free = (
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free)


def _ids_hash(ids: Ids) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()
