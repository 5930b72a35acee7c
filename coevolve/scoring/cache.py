"""Work that is never done twice: reasonings and scores on disk, found again by what they were
computed from.

    CACHE/
      FINGERPRINT/               of the role's weights, its base model, precision and device: see
      `fingerprint`
        HOST-PID-RANDOM.jsonl    one for each process that wrote, which appends to its own only

A line is {"key", "value", "check"}: the SHA-256 of all that the value depends on besides the
fingerprint, the value, and a CRC-32 of both. A writer that is killed leaves at most half a line,
which nobody reads; a damaged line is said once, left out, and its work is done again. Nothing is
ever changed or removed, so any number of processes may read and write at a time; the whole folder
may be deleted at any time.
"""

import base64
import hashlib
import json
import logging
import os
import secrets
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.scoring.batching import Ids

logger = logging.getLogger(__name__)

VERSION = 1
"""Goes up when the same question gets another answer."""
DAMAGED = "%s: %d damaged %s; what they held is computed again."


class WorkCache:
    """What one model answered, on disk and in memory.

    Args:
        folder: of all caches; made when something is written.
        fingerprint: of the model, a name that is safe for a folder.

    Attributes:
        asked, found: how many values were asked for and found, by kind.
    """

    def __init__(self, folder: str | Path, fingerprint: str):
        self.folder = Path(folder).expanduser() / fingerprint
        self.asked: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._values: dict[str, Any] = {}
        self._read: dict[Path, int] = {}
        self._own = (
            self.folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        )
        self._warned: set[str] = set()

    def get(
        self, kind: str, keys: Sequence[str], usable: Sequence[Callable[[Any], bool]] = ()
    ) -> list[Any]:
        """The value of each key, None where there is none yet, or one that its entry of `usable`
        refuses.
        """
        self._refresh()
        values = [self._values.get(key) for key in keys]
        odd = [
            place
            for place, fits in enumerate(usable)
            if values[place] is not None and not fits(values[place])
        ]
        if odd:
            self._warn("damage", DAMAGED, self.folder, len(odd), "values")
        for place in odd:
            values[place] = None
        self.asked[kind] += len(keys)
        self.found[kind] += sum(value is not None for value in values)
        return values

    def put(self, values: Iterable[tuple[str, Any]]) -> None:
        """Keep JSON values by key. A disk that takes no more is said once, and stops nobody."""
        new = dict(values)
        self._values.update(new)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self._own, "ab") as file:
                file.write(b"".join(_line(key, value) for key, value in new.items()))
        except OSError as error:
            self._warn(
                "write", "%s: what is computed is not kept (%s).", self.folder, error.strerror
            )

    def _refresh(self) -> None:
        """Read what was written since the last time, by others too."""
        for path in sorted(self.folder.glob("*.jsonl")):
            if path != self._own and path.is_file():
                self._read_on(path)

    def _read_on(self, path: Path) -> None:
        start = self._read.get(path, 0)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                content = file.read()
        except OSError as error:
            self._warn(
                "read",
                "%s: cannot be read (%s); what it holds is computed again.",
                path,
                error.strerror,
            )
            return
        whole = (
            content.rfind(b"\n") + 1
        )  # the rest is being written, or was when its writer was killed
        self._read[path] = start + whole
        damaged = 0
        for line in content[:whole].splitlines():
            found = _parsed(line)
            if found is None:
                damaged += 1
            else:
                self._values[found[0]] = found[1]
        if damaged:
            self._warn("damage", DAMAGED, path, damaged, "lines")

    def _warn(self, about: str, message: str, *values: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *values)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A name for a model by all that its answers depend on."""
    return hashlib.sha256(
        json.dumps({"version": VERSION, **parts}, sort_keys=True).encode()
    ).hexdigest()[:32]


def cached_scores(
    cache: WorkCache,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    pairs: np.ndarray,
    compute: Callable[..., list[np.ndarray]],
    progress: Callable[[int], None] | None,
) -> list[np.ndarray]:
    """Token log-probabilities of each pair, of which `compute` is asked for the new ones only.

    Args:
        pairs: integer array (Q, 2) of (prompt index, response index).
        compute: takes some of the pairs and, as `found`, what to call with the place and values of
            each when known.
        progress: called with the number of pairs that were in the cache.
    """
    prompt_hash = {i: _ids_hash(prompts[i]) for i in np.unique(pairs[:, 0]).tolist()}
    response_hash = {j: _ids_hash(responses[j]) for j in np.unique(pairs[:, 1]).tolist()}
    keys = [_key("score", prompt_hash[i], response_hash[j]) for i, j in pairs.tolist()]
    usable = [partial(_is_scores, tokens=len(responses[j])) for _, j in pairs.tolist()]
    values = cache.get("scores", keys, usable)
    results = [None if value is None else _array(value) for value in values]
    new = [place for place, values in enumerate(results) if values is None]
    if progress is not None and len(new) < len(keys):
        progress(len(keys) - len(new))
    if new:
        computed = compute(
            pairs[new],
            found=lambda known: cache.put(
                (keys[new[place]], _text(values)) for place, values in known
            ),
        )
        for place, values in zip(new, computed, strict=True):
            results[place] = values
    return results


def cached_texts(
    cache: WorkCache,
    prompts: Sequence[Ids],
    settings: Sequence[Any],
    compute: Callable[[list[int]], list[tuple[list[int], bool]]],
    progress: Callable[[int], None] | None,
) -> list[tuple[list[int], bool]]:
    """Generated ids, and whether each text was finished; `compute` is asked for the places that are
    new.

    Args:
        settings: for each prompt whatever else its text depends on: length, stop token, seed; JSON
            values.
        progress: called with the number of texts that were in the cache.
    """
    keys = [
        _key("text", _ids_hash(prompt), json.dumps(options))
        for prompt, options in zip(prompts, settings, strict=True)
    ]
    values = cache.get("reasonings", keys, [_is_text] * len(keys))
    new = [place for place, value in enumerate(values) if value is None]
    if progress is not None and len(new) < len(keys):
        progress(len(keys) - len(new))
    if new:
        computed = compute(new)
        cache.put(
            (keys[place], [list(map(int, ids)), finished])
            for place, (ids, finished) in zip(new, computed, strict=True)
        )
        for place, value in zip(new, computed, strict=True):
            values[place] = value
    return [(list(ids), finished) for ids, finished in values]


def taken(caches: Sequence[WorkCache]) -> str:
    """In words, how much of the work was found."""
    asked, found = Counter(), Counter()
    for cache in caches:
        asked.update(cache.asked)
        found.update(cache.found)
    parts = [f"{found[kind]} of {asked[kind]} {kind}" for kind in sorted(asked)]
    return f"{' and '.join(parts) or 'nothing'} taken from the cache in {caches[0].folder.parent}"


def _line(key: str, value: Any) -> bytes:
    return json.dumps({"key": key, "value": value, "check": _check(key, value)}).encode() + b"\n"


def _parsed(line: bytes) -> tuple[str, Any] | None:
    """Key and value of a line, None if it is damaged."""
    try:
        row = json.loads(line)
        key, value, check = row["key"], row["value"], row["check"]
        return (key, value) if isinstance(key, str) and check == _check(key, value) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_scores(value: Any, tokens: int) -> bool:
    """Whether a value is a finite number for each token."""
    try:
        return _array(value).shape == (tokens,) and bool(np.isfinite(_array(value)).all())
    except (TypeError, ValueError):
        return False


def _is_text(value: Any) -> bool:
    """Whether a value is a list of ids, and whether the text was finished."""
    if not (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], list)
        and type(value[1]) is bool
    ):
        return False
    return all(type(number) is int and 0 <= number < 2**31 for number in value[0])


def _check(key: str, value: Any) -> int:
    return zlib.crc32(json.dumps([key, value]).encode())


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ids_hash(ids: Ids) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()


def _array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)
