"""Traces on disk: continued, never asked twice, never mixed; and read from a user's file."""

import json

import pytest

from coevolve.data.example import Example
from coevolve.errors import DataError, TeacherError
from coevolve.prompts import prompt_set
from coevolve.teachers import Answer, RuleTeacher, collect_traces, read_traces

BRIEF = prompt_set("brief")
GOOD = "[Connections]\nsomething\n[Core Features of the Golden Response]\nact: agree"


class Asked(RuleTeacher):
    """The rule-based teacher, which also notes whom it was asked about and can break down or fail
    on the way.
    """

    def __init__(self, *args, breaks_at: str = "", fails_on: str = "", **options):
        super().__init__(*args, **options)
        self.asked: list[str] = []
        self.breaks_at, self.fails_on = breaks_at, fails_on

    def answers(self, examples):
        for example in examples:
            if example.sample_id == self.breaks_at:
                raise KeyboardInterrupt
            self.asked.append(example.sample_id)
            if example.sample_id == self.fails_on:
                yield Answer(
                    example.sample_id, None, f"sample_ID {example.sample_id!r}: it would not"
                )
            else:
                yield Answer(example.sample_id, self.trace(example))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.jsonl"


@pytest.fixture
def expected(dialogues) -> dict[str, str]:
    return {example.sample_id: RuleTeacher(BRIEF).trace(example) for example in dialogues}


