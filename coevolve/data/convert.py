"""Dialogues in other formats, made a corpus: read row by row, kept on disk in between, so that a
file of any size is converted in little memory.
"""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from coevolve.data import arrow
from coevolve.data.corpus import SHIFT_OF_SPLIT, SPLIT_NAMES, TRAIN_SPLIT
from coevolve.data.example import Example, plain_row
from coevolve.data.foreign_rows import rows_of
from coevolve.data.formats import (
    FORMATS,
    LEFT_OUT,
    OWN_FIELDS,
    ROLES,
    Told,
    character_of_card,
    format_of,
)
from coevolve.errors import DataError
from coevolve.files import read_json

MOST_KINDS = 40
"""Kinds of problems that are told apart; a file may have as many as it has rows."""
IDS = ("sample_ID", "id", "conversation_id")
OTHERS = ("other fields", "other problems")


class Findings:
    """What was found in the rows, by field and kind: how often, and the first examples."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.first: dict[tuple[str, str], list[str]] = {}

    def add(self, place: str, told: Sequence[tuple[str, str, object]]) -> None:
        for name, what, found in told:
            key = (name, what)
            key = key if key in self.counts or len(self.counts) < MOST_KINDS else OTHERS
            self.counts[key] += 1
            shown = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
            shown = f"{name} {what}: {shown}" if key == OTHERS else shown
            examples = self.first.setdefault(key, [])
            if len(examples) < 3:
                examples.append(f"{place} {clipped(shown)!r}" if shown else place)

    def lines(self) -> list[str]:
        """One for each kind, the most frequent first."""
        return [
            f"  {count:,} x {name} {what} ({', '.join(self.first[name, what])})"
            for (name, what), count in self.counts.most_common()
        ]


def clipped(text: str, most: int = 100) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


@dataclass(frozen=True)
class Rule:
    """Which rows go into a split: those whose `path` stands to `value` as `sign` says.

    `=` and `!=`: is one of the values, divided by commas, or none of them; `>`: is a greater
    number; `~`: is among a share of all values, drawn by the seed. `turns` is the number of turns.
    """

    split: str
    path: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """The rule of a text such as `OOD1Test: language != en`."""
        found = re.fullmatch(r"(\w+):\s*([^\s=!>~]+)\s*(!=|=|>|~)\s*(\S.*)", text.strip(), re.S)
        if not found or found[1] not in SHIFT_OF_SPLIT:
            raise DataError(
                f"--split {text!r}: accepted is 'SPLIT: FIELD SIGN VALUE', SPLIT one of "
                f"{', '.join(SHIFT_OF_SPLIT)}, SIGN one of = != > ~, for example 'OOD1Test: "
                "language != en'."
            )
        rule = cls(*found.groups())
        if rule.sign in ">~" and not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", rule.value):
            raise DataError(f"--split {text!r}: accepted is a number behind {rule.sign}.")
        if rule.sign == "~" and not 0 < float(rule.value) < 1:
            raise DataError(f"--split {text!r}: accepted is a share between 0 and 1.")
        return rule

    def outcome(self, value: Any, seed: int) -> int:
        """0 for no, 1 for yes, and for `~` the value's lot."""
        text = text_of(value)
        if self.sign == "~":
            return lot(seed, text)
        if self.sign == ">":
            return int(isinstance(value, int | float) and value > float(self.value))
        return int((text in re.split(r"\s*,\s*", self.value)) == (self.sign == "="))


