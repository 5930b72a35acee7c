"""Formats that dialogues are kept in elsewhere, row by row: how each is recognised, and what its
rows are in the terms of `coevolve.data.example`.

A reader is given a row, what its speakers' names mean, and a place to tell what is wrong with the
row and what is left out of it. It returns the fields of the examples that it found.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coevolve.data.example import OPTIONAL_FIELDS, REQUIRED_FIELDS, Turn, kind
from coevolve.errors import DataError
from coevolve.files import parse_json

Row = Mapping[str, Any]

ROLES = {
    **dict.fromkeys(("user", "human", "player", "{{user}}"), "user"),
    **dict.fromkeys(("agent", "assistant", "gpt", "bot", "chatbot", "model", "{{char}}"), "agent"),
    **dict.fromkeys(("character", "char"), "agent"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""What speakers are called, and what they are: `user`, `agent`, or `system`, whose text is the
character's.
"""
TURN_KEYS = (("from", "value"), ("role", "content"), ("speaker", "text"))
OWN_TURNS = {"user_query": "user", "agent_response": "agent"}
ACCEPTED_TURNS = ", ".join((*(speaker for speaker, _ in TURN_KEYS), *OWN_TURNS))
LEFT_OUT = "has no place in an example and is left out"
WIDE_COLON = "\uff1a"

OWN_FIELDS = (*REQUIRED_FIELDS, *(x for x in OPTIONAL_FIELDS if x != "source"), "split")
"""What a row of any format may have by the names that coevolve has for it."""


@dataclass
class Told:
    """What was seen in a row, each as (field, what is wrong or was done, what was found)."""

    faults: list[tuple[str, str, object]] = field(default_factory=list)
    notes: list[tuple[str, str, object]] = field(default_factory=list)

    def fault(self, name: str, problem: str, found: object = "") -> None:
        self.faults.append((name, problem, found))

    def note(self, name: str, what: str, found: object = "") -> None:
        self.notes.append((name, what, found))


Reader = Callable[[Row, Mapping[str, str], Told], "list[dict[str, Any]] | dict[str, Any]"]


@dataclass(frozen=True)
class Format:
    """A format: whether a row is of it, the fields that are used, and how it is read."""

    name: str
    uses: tuple[str, ...]
    recognise: Callable[[Row], bool]
    read: Reader


FORMATS: dict[str, Format] = {}
"""In the order in which they are tried."""


def _format(name: str, *uses: str, recognise: Callable[[Row], bool]) -> Callable[[Reader], Reader]:
    def register(read: Reader) -> Reader:
        FORMATS[name] = Format(name, uses, recognise, read)
        return read

    return register


def format_of(row: Row) -> Format | None:
    """The first format that recognises the row."""
    return next((one for one in FORMATS.values() if one.recognise(row)), None)


@_format("columns", recognise=lambda row: "dialogue_context" in row)
def read_columns(row: Row, roles: Mapping[str, str], told: Told) -> dict[str, Any]:
    """Columns by coevolve's names; `dialogue_context` a list, its JSON text, or one user's turn."""
    context = row["dialogue_context"]
    if isinstance(context, str) and not context.lstrip().startswith("["):
        context = [{"user_query": context}]
    said = _pairs(context, "dialogue_context", told)
    golden = row.get("agent_golden_response")
    said += [] if golden is None else [("agent", golden)]
    # Turns without text are accepted in the layout that these rows have.
    return _turns(said, "dialogue_context", roles, told, empty=True)


