"""A file is of the version that is read here, and its fields are what the model says; else one
sentence says where.
"""

import json
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from coevolve.documents import Document, check_document, read_document
from coevolve.errors import ArtifactError, DataError


class One(Document):
    marks: ClassVar = ("schema",)
    schema_id: Literal["thing/1"] = Field(alias="schema")
    count: int
    share: float = 0.5
    """How much."""
    names: dict[str, list[str]] = Field(default_factory=dict)


class Two(Document):
    marks: ClassVar = ("schema",)
    schema_id: Literal["thing/2", "thing/3"] = Field(alias="schema")
    version: int = 0


def told(value, *models):
    with pytest.raises(DataError) as error:
        check_document(value, *(models or (One,)), where="f.json", remedy="Do this.")
    assert str(error.value).startswith("f.json: ") and str(error.value).endswith(". Do this.")
    return str(error.value).removeprefix("f.json: ").removesuffix(" Do this.")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "count is missing."),
        ({"count": True}, "count: found True; accepted is a valid integer."),
        ({"count": "1"}, "count: found '1'; accepted is a valid integer."),
        ({"count": 1.0}, "count: found 1.0; accepted is a valid integer."),
        ({"count": 1, "share": float("nan")}, "share: found nan; accepted is a finite number."),
        ({"count": 1, "names": []}, "names: found a list; accepted is an object."),
        (
            {"count": [2], "share": "x"},
            "count: found a list; accepted is a valid integer (and 1 more faults).",
        ),
        (
            {"count": 1, "names": {"a": ["b", None]}},
            "names.a.1: found None; accepted is a valid string.",
        ),
        (
            {"count": 1, "names": {"a": "\ud800"}},
            "'\\ud800' is half a character, no text.",
        ),
    ],
)
def test_the_field_and_what_was_found_are_named(fields, said):
    assert told({"schema": "thing/1", **fields}) == said


@pytest.mark.parametrize("value", [None, [], "x", 1.5])
def test_a_document_is_an_object(value):
    assert told(value).endswith("; accepted is an object.")


@pytest.mark.parametrize("found", [None, "thing/4", 1, True, [], {}])
def test_another_version_is_said_before_anything_else(found):
    assert told({"schema": found, "share": "x"}, One, Two).endswith(
        "accepted is thing/1 or thing/2 or thing/3."
    )


def test_the_mark_chooses_the_model_and_only_what_the_file_has_is_given_back():
    found = check_document({"schema": "thing/3", "more": 1}, One, Two, where="f", remedy="")
    assert isinstance(found, Two) and found.values() == {"schema": "thing/3"}


def test_a_long_value_is_not_shown_whole(tmp_path):
    assert len(told({"schema": "thing/1", "count": "x" * 10_000})) < 150


def test_the_error_is_of_the_kind_asked_for_and_names_the_file(tmp_path):
    path = tmp_path / "f.json"
    for content in (b"", b"{", b"\xff", json.dumps({"schema": "thing/1"}).encode()):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"f\.json.* Do this\.$"):
            read_document(path, One, remedy="Do this.", error=ArtifactError)


def test_fields_explain_themselves():
    assert One.model_json_schema()["properties"]["share"]["description"] == "How much."