@dataclass
class Conversion:
    """How a file is converted, and what came of it.

    Attributes:
        paths: where a row has our fields, by their names; dots lead into objects and lists.
        roles: what speakers' names mean, beside `ROLES`.
        characters: profiles by name, for rows whose character has that name or, under an empty
            name, for rows without a character.
        form: the format to read; by default each row's is recognised.
        rules: which rows go into which split; the first that holds counts, then the row's own.
        test: the share of the other rows that goes into IDTest.
        made_ids: whether ids are made also where the rows have some.
    """

    spool: IO[bytes]
    paths: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    characters: Mapping[str, Any] = field(default_factory=dict)
    form: str | None = None
    rules: Sequence[Rule] = ()
    test: float = 0.1
    seed: int = 0
    made_ids: bool = False
    formats: Counter[str] = field(default_factory=Counter)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    rows: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._ids: set[int] = set()
        self._lots, self._own = array("Q"), array("b")
        self._outcomes = [array("Q") for _ in self.rules]

    def read(self, path: Path) -> None:
        """Convert all rows of the file into the spool."""
        for place, row in rows_of(path):
            self.rows += 1
            told, row = Told(), plain_row(row)
            made = self._examples(row, path.stem, told)
            kept = [self._checked(x, row, told) for x in made] if not told.faults else []
            if told.faults:
                self.problems.add(place, told.faults)
                self.refused += 1
                continue
            self.notes.add(place, told.notes)
            for example, values in kept:
                self._keep(example, values, place)

    def _examples(self, row: Any, stem: str, told: Told) -> list[dict[str, Any]]:
        """The rows in our layout that a row gives; what is wrong is told."""
        if isinstance(row, DataError):
            told.fault("row", "cannot be read", str(row))
            return []
        if not isinstance(row, dict):
            told.fault("row", "is no object", row)
            return []
        own = {name: row[name] for name in OWN_FIELDS if name in row}
        for name, path in self.paths.items():
            found = dig(row, path)
            if found is None:
                told.fault(path, f"is missing, which --map has for {name}", list(row))
            else:
                own[name] = found
        form = format_of(row | own) if self.form is None else FORMATS[self.form]
        if form is None or not form.recognise(row | own):
            known = ", ".join(FORMATS if self.form is None else [self.form])
            advice = "say with --map where the dialogue_context is"
            told.fault("row", f"is not of the formats {known}; {advice}", f"keys {list(row)}")
            return []
        self.formats[form.name] += 1
        used = {*OWN_FIELDS, *IDS, *form.uses, *(x.split(".")[0] for x in self.paths.values())}
        used |= {rule.path.split(".")[0] for rule in self.rules}
        for name in row.keys() - used:
            told.note(name, LEFT_OUT, row[name])
        read = form.read(row | own, {**ROLES, **self.roles}, told)
        found = read if isinstance(read, list) else [read]
        golden = own.get("agent_golden_response")
        if golden is not None and any(
            x.get("agent_golden_response", golden) != golden for x in found
        ):
            told.fault("agent_golden_response", "is not the dialogue's last turn", golden)
        lost = [x["agent_character"] for x in found if x.get("agent_character")]
        if "agent_character" in own and any(x != own["agent_character"] for x in lost):
            what = "is given; the dialogue's own, a system's text or a role, is left out"
            told.note("agent_character", what, lost[0])
        own.pop("dialogue_context", None)
        given = next((row[name] for name in IDS if name in row), None)
        name = own.pop("sample_ID", given)
        made = f"{stem}-{self.rows - 1:05d}"
        return [
            self._completed(x | own, made if self.made_ids or name is None else name, index, told)
            for index, x in enumerate(found)
        ]

    def _completed(
        self, row: dict[str, Any], name: object, index: int, told: Told
    ) -> dict[str, Any]:
        """A row with an id, a persona and a character, whatever it lacked of them."""
        row["sample_ID"] = f"{name}-{index}" if index else number_text(name)
        persona, character = row.get("user_persona", ""), row.get("agent_character")
        if isinstance(persona, list) and all(isinstance(x, str) for x in persona):
            row["user_persona"] = "\n".join(persona)
        if "user_persona" not in row:
            told.note("user_persona", "is not there; left empty")
            row["user_persona"] = ""
        called = character.get("name") if isinstance(character, Mapping) else character
        profile = self.characters.get(called or "") if isinstance(called or "", str) else None
        if profile is not None:
            row["agent_character"] = profile
        elif character is None:
            told.note("agent_character", "is not there; left empty")
            row["agent_character"] = ""
        if self.characters and profile is None and called and "" not in self.characters:
            told.note("agent_character", "is not among --characters; as the row has it", called)
        return row | ({"subset_tag": number_text(row["subset_tag"])} if "subset_tag" in row else {})

    def _checked(
        self, row: dict[str, Any], source: Any, told: Told
    ) -> tuple[dict[str, Any], list[Any]]:
        """The row as `Example` has it, and the value that each rule looks at."""
        split = row.pop("split", None)
        if split is not None and split not in list(SPLIT_NAMES):
            told.fault("split", f"is unknown; accepted are {', '.join(SPLIT_NAMES)}", split)
            return row, []
        try:
            (row,) = arrow.json_rows([row])
            example = Example.from_row({"subset_tag": "-", **row}, "").to_row()
        except DataError as error:
            text = re.sub(r"^(: | \(sample_ID .*?\): )", "", str(error), count=1, flags=re.S)
            name, _, what = text.partition(" ")
            told.fault(re.sub(r"\[\d+\]", "[]", name), clipped(what, 200), row["sample_ID"])
            return row, []
        own = list(SHIFT_OF_SPLIT).index(SPLIT_NAMES[split]) if split is not None else -1
        values = []
        for rule in self.rules:
            turns = len(row["dialogue_context"])
            value = turns if rule.path == "turns" else dig(row, rule.path)
            value = dig(source, rule.path) if value is None else value
            if value is None:
                told.fault(rule.path, "is missing, which --split looks at", row["sample_ID"])
            elif any("\ud800" <= character <= "\udfff" for character in text_of(value)):
                told.fault(rule.path, "has half of a surrogate pair", row["sample_ID"])
            values.append(value)
        if lot(0, row["sample_ID"]) in self._ids:
            told.fault("sample_ID", "is an earlier row's; --new-ids makes others", row["sample_ID"])
        return {**example, "subset_tag": row.get("subset_tag"), "split": own}, values

    def _keep(self, row: dict[str, Any], values: list[Any], place: str) -> None:
        self._ids.add(lot(0, row["sample_ID"]))
        self._lots.append(lot(self.seed, row["sample_ID"]))
        self._own.append(row.pop("split"))
        for rule, outcomes, value in zip(self.rules, self._outcomes, values, strict=True):
            outcomes.append(rule.outcome(value, self.seed))
        tags = [text_of(value) if value is not None else "" for value in values]
        row["source"] = place
        self.spool.write(json.dumps([row, tags], ensure_ascii=False).encode() + b"\n")

    def divide(self) -> "Division":
        """Which split each kept row goes into."""
        self._ids.clear()  # a large file has many
        # An outcome is 0 for no, 1 for yes, or a lot, of which the lowest are drawn.
        limits = [
            share(set(outcomes), float(rule.value)) if rule.sign == "~" else 1
            for rule, outcomes in zip(self.rules, self._outcomes, strict=True)
        ]
        names, free = list(SHIFT_OF_SPLIT), len(SHIFT_OF_SPLIT)
        splits, by = array("b"), array("b")
        for index, own in enumerate(self._own):
            held = (i for i, limit in enumerate(limits) if 1 <= self._outcomes[i][index] <= limit)
            rule = next(held, -1)
            by.append(rule)
            own = own if own >= 0 else free
            splits.append(names.index(self.rules[rule].split) if rule >= 0 else own)
        lots = (x for x, at in zip(self._lots, splits, strict=True) if at == free)
        limit = share(array("Q", lots), self.test)
        for index, at in enumerate(splits):
            if at == free:
                drawn = "IDTest" if self._lots[index] <= limit else TRAIN_SPLIT
                splits[index] = names.index(drawn)
        return Division(self.spool, self.rules, splits, by)