@_format(
    *("card", "spec", "spec_version", "data"),
    recognise=lambda row: str(row.get("spec", "")).startswith("chara_card_v"),
)
def read_card(row: Row, roles: Mapping[str, str], told: Told) -> list[dict[str, Any]]:
    """A character card V2 (or V3): an example for each of its example dialogues."""
    data = row.get("data")
    if not isinstance(data, Mapping):
        told.fault("data", f"is {kind(data)}; accepted is a card's object", "")
        return []
    character = character_of_card(data)
    scripts = data.get("mes_example") or ""
    if not isinstance(scripts, str):
        told.fault("data.mes_example", f"is {kind(scripts)}; accepted is text", "")
        return []
    name = str(data.get("name", ""))
    for key in data.keys() - {*character, "mes_example"}:
        if data[key]:
            told.note(f"data.{key}", LEFT_OUT, data[key])
    names = {**roles, name.casefold(): "agent"}
    parts = [part for part in re.split(r"(?i)<START>", scripts) if part.strip()]
    if not parts:
        told.fault(
            "data.mes_example", "has no example dialogue; give the card with --characters", name
        )
    found = []
    for part in parts:
        script = re.sub(r"(?i)\{\{(user|char)\}\}:", lambda found: found[0].lower(), part)
        said = _lines(script, ":", "data.mes_example", told, known=names)
        turns = _turns(said, "data.mes_example", names, told)
        found.append({**turns, "agent_character": character})
    return found


def character_of_card(data: Mapping[str, Any]) -> dict[str, Any]:
    """Who a card describes, its placeholders left as they are."""
    names = ("name", "description", "personality", "scenario")
    return {name: data[name] for name in names if data.get(name)}


@_format("sharegpt", "conversations", "system", recognise=lambda row: "conversations" in row)
def read_sharegpt(row: Row, roles: Mapping[str, str], told: Told) -> dict[str, Any]:
    """`conversations` of `from` and `value`, as ShareGPT and CoSER have it."""
    said = _pairs(row["conversations"], "conversations", told)
    if row.get("system", "") != "":
        said.insert(0, ("system", row["system"]))
    return _turns(said, "conversations", roles, told)


@_format("messages", "messages", recognise=lambda row: "messages" in row)
def read_messages(row: Row, roles: Mapping[str, str], told: Told) -> dict[str, Any]:
    """OpenAI's `messages` of `role` and `content`, a text or a list of text parts."""
    return _turns(_pairs(row["messages"], "messages", told), "messages", roles, told)


@_format(
    *("charactereval", "role", "context", "novel_name"),
    recognise=lambda row: {"role", "context"} <= row.keys(),
)
def read_charactereval(row: Row, roles: Mapping[str, str], told: Told) -> dict[str, Any]:
    """CharacterEval: `context` is a script, a line of name, colon, text for each turn."""
    context, role = row["context"], row["role"]
    if not isinstance(context, str) or not isinstance(role, str):
        place = "role" if isinstance(context, str) else "context"
        told.fault(place, f"is {kind(row[place])}; accepted is text", "")
        return {}
    said = _lines(context, WIDE_COLON if WIDE_COLON in context else ":", "context", told)
    others = list(dict.fromkeys(name for name, _ in said if name != role))
    # Who speaks is part of the text where several do.
    several = len(others) > 1
    if several:
        told.note(
            "context", "has several who speak to the role; names stay in the text", others[:3]
        )
    named = [
        ("agent", text)
        if name == role
        else ("user", f"{name}{WIDE_COLON}{text}" if several else text)
        for name, text in said
    ]
    character = {"name": role} | ({"novel": row["novel_name"]} if row.get("novel_name") else {})
    persona = {} if several or not others else {"user_persona": others[0]}
    return {**_turns(named, "context", ROLES, told), **persona, "agent_character": character}


@_format(
    *("rolebench", "role", "question", "generated"),
    recognise=lambda row: {"role", "question", "generated"} <= row.keys(),
)
def read_rolebench(row: Row, roles: Mapping[str, str], told: Told) -> dict[str, Any]:
    """RoleBench: a `question` to a `role`, and the list `generated`, whose first is the answer."""
    answers = row["generated"]
    answers = answers if isinstance(answers, list) else [answers]
    if len(answers) > 1:
        told.note("generated", "has more answers than one; the first is taken", len(answers))
    said = [("user", row["question"]), *(("agent", answer) for answer in answers[:1])]
    return {**_turns(said, "question", ROLES, told), "agent_character": {"name": row["role"]}}


