"""Rows in the RPGBench layout, for the tests of the data layer."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_row() -> Callable[..., dict[str, Any]]:
    """Makes a valid row; keyword arguments replace its fields."""

    def make(sample_id: str = "s1", **fields: Any) -> dict[str, Any]:
        row = {
            "sample_ID": sample_id,
            "subset_tag": "english",
            "user_persona": "I like tea.",
            "agent_character": {"name": "Ada", "facts": ["I am a sailor."]},
            "dialogue_context": [
                {"user_query": "Hi"},
                {"agent_response": "Ahoy"},
                {"user_query": "Where to?"},
            ],
            "agent_golden_response": "To sea.",
        }
        return row | fields

    return make
