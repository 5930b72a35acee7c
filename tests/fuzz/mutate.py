"""Damage: to bytes, to JSON values, to files in a folder."""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Raw(str):
    """JSON text that is written as it stands."""


class Twice:
    """A key's two values: `to_json` writes the key with each of them."""

    def __init__(self, first: Any, second: Any):
        self.first, self.second = first, second

    def __repr__(self) -> str:
        return f"Twice({self.first!r}, {self.second!r})"


DEEP = Raw("[" * 60_000 + "]" * 60_000)
NUMBERS = (
    0,
    1,
    -1,
    3,
    0.5,
    -0.0,
    1e-9,
    1e308,
    2**31,
    2**63,
    -(2**64),
    Raw("1e400"),
    Raw("NaN"),
    Raw("-Infinity"),
)
TEXTS = (
    "",
    " ",
    "\u200b",
    "\x00",
    "\ud83d",
    "\u2028",
    "\x1b[31m",
    "[/b]",
    "[bold]",
    "{features}",
    "{0.__class__}",
    "{{ 1/0 }}",
    "<script>alert(1)</script>",
    "~",
    "../../up",
    "/dev/zero",
    "nan",
    "1",
    "true",
    "x" * 300,
    "long " * 40_000,
    "\u202eright to left",
    "\N{PILE OF POO}" * 3,
)
VALUES: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], {"": ""}, [{}], {"a": {"b": {}}}, *NUMBERS, *TEXTS[:16]
)  # fmt: skip
RARE = (
    DEEP,
    Raw("1" * 5000),
    Raw("-" + "9" * 400),
    Raw('"' + "\\ud83d" * 3 + '"'),
    "y" * 3_000_000,
)


def to_json(value: Any, rng: random.Random | None = None) -> str:
    """JSON text, with what Python's own writer cannot say; spacing and escapes by chance."""
    ascii_only = rng is None or rng.random() < 0.5
    comma, colon = (",", ":") if rng is not None and rng.random() < 0.3 else (", ", ": ")

    def text(item: Any) -> str:
        if isinstance(item, Twice):  # one that was moved to where there are no keys
            item = item.second
        if isinstance(item, Raw):
            return str(item)
        if isinstance(item, dict):
            return (
                "{"
                + comma.join(f"{string(str(key))}{colon}{text(part)}" for key, part in pairs(item))
                + "}"
            )
        if isinstance(item, list | tuple):
            return "[" + comma.join(map(text, item)) + "]"
        return string(item) if isinstance(item, str) else json.dumps(item)

    def pairs(item: dict) -> list[tuple[Any, Any]]:
        return [
            (key, part)
            for key, value in item.items()
            for part in ((value.first, value.second) if isinstance(value, Twice) else (value,))
        ]

    def string(item: str) -> str:
        # A lone surrogate has no bytes of its own: JSON can only escape it.
        return json.dumps(
            item, ensure_ascii=ascii_only or any("\ud800" <= letter <= "\udfff" for letter in item)
        )

    return text(value)


def mutate_json(rng: random.Random, value: Any, *, times: int | None = None) -> tuple[Any, str]:
    """A copy of the value with a few places changed, and what was done."""
    value, did = copy.deepcopy(value), []
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        holder = [value]
        parent, key = _place(rng, holder)
        did.append(_change(rng, value, parent, key, movable=parent is not holder))
        value = holder[0]
    return value, "; ".join(did)


def _place(rng: random.Random, holder: list[Any]) -> tuple[Any, Any]:
    """A place in the value: its container and its key or index; the whole value now and then."""
    parent, key = holder, 0
    while rng.random() < 0.9:
        below = parent[key]
        if isinstance(below, dict) and below:
            parent, key = below, rng.choice(list(below))
        elif isinstance(below, list) and below:
            parent, key = below, rng.randrange(len(below))
        else:
            break
    return parent, key


