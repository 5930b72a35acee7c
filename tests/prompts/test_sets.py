"""A prompt set that comes from a manifest is plain text and plain fields: none of it runs, and none
of it grows.
"""

import re
import time
from types import SimpleNamespace

import pytest

from coevolve.data.ledger import digest
from coevolve.errors import ArtifactError, RecipeError
from coevolve.prompts.render import _harmful_pattern
from coevolve.prompts.sets import PromptSet, began_as, prompt_set
from coevolve.scoring.artifact import read_prompts

VALUES = prompt_set("roleplay").to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"user_turn": "{k:9999999999} {text}"},
            "user_turn has the field {k:9999999999}; accepted are k, text, plain",
        ),
        (
            {"user_turn": "{text!r}"},
            "user_turn has the field {text!r}; accepted are k, text, plain",
        ),
        ({"agent_turn": "{text:{k}}"}, "agent_turn has the field {text:{k}}"),
        (
            {"context": "{dialogue.__class__.__mro__}"},
            "context has the field {dialogue.__class__.__mro__}",
        ),
        ({"context": "{dialogue[0]}"}, "context has the field {dialogue[0]}"),
        (
            {"context": "{context}"},
            "context has the field {context}; accepted are user_persona, agent_character, dial",
        ),
        (
            {"direct_user": "{features}"},
            "direct_user has the field {features}; accepted are context, user_persona",
        ),
        ({"next_turn": "{}"}, "next_turn has the field {}; accepted are k, plain"),
        ({"judge_user": "{response"}, "judge_user is no template of str.format"),
        ({"teacher_user": "}"}, "teacher_user is no template of str.format (Single '}'"),
        (
            {"connector_user": "{context}" * 11},
            "connector_user has {context} 11 times; accepted are 10",
        ),
        (
            {"estimator_user": "x" * 100_001},
            "estimator_user has 100,001 characters; accepted are 100,000",
        ),
        (
            {"estimator_user": "{context}"},
            "estimator_user has no {features}, so no reasoning could",
        ),
        ({"estimator_system": None}, "estimator_system is None; accepted is text"),
        ({"no_features": 3}, "no_features is 3; accepted is text"),
        ({"turn_separator": ["a"]}, "turn_separator is ('a',); accepted is text"),
        ({"judge_match": "\ud800"}, "judge_match has half of a surrogate pair"),
        ({"sections": "[A]"}, "sections is '[A]'; accepted is a list"),
        ({"sections": []}, "sections is empty or has an empty heading"),
        ({"sections": ["[A]", ""]}, "sections is empty or has an empty heading"),
        ({"sections": ["[A]", 3]}, "sections is 3; accepted is text"),
        ({"labels": ["x"] * 51}, "accepted is a list of at most 50 texts"),
        ({"labels": ["("]}, "labels has '('; accepted is literal text"),
        ({"labels": ["(a|a)*b"]}, "labels has '(a|a)*b'; accepted is literal text"),
        ({"labels": [r"\d+\d+:"]}, "with \\d+ once"),
        ({"labels": ["(a|a)" * 4]}, "up to three groups of alternatives"),
        ({"labels": ["User.*"]}, "labels has 'User.*'"),
        ({"labels": [""]}, "labels has ''"),
        ({"labels": ["a" * 201]}, "literal text of up to 200 characters"),
        ({"convention": "theirs"}, "convention is 'theirs'; accepted are coevolve, reference"),
    ],
)
def test_what_a_prompt_set_may_not_hold(changes, message):
    with pytest.raises(RecipeError) as caught:
        PromptSet.from_dict({**VALUES, **changes})
    assert str(caught.value).startswith("prompts: ") and message in str(caught.value)
    with pytest.raises(ArtifactError, match=r"folder/manifest\.json: prompts: "):
        read_prompts({"prompts": {**VALUES, **changes}}, "folder")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({}, "prompts: found None; accepted is an object"),
        ({"prompts": [1]}, r"prompts: found \[1\]; accepted is an object"),
        ({"prompts": {"name": "x"}}, "prompts: the field 'sections' is missing"),
    ],
)
def test_prompts_that_are_missing(manifest, message):
    with pytest.raises(ArtifactError, match=message):
        read_prompts(manifest, "folder")


@pytest.mark.parametrize(
    "label", [r"(aa|a)(aa|a)(aa|a)\d+:", r"\[User\] \d+\.", "(User Query|Agent Response) #"]
)
def test_no_text_makes_an_accepted_label_slow(label):
    prompts = PromptSet.from_dict({**VALUES, "labels": [label]})
    pattern = _harmful_pattern(prompts, SimpleNamespace(added_tokens_decoder={}))
    assert isinstance(pattern, re.Pattern)
    began = time.process_time()
    for text in ("a" * 200_000, "aaa" + "1" * 200_000, " " * 200_000, "[User] " + "1" * 200_000):
        pattern.sub("", text)
    assert time.process_time() - began < 1


def test_braces_that_are_text_stay_text():
    prompts = PromptSet.from_dict({**VALUES, "user_turn": "{{text}} {text}"})
    assert prompts.user_turn.format(k=1, text="{k}") == "{text} {k}"


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("roleplay", "6a236f605b016ec2df32e844f5c7b1245818b657620f871619e635e5a7c0c1fd"),
        ("brief", "d415c67d5b9e7180b3bfd65f2f7f4b537b98174f56afc552220bbdb5ae7cac73"),
    ],
)
def test_the_sets_of_0_3_are_there_to_the_letter(name, fingerprint):
    """The fingerprint is the one in traces that were collected with them."""
    assert digest(prompt_set(f"{name}-0.3").to_dict()) == fingerprint
    assert began_as(name) == f"{name}-0.3" and began_as("world") == "world"
