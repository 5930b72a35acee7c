"""The JSON files that this tool writes, read back as if a stranger had written them.

Each kind of file is a model with its fields explained: the model is the schema. A file is looked at
whole before anything is done with it: whether it is of a version that is read here, then every
field, then whether the fields agree.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from coevolve.errors import CoevolveError, DataError
from coevolve.files import read_json

LONGEST_SHOWN = 60
"""Characters of a wrong value that an error shows."""


class Part(BaseModel):
    """A part of a document, or a line of one.

    Types are what they are in JSON: true is no number, "1" is none, and every number is finite. A
    field that is not known here is left aside: a later version of coevolve may have added it.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def values(self) -> dict[str, Any]:
        """As plain JSON values, without the fields that the file does not have."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Document(Part):
    """A whole file. Fields in `marks`, each a Literal, say what it is, and are looked at first."""

    marks: ClassVar[tuple[str, ...]] = ()


Model = TypeVar("Model", bound=Part)


def read_document(
    path: str | Path, *models: type[Model], remedy: str, error: type[CoevolveError] = DataError
) -> Model:
    """The file as the one of `models` whose marks it bears.

    Args:
        remedy: what to do about a file that is wrong, as a sentence.
        error: what to raise.

    Raises:
        CoevolveError: an `error`: the file cannot be read, is no JSON, is of a version that is not
            read here, or a field of it is wrong; file and field are named.
    """
    try:
        value = read_json(path, nan=True)  # which numbers must be finite, the model says
    except DataError as fault:
        raise error(f"{fault} {remedy}") from None
    return check_document(value, *models, where=str(path), remedy=remedy, error=error)


def check_document(
    value: Any,
    *models: type[Model],
    where: str,
    remedy: str,
    error: type[CoevolveError] = DataError,
) -> Model:
    """The JSON value as a model, as `read_document`; `where` is what to call it in errors."""
    if not isinstance(value, dict):
        raise error(f"{where}: found {_shown(value)}; accepted is an object. {remedy}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        half = fault.object[fault.start]
        raise error(f"{where}: {half!r} is half a character, no text. {remedy}") from None
    for mark in getattr(models[0], "marks", ()):
        accepted = [(known, model) for model in models for known in _accepted(model, mark)]
        of_file = value.get(mark)
        # True is not version 1.
        models = tuple(
            model for known, model in accepted if type(known) is type(of_file) and known == of_file
        )
        if not models:
            names = " or ".join(str(known) for known, _ in accepted)
            raise error(f"{where}: {mark} is {_shown(of_file)}; accepted is {names}. {remedy}")
    try:
        return models[0].model_validate(value)
    except ValidationError as fault:
        raise error(f"{where}: {explain(fault)} {remedy}") from None


def explain(error: ValidationError) -> str:
    """The first fault as a sentence: field, found, accepted; and how many more there are."""
    first, *others = error.errors(include_url=False)
    field = ".".join(str(part)[:LONGEST_SHOWN] for part in first["loc"] if part != "[key]")
    more = f" (and {len(others)} more faults)" if others else ""
    if first["type"] == "missing":
        return f"{field} is missing{more}."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        accepted = {"model_type": "an object", "dict_type": "an object", "list_type": "a list"}
        means = accepted.get(first["type"]) or message.removeprefix("Input should be ")
        message = f"found {_shown(first['input'])}; accepted is {means}"
    return f"{field}: {message}{more}." if field else f"{message}{more}."


def _accepted(model: type[Part], mark: str) -> tuple[Any, ...]:
    field = next(field for name, field in model.model_fields.items() if mark in (name, field.alias))
    return get_args(field.annotation)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
