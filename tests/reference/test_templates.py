"""Prompts out of a file that is never run; what the models are then shown; the way back."""

from dataclasses import replace

import pytest

from coevolve.data.example import Example, Turn
from coevolve.errors import ArtifactError, RecipeError
from coevolve.prompts import PromptSet, Renderer, prompt_set
from coevolve.reference.templates import (
    CONSTANTS,
    exported_constants,
    imported_prompts,
    read_templates,
    shows_the_same,
    write_templates,
)

NO_ANSWER = "Please give your analysis without any given reference response"


@pytest.fixture
def constants(release):
    return read_templates(release.checkout)


@pytest.fixture
def prompts(constants):
    return imported_prompts(constants, "templates.py")


def test_models_are_shown_what_the_public_scripts_show_them(prompts, estimator):
    """Section by section, as the release is described: dialogue, character, features, golden
    response.
    """
    example = Example(
        "s", "t", "I {like} tea.", {"name": "Ann", "age": 3},
        (Turn("user", "q1"), Turn("agent", "a1"), Turn("user", "q2")), "Hm."
    )  # fmt: skip
    dialogue = "User Query 1: q1\nAgent Response 1: a1\n\nUser Query 2: q2\n\nAgent Response 2: "
    inputs = f"User: I {{like}} tea.\nAgent: {{'name': 'Ann', 'age': 3}}\nTalk:\n{dialogue}\n"
    render = Renderer(prompts, estimator.renderer.tokenizer)
    assert render.connector(example) == (
        "<|im_start|>system\nSay what a good answer needs.<|im_end|>\n"
        f"<|im_start|>user\n\n# Task {{no field}}\n{inputs}Answer given: {NO_ANSWER}\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    reasoning = (
        "so [Core Features of the Golden Response] no, [Core Features of the Golden Response]\n\n- "
        "warm\n```\n"
    )
    assert render.estimator(example, reasoning) == (
        f"<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\n{inputs}\n"
        "\n\n## Core Features of the Golden Response\n```\n\n- warm\n\n```\n\n<|im_end|>\n"
        "<|im_start|>assistant\n## Agent Response\n"
    )
    assert "```no heading```" in render.estimator(example, "no heading")


def test_the_prompts_survive_a_manifest_and_an_export(prompts, tmp_path):
    assert PromptSet.from_dict(prompts.to_dict()) == prompts
    tmp_path.joinpath("out").mkdir()
    write_templates(tmp_path / "out", exported_constants(prompts))
    assert imported_prompts(read_templates(tmp_path / "out"), "x") == prompts


def test_a_manifest_from_before_there_were_conventions_means_ours():
    ours = prompt_set("roleplay")
    values = {
        name: value
        for name, value in ours.to_dict().items()
        if name not in ("convention", "response_start")
    }
    assert PromptSet.from_dict(values) == ours
    with pytest.raises(
        RecipeError, match="convention is 'theirs'; accepted are coevolve, reference"
    ):
        PromptSet.from_dict({**values, "convention": "theirs"})


def test_what_is_exported_can_be_used_by_the_public_scripts(prompts, tmp_path):
    """They import the module and call `import_template`."""
    write_templates(tmp_path, exported_constants(prompts))
    module: dict = {}
    exec((tmp_path / "templates.py").read_text(), module)
    system, base = module["import_template"]("model_pxy")
    assert system == "Answer."
    assert base.format(user_persona="u", agent_character="c", str_dialogue_context="d") == (
        "User: u\nAgent: c\nTalk:\nd\n\n"
    )
    system, base = module["import_template"]("thought_completion")
    text = base.format(
        user_persona="u", agent_character="c", str_dialogue_context="d", agent_golden_response="y"
    )
    assert (
        text == f"\n# Task {{no field}}\nUser: u\nAgent: c\nTalk:\nd\nAnswer given: {NO_ANSWER}\n"
    )


def test_only_prompts_of_the_public_form_count_as_the_same(prompts):
    assert shows_the_same(prompts, exported_constants(prompts))
    for other in (
        *map(prompt_set, ("roleplay", "brief", "world")),
        replace(prompts, response_start=""),
    ):
        assert not shows_the_same(other, exported_constants(other))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"""Say what',
            'f"""Say what',
            r"templates.py:4: system_prompt_for_SThought is no plain string",
        ),
        ('"Answer."', '"Answer" + "."', r"system_prompt_for_model_pxy is no plain string"),
        ('"Answer."', '"  "', r"system_prompt_for_model_pxy is empty"),
        (
            "base_prompt_for_model_pxy",
            "other",
            r"lacks base_prompt_for_model_pxy",
        ),
        (
            "raise SystemExit",
            "system_prompt_for_SThought = 'x'\nraise SystemExit",
            r"is assigned twice",
        ),
        (
            "raise SystemExit",
            "system_prompt_for_SThought += 'x'\nraise SystemExit",
            r"is assigned twice",
        ),
        ("raise SystemExit", "raise SystemExit(((", r"templates.py:\d+: not Python"),
        (
            "{agent_golden_response}",
            "{mood}",
            r"base_prompt_for_SThought: has \{mood\}",
        ),
        (
            "{user_persona}",
            "{user_persona!r}",
            r"has \{user_persona\}; accepted are .* plain",
        ),
        ("{user_persona}", "{user_persona", r"no template"),
        ("{str_dialogue_context}", "", r"lacks \{str_dialogue_context\}"),
    ],
)
def test_a_malformed_file_is_refused_by_name(release, tmp_path, old, new, message):
    text = (release.checkout / "templates.py").read_text()
    assert old in text
    (tmp_path / "templates.py").write_text(text.replace(old, new))
    with pytest.raises(ArtifactError, match=message):
        imported_prompts(read_templates(tmp_path), str(tmp_path / "templates.py"))


def test_the_file_must_be_there(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"templates.py: no such file. Give the folder of the public code"
    ):
        read_templates(tmp_path)
    (tmp_path / "templates.py").write_bytes(b"x = '\xff'")
    with pytest.raises(ArtifactError, match=r"templates.py:1: byte 5 is not UTF-8"):
        read_templates(tmp_path)


def test_the_constants_are_those_of_the_release(constants):
    assert set(constants) == set(CONSTANTS) == {
        "system_prompt_for_SThought", "base_prompt_for_SThought",
        "system_prompt_for_model_pxy", "base_prompt_for_model_pxy",
    }  # fmt: skip
