"""One example x = (user persona, agent character, dialogue) with its response y."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coevolve.errors import DataError

REQUIRED_FIELDS = ("sample_ID", "subset_tag", "user_persona", "agent_character", "dialogue_context")
# SThought: the public release's name of a trace. shift: what `coevolve shift` did to make the row.
# source: where `coevolve convert` found it, for whoever looks at the file; an Example has it not.
OPTIONAL_FIELDS = ("agent_golden_response", "trace", "SThought", "shift", "source")


@dataclass(frozen=True)
class Turn:
    """One turn of the dialogue."""

    speaker: Literal["user", "agent"]
    text: str


@dataclass(frozen=True)
class Example:
    """An example in the RPGBench layout.

    Attributes:
        sample_id: unique within a file.
        subset: the row's `subset_tag`, for example `german` or `turn_composition`.
        user_persona: u, free text; may be empty.
        agent_character: c, free text or a JSON object.
        dialogue: d, the turns in order; the last one is the user's.
        golden_response: y, the reference response; None where only a model's responses will be
            scored.
        trace: a reasoning r* that came with the row (as `trace` or `SThought`), for the cold start;
            usually None.
        shift: how the row was made from another one (`coevolve.shifts`); None for an original row.
            No model sees it.
    """

    sample_id: str
    subset: str
    user_persona: str
    agent_character: str | Mapping[str, Any]
    dialogue: tuple[Turn, ...]
    golden_response: str | None = None
    trace: str | None = None
    shift: Mapping[str, Any] | None = None

    @classmethod
    def from_row(cls, row: Any, where: str) -> "Example":
        """Check one row (decoded JSON) of a data file and make an Example of it; `where` is what to
        call the row in an error, for example `data.json: IDTrain[3]`.
        """
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where}: {kind(row)}; accepted is an object with {', '.join(REQUIRED_FIELDS)}."
            )
        row = plain_row(row)
        if isinstance(row.get("sample_ID"), (str, int)) and row["sample_ID"]:
            where = f"{where} (sample_ID {row['sample_ID']!r})"
        missing = [field for field in REQUIRED_FIELDS if field not in row]
        if missing:
            raise DataError(
                f"{where}: field {missing[0]!r} is missing; the row has "
                f"{', '.join(map(repr, row)) or 'no fields'}."
            )
        unknown = [field for field in row if field not in REQUIRED_FIELDS + OPTIONAL_FIELDS]
        if unknown:
            raise DataError(
                f"{where}: unknown field {unknown[0]!r}; accepted are "
                f"{', '.join(REQUIRED_FIELDS + OPTIONAL_FIELDS)}."
            )
        return cls(
            sample_id=id_field(row, where),
            subset=text_field(row, "subset_tag", where),
            user_persona=text_field(row, "user_persona", where, empty=True),
            agent_character=character_field(row, where),
            dialogue=_dialogue(row["dialogue_context"], where),
            golden_response=_optional_text(row, "agent_golden_response", where),
            trace=_trace(row, where),
            shift=_shift(row, where),
        )

    def to_row(self) -> dict[str, Any]:
        """The row that `from_row` reads back to an equal Example."""
        row: dict[str, Any] = {
            "sample_ID": self.sample_id,
            "subset_tag": self.subset,
            "user_persona": self.user_persona,
            "agent_character": self.agent_character,
            "dialogue_context": [
                {"user_query" if turn.speaker == "user" else "agent_response": turn.text}
                for turn in self.dialogue
            ],
        }
        optional = {"trace": self.trace, "shift": self.shift}
        optional = {"agent_golden_response": self.golden_response, **optional}
        return row | {name: value for name, value in optional.items() if value is not None}


def plain_row(value: Any) -> Any:
    """A row as it was meant, whatever kept it, so that all formats give the same.

    A table (Arrow, Parquet, the JSON Lines that `datasets` and pandas write of one) gives all rows
    the same keys, those that a row lacks as null, and makes a column of integers one of floats
    where a value is missing or a fraction. So a key with null is one that is absent, in objects
    within the row too, and a whole number is an integer.
    """
    if isinstance(value, Mapping):
        return {key: plain_row(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain_row(item) for item in value]
    # Beyond 2**53 a float is whole whatever was meant.
    if isinstance(value, float) and abs(value) < 2**53 and value.is_integer():
        return int(value)
    return value


def _dialogue(value: Any, where: str) -> tuple[Turn, ...]:
    accepted = "a list of {'user_query': text} and {'agent_response': text}, a user_query last"
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise DataError(f"{where}: dialogue_context is {found}; accepted is {accepted}.")
    turns = []
    for index, turn in enumerate(value):
        field = f"dialogue_context[{index}]"
        names = sorted(map(str, turn)) if isinstance(turn, Mapping) else None
        if names not in (["user_query"], ["agent_response"]):
            found = kind(turn) if names is None else f"an object with {names}"
            raise DataError(f"{where}: {field} is {found}; accepted is {accepted}.")
        (name,) = names
        text = text_field(turn, name, where, label=f"{field}.{name}", empty=True)
        turns.append(Turn("user" if name == "user_query" else "agent", text))
    if turns[-1].speaker != "user":
        raise DataError(f"{where}: dialogue_context ends with the agent; accepted is {accepted}.")
    return tuple(turns)


def character_field(row: Mapping[str, Any], where: str) -> str | Mapping[str, Any]:
    """The character in `row["agent_character"]`: text, or a JSON object, or a DataError."""
    value = row["agent_character"]
    if isinstance(value, str):
        return text_field(row, "agent_character", where, empty=True)
    return _json_object(value, "agent_character", where, "a string or an object")


def _shift(row: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    if row.get("shift") is None:
        return None
    return _json_object(row["shift"], "shift", where, "the object that `coevolve shift` wrote")


def _json_object(value: Any, field: str, where: str, accepted: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {field} is {kind(value)}; accepted is {accepted}.")
    try:
        # Now rather than when a checkpoint is written: NaN, a lone surrogate, or a value that JSON
        # does not know.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {field} holds what JSON cannot ({error}).") from None
    return value


def _trace(row: Mapping[str, Any], where: str) -> str | None:
    trace, public = _optional_text(row, "trace", where), _optional_text(row, "SThought", where)
    if trace is not None and public is not None:
        raise DataError(f"{where}: has both 'trace' and 'SThought'; keep one of them.")
    return trace if public is None else public


def _optional_text(row: Mapping[str, Any], field: str, where: str) -> str | None:
    return None if row.get(field) is None else text_field(row, field, where)


def id_field(row: Mapping[str, Any], where: str) -> str:
    """The text in `row["sample_ID"]`; an integer is its digits."""
    value = row["sample_ID"]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else text_field(row, "sample_ID", where)


def text_field(
    row: Mapping[str, Any], field: str, where: str, *, label: str | None = None, empty: bool = False
) -> str:
    """The text in `row[field]`.

    Args:
        row: holds `field`.
        field: the key.
        where: what to call the row in an error.
        label: what to call the field in an error, where its key alone would not say.
        empty: whether text without a visible character is accepted.
    """
    value, label = row[field], label or field
    if not isinstance(value, str):
        raise DataError(f"{where}: {label} is {kind(value)}; accepted is a string.")
    if not empty and not value.strip():
        raise DataError(
            f"{where}: {label} is empty; accepted is a string with a visible character."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # An escape such as \\ud83d without its second half: JSON allows it, UTF-8 does not.
        raise DataError(
            f"{where}: {label} has half of a surrogate pair ({value[error.start]!r}) at character "
            f"{error.start}; remove it."
        ) from None
    return value


def kind(value: Any) -> str:
    """The JSON name of a value's type, with its article, for messages."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
    }
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, quoted, for messages."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