def _change(rng: random.Random, root: Any, parent: Any, key: Any, *, movable: bool) -> str:
    old = parent[key]
    kinds: list[tuple[str, Callable[[], Any]]] = [
        ("replaced", lambda: _odd(rng)),
        ("replaced", lambda: _odd(rng)),
        ("put in a list", lambda: [old]),
        ("put in an object", lambda: {"value": old}),
        ("replaced by another part", lambda: copy.deepcopy(_some_part(rng, root))),
    ]
    if isinstance(old, str):
        kinds += [("tweaked", lambda: _tweaked_text(rng, old))] * 3
    if isinstance(old, int | float):
        kinds += [("tweaked", lambda: _tweaked_number(rng, old))] * 3
    if isinstance(old, dict | list) and old:
        kinds += [("emptied", lambda: type(old)())]
    if not movable:
        pass
    elif isinstance(parent, dict) and not isinstance(old, Twice):
        kinds += [("dropped", None), ("renamed", None), ("doubled", None)]
    elif isinstance(parent, list):
        kinds += [("dropped", None), ("doubled", None), ("moved", None)]
    how, make = rng.choice(kinds)
    if make is not None:
        parent[key] = make()
    else:
        _RESHAPE[how, isinstance(parent, dict)](rng, parent, key)
    shown = "" if make is None else f" -> {str(parent[key])[:60]!r}"
    return f"{str(key)[:40]!r} {how}{shown}"


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(RARE) if rng.random() < 0.04 else rng.choice(VALUES))


def _some_part(rng: random.Random, root: Any) -> Any:
    parent, key = _place(rng, [root])
    return parent[key]


