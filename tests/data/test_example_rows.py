"""Reading one row: what is accepted comes back as it was, and everything else is named in the
error.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.data.example import Example, Turn, plain_row
from coevolve.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VISIBLE = TEXT.filter(str.strip)
CHARACTER = TEXT | st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT), max_size=4)
TURNS = st.lists(st.builds(Turn, st.sampled_from(["user", "agent"]), TEXT), max_size=5)
EXAMPLES = st.builds(
    Example,
    sample_id=VISIBLE,
    subset=VISIBLE,
    user_persona=TEXT,
    agent_character=CHARACTER,
    dialogue=TURNS.map(lambda turns: (*turns, Turn("user", "Well?"))),
    golden_response=VISIBLE | st.none(),
    trace=VISIBLE | st.none(),
    shift=st.dictionaries(TEXT, TEXT | st.integers(), max_size=3) | st.none(),
)


@given(EXAMPLES)
def test_a_row_survives_the_round_trip_through_json(example):
    assert Example.from_row(json.loads(json.dumps(example.to_row())), "row") == example


def test_the_public_name_of_a_trace_is_read(make_row):
    assert Example.from_row(make_row(SThought="because"), "row").trace == "because"
    assert Example.from_row(make_row(trace="because", SThought=None), "row").trace == "because"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_persona": None}, r"field 'user_persona' is missing"),
        ({"user_persona": 3}, r"user_persona is a number"),
        ({"user_persona": "\ud83d"}, r"user_persona has half of a surrogate pair"),
        ({"subset_tag": ""}, r"subset_tag is empty"),
        (
            {"agent_character": ["a"]},
            r"agent_character is a list; accepted is a string or an object",
        ),
        (
            {"agent_character": {"age": float("nan")}},
            r"agent_character holds what JSON cannot",
        ),
        (
            {"agent_character": {"name": "\udc00"}},
            r"agent_character holds what JSON cannot",
        ),
        ({"agent_golden_response": " \n"}, r"agent_golden_response is empty"),
        ({"agent_golden_response": ["a"]}, r"agent_golden_response is a list"),
        (
            {"shift": "word_order"},
            r"shift is a string; accepted is the object that `coevolve shift` wrote",
        ),
        ({"shift": {"seed": float("inf")}}, r"shift holds what JSON cannot"),
        ({"trace": "a", "SThought": "b"}, r"both 'trace' and 'SThought'"),
        ({"response": "a"}, r"unknown field 'response'; accepted are sample_ID"),
        ({"dialogue_context": []}, r"dialogue_context is an empty list"),
        ({"dialogue_context": "Hi"}, r"dialogue_context is a string"),
        (
            {"dialogue_context": [{"user_query": 1}]},
            r"dialogue_context\[0\]\.user_query is a number",
        ),
        (
            {"dialogue_context": [{"user_query": "a", "agent_response": "b"}]},
            r"dialogue_context\[0\] is an object",
        ),
        ({"dialogue_context": [{"user_query": "a"}, "b"]}, r"dialogue_context\[1\] is a string"),
        (
            {"dialogue_context": [{"user_query": "a"}, {"agent_response": "b"}]},
            r"ends with the agent",
        ),
    ],
)
def test_a_malformed_field_is_named_with_its_row(make_row, fields, message):
    with pytest.raises(DataError, match=rf"^data\.jsonl:4 \(sample_ID 's1'\): .*{message}"):
        Example.from_row(make_row(**fields), "data.jsonl:4")


def test_a_row_is_read_as_it_was_meant_whatever_a_table_made_of_it(make_row):
    """All rows of a table have the same keys, and integers beside a missing value or a fraction are
    floats there.
    """
    meant = make_row(agent_character={"name": "Ada", "age": 3, "weight": 0.5, "likes": {"tea": 2}})
    table = make_row(
        agent_character={
            "name": "Ada",
            "age": 3.0,
            "weight": 0.5,
            "likes": {"tea": 2.0, "rum": None},
            "ship": None,
        },
        dialogue_context=[
            {"user_query": "Hi", "agent_response": None},
            {"user_query": None, "agent_response": "Ahoy"},
            {"user_query": "Where to?", "agent_response": None},
        ],
        trace=None,
        SThought=None,
        shift=None,
    )
    read = Example.from_row(table, "row")
    assert read == Example.from_row(meant, "row")
    assert json.dumps(read.to_row()) == json.dumps(meant)
    # A float that is whole only because it is large stays one.
    assert plain_row([1e17, -0.0, 2.5, None, True]) == [1e17, 0, 2.5, None, True]
    assert repr(plain_row([1e17, -0.0, True])) == "[1e+17, 0, True]"


@pytest.mark.parametrize(
    "field", ["sample_ID", "subset_tag", "user_persona", "agent_character", "dialogue_context"]
)
def test_a_missing_field_is_named(make_row, field):
    row = make_row()
    del row[field]
    with pytest.raises(DataError, match=f"field '{field}' is missing; the row has"):
        Example.from_row(row, "row")


def test_a_row_that_is_no_object_is_an_error():
    with pytest.raises(DataError, match="row: a list; accepted is an object"):
        Example.from_row([], "row")