def write(path, *rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_every_trace_is_returned_and_on_disk(dialogues, path, expected):
    told = []
    assert (
        collect_traces(
            dialogues, RuleTeacher(BRIEF), path, progress=lambda *what: told.append(what)
        )
        == expected
    )
    header, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert header["teacher"]["kind"] == "rules"
    assert {row["sample_ID"]: row["trace"] for row in rows} == expected
    assert told == [(1, 3, ""), (2, 3, ""), (3, 3, "")]


def test_an_interrupted_run_is_continued(dialogues, path, expected):
    with pytest.raises(KeyboardInterrupt):
        collect_traces(dialogues, Asked(BRIEF, breaks_at="lisbon"), path)
    again = Asked(BRIEF)
    assert collect_traces(dialogues, again, path) == expected
    assert again.asked == ["lisbon"]
    unneeded = Asked(BRIEF)
    assert collect_traces(dialogues, unneeded, path) == expected
    assert unneeded.asked == []


def test_a_line_that_was_torn_is_asked_again(dialogues, path, expected):
    collect_traces(dialogues, RuleTeacher(BRIEF), path)
    path.write_bytes(path.read_bytes()[:-20])
    again = Asked(BRIEF)
    assert collect_traces(dialogues, again, path) == expected
    assert again.asked == ["lisbon"]
    assert read_traces(path, dialogues, BRIEF) == expected


def test_other_examples_of_the_file_are_left_alone(dialogues, path, expected):
    collect_traces(dialogues, RuleTeacher(BRIEF), path)
    content = path.read_bytes()
    assert collect_traces(dialogues[1:2], RuleTeacher(BRIEF), path) == {"tuba": expected["tuba"]}
    assert path.read_bytes() == content


def test_a_failure_stops_but_what_came_before_is_kept(dialogues, path):
    with pytest.raises(TeacherError, match="'tuba': it would not"):
        collect_traces(dialogues, Asked(BRIEF, fails_on="tuba"), path)
    again = Asked(BRIEF)
    collect_traces(dialogues, again, path)
    assert again.asked == ["tuba", "lisbon"]


def test_a_dropped_example_is_counted_and_asked_again_next_time(dialogues, path, expected):
    told = []
    teacher = Asked(BRIEF, fails_on="tuba")
    traces = collect_traces(
        dialogues, teacher, path, on_failure="drop", progress=lambda *what: told.append(what)
    )
    assert list(traces) == ["bread", "lisbon"]
    assert told[-1] == (3, 3, "1 dropped")
    assert collect_traces(dialogues, RuleTeacher(BRIEF), path) == expected


def test_another_teacher_does_not_continue_the_file(dialogues, path):
    collect_traces(dialogues, RuleTeacher(BRIEF), path)
    with pytest.raises(
        DataError, match=r"traces.jsonl:1: .*other teacher: max_keywords was 3 and is now 2"
    ):
        collect_traces(dialogues, RuleTeacher(BRIEF, max_keywords=2), path)


def test_other_prompts_do_not_continue_the_file(dialogues, path):
    collect_traces(dialogues, RuleTeacher(BRIEF), path)
    with pytest.raises(DataError, match="other prompts"):
        collect_traces(dialogues, RuleTeacher(prompt_set("roleplay")), path)


def test_a_changed_response_does_not_keep_its_trace(dialogues, path):
    collect_traces(dialogues, RuleTeacher(BRIEF), path)
    changed = Example.from_row({**dialogues[0].to_row(), "agent_golden_response": "No."}, "row")
    with pytest.raises(DataError, match=r"traces.jsonl:2: the example 'bread' has changed"):
        collect_traces([changed, *dialogues[1:]], RuleTeacher(BRIEF), path)


def test_a_users_file_is_not_continued(dialogues, path):
    write(path, {"sample_ID": "bread", "trace": GOOD})
    with pytest.raises(DataError, match="does not say which teacher"):
        collect_traces(dialogues, RuleTeacher(BRIEF), path)


def test_examples_without_a_response_are_refused_before_a_file_is_begun(make, path):
    with pytest.raises(TeacherError, match="'a-1': agent_golden_response is missing"):
        collect_traces([make(None, "Hi")], RuleTeacher(BRIEF), path)
    assert not path.exists()


def test_one_sample_id_for_two_examples_is_refused(make, path):
    with pytest.raises(DataError, match="'a-1' is there twice"):
        collect_traces([make("Yes.", "Hi"), make("No.", "Hi")], RuleTeacher(BRIEF), path)


def test_a_users_file_is_read_in_the_order_of_the_examples(dialogues, path):
    rows = [
        {"sample_ID": example.sample_id, "trace": f"{GOOD} {example.sample_id}"}
        for example in dialogues
    ]
    write(path, *reversed(rows))
    assert list(read_traces(path, dialogues, BRIEF).items()) == [
        (row["sample_ID"], row["trace"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["bread", GOOD], "found list"),
        ({"sample_ID": "bread"}, "field 'trace' is missing"),
        ({"sample_ID": 7, "trace": GOOD}, "sample_ID is 7"),
        ({"sample_ID": "bread", "trace": " "}, 'trace is " "'),
        ({"sample_ID": "bread", "trace": GOOD, "note": ""}, "unknown field 'note'"),
        ({"sample_ID": "toast", "trace": GOOD}, "'toast' is none of the 3 examples"),
        ({"sample_ID": "tuba", "trace": GOOD}, "'tuba' is in line 1 too"),
        (
            {"sample_ID": "bread", "trace": "[Connections]\nx"},
            r"'\[Core Features of the Golden Response\]' missing",
        ),
        ({"sample_ID": "bread", "trace": GOOD + GOOD}, r"'\[Connections\]' missing, doubled"),
    ],
)
def test_a_malformed_row_of_a_users_file_is_named(dialogues, path, row, message):
    write(path, {"sample_ID": "tuba", "trace": GOOD}, row)
    with pytest.raises(DataError, match=rf"traces.jsonl:2: .*{message}"):
        read_traces(path, dialogues, BRIEF)


def test_missing_traces_are_named(dialogues, path):
    write(path, {"sample_ID": "tuba", "trace": GOOD})
    with pytest.raises(DataError, match="lacks a trace for 2 of 3 examples: 'bread', 'lisbon'"):
        read_traces(path, dialogues, BRIEF)


def test_a_line_that_is_not_json_is_named(dialogues, path):
    path.write_text('{"sample_ID": "tuba"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"traces.jsonl:1: not JSON"):
        read_traces(path, dialogues, BRIEF)
