"""The harness finds what it is for, an input comes again from its seed and index, and a hundred
inputs are answered.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from coevolve.errors import DataError
from tests.fuzz import runner, strict
from tests.fuzz.areas import AREAS, arguments, data, judges
from tests.fuzz.core import (
    CHANGED,
    CRASH,
    FOREIGN,
    HANG,
    REFUSED_VALID,
    UNREADABLE,
    WRONG,
    Case,
    FailedError,
)
from tests.fuzz.mutate import (
    Raw,
    Twice,
    mutate_bytes,
    mutate_file,
    mutate_folder,
    mutate_json,
    to_json,
)

ROOT = Path(__file__).parents[2]


class Planted:
    """An area whose every input goes wrong in one way."""

    share = 1

    def __init__(self, name, function):
        self.name, self.function = name, function

    def run(self, case):
        (case.inputs / "a.txt").write_text("a")
        case.note("planted")
        case.call(self.function, case)
        case.wrong_if(self.name == WRONG, "seen by an oracle")


def refuse(message):
    def function(case):
        raise DataError(message)

    return function


def hang_in_c(case):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM, signal.SIGINT})
    time.sleep(600)


FAULTS = {
    FOREIGN: lambda case: {}["nothing"],
    HANG: hang_in_c,
    CRASH: lambda case: os.kill(os.getpid(), signal.SIGSEGV),
    CHANGED: lambda case: (case.inputs / "a.txt").write_text("b"),
    WRONG: lambda case: None,
    UNREADABLE: refuse(""),
    "refused": refuse("row 3: no number; accepted is one."),
    "memory": lambda case: len(b"x" * (1 << 40)),
    "accepted": lambda case: None,
}


def outcomes(areas, limits, count=3):
    """Result by area and index, of `count` inputs each."""
    found = []
    todo = [(index, area) for index in range(count) for area in areas]
    runner.run_all(areas, todo, 0, None, limits=limits, processes=2, keep=None, report=found.append)
    assert len(found) == len(todo)
    return found


def test_every_kind_of_failure_is_found_and_the_rest_goes_on():
    areas = [Planted(name, function) for name, function in FAULTS.items()]
    limits = runner.Limits(seconds=1.0, most=3.0, room=1 << 30)
    kinds = {"refused": None, "accepted": None, "memory": FOREIGN}
    for result in outcomes(areas, limits, count=2):
        assert result.kind == kinds.get(result.area, result.area), result
        assert result.accepted == (result.area == "accepted") or result.kind
        assert result.did == "planted" or result.kind == CRASH, result


def test_a_valid_input_must_not_be_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "UNTOUCHED", 1.0)
    result = runner.run_case(Planted("refused", FAULTS["refused"]), 0, 0, None, tmp_path)
    assert (result.kind, result.signature) == (REFUSED_VALID, "row 3: no number; accepted is one.")


def test_what_a_command_may_write_to_is_no_input(tmp_path):
    area = Planted(
        "grows",
        lambda case: case.may_change.append("*.log") or (case.inputs / "run.log").write_text(""),
    )
    assert runner.run_case(area, 0, 0, None, tmp_path).kind is None


def test_an_input_comes_again_from_its_seed():
    value = {
        "rows": [{"id": f"a-{number}", "turns": [{"user": "Hi!"}]} for number in range(9)],
        "n": 3,
    }
    once = [mutate_json(random.Random(seed), value) for seed in range(200)]
    texts = [to_json(changed, random.Random(1)) for changed, _ in once]
    again = [
        to_json(mutate_json(random.Random(seed), value)[0], random.Random(1)) for seed in range(200)
    ]
    assert texts == again
    assert len(set(texts)) > 150 and value["n"] == 3
    content = to_json(value).encode()
    assert [mutate_bytes(random.Random(seed), content) for seed in range(50)] == [
        mutate_bytes(random.Random(seed), content) for seed in range(50)
    ]


def test_damage_to_a_folder_is_one_thing_at_a_time(tmp_path):
    seen = set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        (folder / "below").mkdir(parents=True)
        for name in ("a.json", "below/b.txt"):
            (folder / name).write_text("{}")
        seen.add(mutate_folder(random.Random(seed), folder).partition(": ")[2].split(" ")[0])
    assert {"deleted", "a", "unreadable", "renamed"} <= seen
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert any(mutate_file(random.Random(seed), path) for seed in range(5))


def test_json_that_python_does_not_write():
    value = {"a": Twice(1, 2), "b": [Raw("1e400"), "\ud83d"], "c": {}}
    assert to_json(value) == '{"a": 1, "a": 2, "b": [1e400, "\\ud83d"], "c": {}}'


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": NaN}',
        "[1e400]",
        "[1,]",
        '"\x00"',
        "[" * 100_000,
        "1" * 5000,
        b"\xff",
        "",
    ],
)
def test_an_independent_reading_is_by_the_letter(text):
    with pytest.raises(strict.Unreadable):
        strict.strict_json(text)


def test_values_are_the_same_only_with_the_same_types():
    assert strict.same({"a": [1, "x"], "b": None}, {"b": None, "a": [1, "x"]})
    for one, other in ((1, 1.0), (1, True), ("1", 1), ({"a": 1}, {}), ([1], [1, 1])):
        assert not strict.same(one, other)


ROW = {
    "sample_ID": "a",
    "subset_tag": "t",
    "user_persona": "",
    "agent_character": {"age": 3},
    "dialogue_context": [{"user_query": "Hi!"}],
    "agent_golden_response": "Ahoy.",
}


@pytest.mark.parametrize(
    "change",
    [
        {"sample_id": "b"},
        {"agent_character": {"age": 3.0}},
        {"agent_character": {"age": float("nan")}},
        {"golden_response": " "},
        {"user_persona": "\ud83d"},
        {"dialogue": ()},
    ],
)
def test_a_corpus_that_is_not_the_file_is_seen(tmp_path, change):
    from coevolve.data.example import Example

    case = Case("data", 0, random.Random(0), tmp_path, None)
    example = Example.from_row(ROW, "row")
    data.check_corpus(case, {"IDTest": (example,)}, {"IDTest": [ROW]})
    for splits in (
        {"IDTest": (replace(example, **change),)},
        {"IDTest": (example, example)},
        {"IDTrain": (example,)},
        {},
    ):
        with pytest.raises(FailedError, match=WRONG):
            data.check_corpus(case, splits, {"IDTest": [ROW]})


def test_every_command_is_walked():
    from coevolve.cli import COMMANDS

    names = {command.words[0] for command in arguments.commands()}
    assert names == {module.__name__.rpartition(".")[2].replace("_", "-") for module in COMMANDS}
    assert all(command.actions for command in arguments.commands())


def test_shares_and_names():
    assert all(area.share >= 5 for area in AREAS) and sum(area.share for area in AREAS) <= 120
    todo = list(runner.indices(AREAS, 300, None))
    assert [index for index, _ in todo] == list(range(300)) and {area for _, area in todo} == set(
        AREAS
    )
    only = list(runner.indices(AREAS, 10, judges.AREA.name))
    assert {area for _, area in only} == {judges.AREA} and dict(
        runner.indices(AREAS, 500, None)
    ).items() >= dict(only).items()


def test_fifty_inputs():
    command = [sys.executable, "-m", "tests.fuzz", "--n", "50", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 inputs, seed 1" in done.stdout