def _tweaked_text(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    ways = (
        lambda: text[:at],
        lambda: text[:at] + rng.choice(TEXTS[:19]) + text[at:],
        lambda: text + rng.choice("\n\r\t\x00 \ufeff"),
        lambda: " " + text,
        lambda: text.upper() if text != text.upper() else text.lower(),
        lambda: text * 2,
        lambda: text[:at] + text[at + 1 :],
        lambda: text[::-1],
    )
    return rng.choice(ways)()


def _tweaked_number(rng: random.Random, number: float) -> Any:
    ways = (
        -number,
        number + 1,
        number * 10,
        number / 3,
        float(number),
        str(number),
        bool(number),
        rng.choice(NUMBERS),
    )
    return rng.choice(ways)


def _drop(_: random.Random, parent: Any, key: Any) -> None:
    del parent[key]


def _rename(rng: random.Random, parent: dict, key: str) -> None:
    name = rng.choice(
        (f"{key}x", key.upper(), "", f" {key}", key.replace("_", "-"), rng.choice(list(parent)))
    )
    items = [(name if name_ == key else name_, value) for name_, value in parent.items()]
    parent.clear()
    parent.update(items)


def _double_key(rng: random.Random, parent: dict, key: str) -> None:
    # A careless reader takes the last of the two; where that is the old value, nothing else gives
    # the double away.
    old, odd = parent[key], _odd(rng)
    parent[key] = Twice(
        *rng.choice(((old, copy.deepcopy(old)), (odd, old), (odd, old), (old, odd)))
    )


def _double_item(_: random.Random, parent: list, index: int) -> None:
    parent.insert(index, copy.deepcopy(parent[index]))


def _move_item(rng: random.Random, parent: list, index: int) -> None:
    parent.insert(rng.randrange(len(parent)), parent.pop(index))


_RESHAPE = {
    ("dropped", True): _drop,
    ("dropped", False): _drop,
    ("renamed", True): _rename,
    ("doubled", True): _double_key,
    ("doubled", False): _double_item,
    ("moved", False): _move_item,
}


def mutate_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A copy of a file's content with a few places changed, and what was done."""
    did = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name, change = rng.choice(_BYTES)
        content = change(rng, content)
        did.append(name)
    return content, ", ".join(did)


def _at(rng: random.Random, content: bytes) -> int:
    # The ends, where headers and footers stand, more often than chance would have it.
    place = rng.random()
    if place < 0.2:
        return min(len(content), rng.randrange(64))
    if place < 0.4:
        return max(0, len(content) - rng.randrange(64))
    return rng.randrange(len(content) + 1)


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if changed:
            changed[min(_at(rng, content), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(rng: random.Random, content: bytes) -> bytes:
    at = _at(rng, content)
    return content[:at] + rng.choice(PIECES) + content[at:]


def _cut(rng: random.Random, content: bytes) -> bytes:
    at = _at(rng, content)
    return content[:at] + content[at + rng.choice((1, 1, 7, 200)) :]


def _double(rng: random.Random, content: bytes) -> bytes:
    at = _at(rng, content)
    end = at + rng.choice((1, 8, 100, len(content)))
    return content[:end] + content[at:end] + content[end:]


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    at, size = _at(rng, content), rng.choice((1, 4, 8))
    return content[:at] + rng.choice((b"\x00", b"\xff", b"9"))[:1] * size + content[at + size :]


def _digits(rng: random.Random, content: bytes) -> bytes:
    places = [at for at in range(min(len(content), 20_000)) if content[at : at + 1].isdigit()]
    if not places:
        return content
    at = rng.choice(places)
    return (
        content[:at]
        + rng.choice((b"", b"0", b"00", b"999999999999999999999", b"1e9", b"-1"))
        + content[at + 1 :]
    )


PIECES = (
    b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\n", b"\r\n", b"\r",
    b"\n\n", b'"', b"\\",
    b"{", b"}", b"[", b"]", b",", b":", b"\t", b"\x1a", b"\xe2\x80\xa8", b"NaN", b"null", b"# x\n",
    b" \n", b"\\u0000",
)  # fmt: skip
_BYTES: tuple[tuple[str, Callable[[random.Random, bytes], bytes]], ...] = (
    ("bits flipped", _flip),
    ("bits flipped", _flip),
    ("something put in", _insert),
    ("something put in", _insert),
    ("a piece cut out", _cut),
    ("a piece doubled", _double),
    ("overwritten", _overwrite),
    ("digits changed", _digits),
    ("truncated", lambda rng, content: content[: _at(rng, content)]),
    ("no final line break", lambda rng, content: content.rstrip(b"\n")),
    ("line breaks of Windows", lambda rng, content: content.replace(b"\n", b"\r\n")),
    ("emptied", lambda rng, content: b"" if rng.random() < 0.3 else content[:1]),
    ("in UTF-16", lambda rng, content: content.decode("utf-8", "replace").encode("utf-16")),
    ("compressed", lambda rng, content: b"\x1f\x8b\x08" + content),
    ("begins anew at its end", lambda rng, content: content + content[: _at(rng, content)]),
)


def mutate_binary(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """As `mutate_bytes`, but most often of the same length, so that what is found by its offset
    stays where it is.
    """
    if rng.random() < 0.25:
        return mutate_bytes(rng, content)
    changed, did = bytearray(content), []
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(content) + 1) // 4 * 4
        if rng.random() < 0.5:
            changed[at : at + 4] = rng.choice(WORDS)[: len(changed) - at]
            did.append(f"word at {at}")
        elif at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
            did.append(f"bit at {at}")
    return bytes(changed), ", ".join(did[:4])


WORDS = tuple(
    number.to_bytes(4, "little")
    for number in (0, 1, 255, 2**16, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1)
)


def mutate_folder(rng: random.Random, folder: Path, *, devices: bool = True) -> str:
    """Change one thing in a folder that is not the content of a file; returns what was done.

    Args:
        devices: whether a file may become a link to /dev/zero.
    """
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_symlink()
    )
    if not names:
        (folder / "stray").write_text("x")
        return "a stray file"
    name = rng.choice(names)
    ways = [way for way in _FOLDER if devices or way is not _device]
    return f"{name}: {rng.choice(ways)(rng, folder / name, folder)}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete(_: random.Random, path: Path, __: Path) -> str:
    _remove(path)
    return "deleted"


def _other_kind(_: random.Random, path: Path, __: Path) -> str:
    was_folder = path.is_dir()
    _remove(path)
    if was_folder:
        path.write_text("no folder")
        return "a file now"
    path.mkdir()
    return "a folder now"


def _pipe(_: random.Random, path: Path, __: Path) -> str:
    _remove(path)
    os.mkfifo(path)
    return "a pipe now"


def _link_loop(_: random.Random, path: Path, __: Path) -> str:
    _remove(path)
    path.symlink_to(path.name)
    return "a link to itself"


def _dangling(_: random.Random, path: Path, __: Path) -> str:
    _remove(path)
    path.symlink_to("nowhere")
    return "a link to nothing"


def _device(rng: random.Random, path: Path, _: Path) -> str:
    device = rng.choice(("/dev/zero", "/dev/null", "/dev/full"))
    _remove(path)
    path.symlink_to(device)
    return f"a link to {device}"


def _locked(_: random.Random, path: Path, __: Path) -> str:
    path.chmod(0)
    return "unreadable"


def _rename_file(rng: random.Random, path: Path, _: Path) -> str:
    new = rng.choice(
        (f"{path.name}.bak", path.name.upper(), f" {path.name}", path.stem or "x", "[b]", "a\nb")
    )
    path.rename(path.with_name(new))
    return f"renamed to {new!r}"


def _stray(rng: random.Random, path: Path, folder: Path) -> str:
    new = path.with_name(
        rng.choice(
            (f"{path.name}~", ".DS_Store", "README.md", "x.json", "x.jsonl", "[b].json", "new")
        )
    )
    if new.exists():
        return "as it was"
    if path.is_file() and rng.random() < 0.5:
        shutil.copy(path, new)
    else:
        new.write_text(rng.choice(("", "{}", "not JSON", "[]\n")))
    return f"a stray {new.name!r} beside it"


def _swap(rng: random.Random, path: Path, folder: Path) -> str:
    others = [other for other in sorted(folder.rglob("*")) if other.is_file() and other != path]
    if not path.is_file() or not others:
        return "as it was"
    other = rng.choice(others)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"changed places with {other.relative_to(folder)}"


_FOLDER: Sequence[Callable[[random.Random, Path, Path], str]] = (
    _delete, _delete, _other_kind, _pipe, _link_loop, _dangling, _device, _locked, _rename_file,
    _stray, _swap
)  # fmt: skip


def mutate_file(rng: random.Random, path: Path, *, as_json: float = 0.6) -> str:
    """Damage one file: as JSON or JSON Lines where it is such and chance will have it, as bytes
    otherwise.

    Args:
        as_json: the share of the former.
    """
    content = path.read_bytes()
    if path.suffix in (".arrow", ".parquet", ".safetensors"):
        changed, did = mutate_binary(rng, content)
        path.write_bytes(changed)
    elif path.suffix in (".json", ".jsonl") and rng.random() < as_json:
        if path.suffix == ".json":
            value, did = mutate_json(rng, json.loads(content))
            text = to_json(value, rng)
        else:
            rows = [json.loads(line) for line in content.decode().split("\n") if line.strip()]
            value, did = mutate_json(rng, rows)
            text = to_jsonl(value, rng)
        path.write_text(text, encoding="utf-8", newline="")
    else:
        changed, did = mutate_bytes(rng, content)
        path.write_bytes(changed)
    return f"{path.name}: {did}"


def to_jsonl(rows: Any, rng: random.Random) -> str:
    """A line for each item of a list; anything else is a single line."""
    items = rows if isinstance(rows, list) else [rows]
    return "".join(to_json(row, rng) + "\n" for row in items)
