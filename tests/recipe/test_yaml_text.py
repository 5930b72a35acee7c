"""YAML as recipes have it: the core schema of version 1.2, and nothing that grows or runs."""

import random
import time
from pathlib import Path

import pytest
import yaml

from coevolve.errors import RecipeError
from coevolve.recipe.yaml_text import LARGEST, parse_yaml

QUICKSTART = (Path(__file__).parents[2] / "recipes" / "quickstart" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[true, True, FALSE]", [True, True, False]),
        ("[yes, no, on, off, y, N]", ["yes", "no", "on", "off", "y", "N"]),
        ("[~, null, Null]", [None, None, None]),
        ("[1, +2, -3, 010, 0o10, 0x1F]", [1, 2, -3, 10, 8, 31]),
        ("[1.5, .5, 2., 1e-3, 2E+2, -1e3]", [1.5, 0.5, 2.0, 0.001, 200.0, -1000.0]),
        (
            "[1:30, 2026-01-01, 1_000, 0b1, 1.2.3, +, '=']",
            ["1:30", "2026-01-01", "1_000", "0b1", "1.2.3", "+", "="],
        ),
        ("['1', \"true\", ! 1, '']", ["1", "true", 1, ""]),
        ("[.inf, -.Inf]", [float("inf"), -float("inf")]),
        (
            "{1: a, true: b, ~: c, on: d, 'x': e}",
            {"1": "a", "true": "b", "~": "c", "on": "d", "x": "e"},
        ),
        ("{mine:length: 1.0}", {"mine:length": 1.0}),
        ("a: |\n  x\n  y\nb: >\n  z", {"a": "x\ny\n", "b": "z"}),
        (
            "a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, b: 3}",
            {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"b": 3, "c": 2}},
        ),
        (
            "a: &x {b: 1}\nc: &y {b: 2, d: 4}\ne: {<<: [*x, *y]}",
            {"a": {"b": 1}, "c": {"b": 2, "d": 4}, "e": {"b": 1, "d": 4}},
        ),
        ("'<<': 1", {"<<": 1}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_values(text, value):
    found = parse_yaml(text, "here")
    assert found == value and repr(found) == repr(value)


def test_a_shipped_recipe_is_read_as_by_pyyaml():
    assert parse_yaml(QUICKSTART, "here") == yaml.safe_load(QUICKSTART)


def test_an_alias_is_a_value_of_its_own():
    found = parse_yaml("a: &x {b: [1]}\nc: *x", "here")
    found["a"]["b"].append(2)
    assert found["c"] == {"b": [1]}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n"
    for name in "bcdefghijklmnopqrst"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "here:3: the key 'a' is there twice (first in line 1); remove one."),
        ("{a: {b: 1, b: 2}}", "here: the key 'b' is there twice"),
        ("1: a\n'1': b", "here:2: the key '1' is there twice"),
        ("a: &x {}\nb: {<<: *x, <<: *x}", "here:2: the key '<<' is there twice"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "found the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
        ("a: !!str 1", "accepted are values without tags"),
        ("!mine a", "found the tag '!mine'"),
        ("? [a]\n: b", "found a list or a mapping as a key; accepted is text"),
        ("a: {<<: 3}", "the value of << is no mapping"),
        ("a: *b", "not YAML (found undefined alias 'b')"),
        ("a: [1", "not YAML (while parsing a flow sequence"),
        ("a: 1\n---\nb: 2", "here:2: not YAML (expected a single document"),
        ("a: \0", "here: not YAML (unacceptable character #x0000"),
        ('"\\U00110000"', "here: not YAML (chr()"),
        ('a: "\\ud800"', "found half of a surrogate pair"),
        ("7" * 301, "found a number of 301 characters; accepted are 300"),
        (BOMB, "here:1: has too many values; accepted are 10,000, every alias written out"),
        ("&a [*a]", "lists and mappings lie in one another too deep; accepted are 100 levels"),
        ("a: &a {<<: *a}", "too deep"),
        ("[" * 5000, "too deep"),
        ("- " * 5000, "too deep"),
        ("{a: " * 101 + "}" * 101, "too deep"),
        (
            "a" * (LARGEST + 1),
            f"here: has {LARGEST + 1:,} characters; accepted are at most {LARGEST:,}.",
        ),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_not_accepted(text, message):
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "here")
    assert message in str(caught.value)
    assert time.process_time() - began < 1


def test_damaged_text_is_an_error_or_a_value():
    generator, refused = random.Random(0), 0
    for _ in range(150):
        text = list(QUICKSTART[:654])
        for _ in range(generator.randint(1, 4)):
            text[generator.randrange(len(text))] = generator.choice(
                list("&*!|>%@`'\"[]{},:?-#\n\t \\\0\x85é~<=.")
            )
        try:
            parse_yaml("".join(text), "here")
        except RecipeError as error:
            refused += 1
            assert str(error).startswith("here")
    assert 0 < refused < 150