@dataclass(frozen=True)
class Division:
    """The kept rows by split."""

    spool: IO[bytes]
    rules: Sequence[Rule]
    splits: "array[int]"
    by: "array[int]"

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split that has some or was asked for."""
        counts, asked = Counter(self.splits), {rule.split for rule in self.rules}
        sizes = {name: counts[index] for index, name in enumerate(SHIFT_OF_SPLIT)}
        return {name: size for name, size in sizes.items() if size or name in asked}

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """The rows of a split, with the tag of the subset: their own, the value that a rule found,
        or the split.
        """
        index = list(SHIFT_OF_SPLIT).index(split)
        self.spool.seek(0)
        for line, at, rule in zip(self.spool, self.splits, self.by, strict=True):
            if at == index:
                row, tags = json.loads(line)
                by_value = rule >= 0 and self.rules[rule].sign in ("=", "!=") and tags[rule].strip()
                row["subset_tag"] = row["subset_tag"] or (tags[rule] if by_value else split)
                yield row

    def text(self, *, lines: bool) -> Iterator[str]:
        """The corpus: an object of splits or, with `lines`, JSON Lines with a field `split`."""
        names = [name for name, size in self.counts.items() if size]
        for number, name in enumerate(names):
            opening = ", " if number else "{"
            yield "" if lines else f'{opening}"{name}": ['
            for index, row in enumerate(self.rows(name)):
                row = {"split": name, **row} if lines else row
                text = json.dumps(row, ensure_ascii=False)
                yield f"{text}\n" if lines else f"{',' if index else ''}\n{text}"
            yield "" if lines else "\n]"
        yield "" if lines else "}\n"


def text_of(value: Any) -> str:
    """A field's value as rules compare it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def number_text(value: Any) -> Any:
    """A number as text, anything else as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def lot(seed: int, text: str) -> int:
    """A number above 1 drawn for a text, the same whatever other texts there are."""
    drawn = hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest()
    return max(2, int.from_bytes(drawn))


def share(lots: Collection[int], ratio: float) -> int:
    """The highest of the lowest lots, as many as the ratio says, but neither none nor all; 0 where
    there are none.
    """
    count = min(max(round(ratio * len(lots)), 1), len(lots) - 1) if ratio else 0
    return sorted(lots)[count - 1] if count > 0 else 0


def dig(value: Any, path: str) -> Any:
    """What stands at a path such as `profile.user` or `turns.0.text`; None if nothing does."""
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and re.fullmatch(r"\d{1,9}", name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def read_characters(path: Path) -> dict[str, Any]:
    """Profiles of `--characters`: an object of them by name, or a character card."""
    found = read_json(path)
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: accepted is an object of characters by name, or a card.")
    if isinstance(found.get("data"), Mapping) and FORMATS["card"].recognise(found):
        return {"": character_of_card(found["data"])}
    return {name: profile for name, profile in found.items() if name}