def _pairs(turns: object, place: str, told: Told) -> list[tuple[object, object]]:
    """(speaker, text) of a list of turns, or of its JSON text as a table has it."""
    if isinstance(turns, str):
        try:
            turns = parse_json(turns, place)
        except DataError as error:
            told.fault(place, "is no JSON", str(error))
            return []
    if not isinstance(turns, list):
        told.fault(place, f"is {kind(turns)}; accepted is a list of turns")
        return []
    found: list[tuple[object, object]] = []
    for turn in turns:
        keys = turn if isinstance(turn, Mapping) else {}
        speaker, text = next((pair for pair in TURN_KEYS if pair[0] in keys), ("", ""))
        if speaker:
            found.append((keys[speaker], _joined(keys.get(text))))
            for key in keys.keys() - {speaker, text}:
                told.note(f"{place}[].{key}", LEFT_OUT, keys[key])
        elif len(keys) == 1 and (role := OWN_TURNS.get(next(iter(keys)))):
            found.append((role, *keys.values()))
        else:
            told.fault(f"{place}[]", f"has no speaker by {ACCEPTED_TURNS}", turn)
    return found


def _joined(content: object) -> object:
    """A content of text parts as one text; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    texts = [text for text in parts if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(content) else content


def _lines(
    script: str, colon: str, place: str, told: Told, known: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """(name, text) of a script's turns; a line without a name goes on with the turn before it."""
    said: list[tuple[str, str]] = []
    for line in script.split("\n"):
        name, found, text = line.partition(colon)
        name = name.strip()
        if found and name and (known is None or name.casefold() in known):
            said.append((name, text.strip()))
        elif said:
            said[-1] = (said[-1][0], f"{said[-1][1]}\n{line}".rstrip())
        elif line.strip():
            told.fault(place, "begins with a line that has no speaker", line)
    return said


def _turns(
    said: Iterable[tuple[object, object]],
    place: str,
    roles: Mapping[str, str],
    told: Told,
    *,
    empty: bool = False,
) -> dict[str, Any]:
    """The fields that a dialogue gives: its turns, the last one of the agent the golden response,
    and the character, where a system's text is the first.
    """
    turns: list[Turn] = []
    texts: list[str] = []
    for name, text in said:
        role = roles.get(name.strip().casefold()) if isinstance(name, str) else None
        if role is None:
            told.fault(
                f"{place}: speaker", "is not known; say what it is with --role NAME=user", name
            )
        elif not isinstance(text, str):
            told.fault(
                f"{place}: text", f"is {kind(text)}; accepted is text", json.dumps(text)[:80]
            )
        elif not text.strip() and not (empty and role != "system"):
            told.fault(f"{place}: text", "is empty", name)
        elif role == "system" and turns:
            told.fault(f"{place}: speaker", "is a system's after the first turn", text)
        elif role == "system":
            texts.append(text)
        else:
            turns.append(Turn("user" if role == "user" else "agent", text))
    golden = turns.pop().text if turns and turns[-1].speaker == "agent" else None
    if golden is None and turns:
        told.note(
            place,
            "ends with the user, without a golden response, which training needs",
            turns[-1].text,
        )
    if not told.faults and not any(turn.speaker == "user" for turn in turns):
        told.fault(place, "has no turn of the user before the last one of the agent", "")
    context = [
        {"user_query" if turn.speaker == "user" else "agent_response": turn.text} for turn in turns
    ]
    fields: dict[str, Any] = {"dialogue_context": context}
    fields |= {} if golden is None else {"agent_golden_response": golden}
    return fields | ({"agent_character": "\n\n".join(texts)} if texts else {})
