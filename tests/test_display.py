"""Names, tags, paths and turns are shown as they are, by every table and line, on every console."""

import ast
import functools
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from coevolve import progress
from coevolve.cli.ending import let_any_text_through
from coevolve.data.example import Example, Turn
from coevolve.progress import PlainConsole, lead_nowhere, make_console, task
from coevolve.remid.blame import blame_table
from coevolve.remid.bound import bound_table, shift_table
from coevolve.remid.judge import Correlation, JudgeComparison, judge_table
from coevolve.remid.table import remid_table
from coevolve.scoring.scores import Scores
from coevolve.training.outcome import Outcome
from coevolve.training.record.record import Record
from coevolve.worlds.audit import audit_world
from coevolve.worlds.audit_tables import audit_tables

PACKAGE = Path(progress.__file__).parent
NAMES = {
    "a closing tag": "[/de]",
    "an opening tag": "[ablation]",
    "a style": "[bold]x[/bold]",
    "an emoji": ":smile:",
    "a backslash": "a\\[b]",
    "a link": "[link=file:///x]y[/link]",
    "braces": "{task.total}{0}",
    "an escape": "\x1b[31mred",
}
CONSOLES = {
    "a log file": lambda file: make_console(file),
    "a terminal": lambda file: PlainConsole(file, width=400, force_terminal=True),
    "a console of somebody else's": lambda file: Console(file=file, width=400),
}


def remid(name):
    numbers = {"remi": 0.1, "remi_error": 0.1, "remid": 0.2, "remid_error": 0.1, "holm_p": 0.01}
    rows = [
        {
            "shift": shift,
            "subset": name,
            "row": f"{split}/{name}",
            "examples": 4,
            "models": {name: numbers},
        }
        for shift, split in ((None, "IDTest"), ("user", "OOD1Test"))
    ]
    rows[1]["reason"] = f"for {name}"
    pair = {"models": [name, "b"], "value": 0.1, "low": 0.0, "high": 0.2}
    common = {"form": "club", "unit": "nats", "negatives": "all", "seed": 0, "level": 0.9}
    comparisons = [{**pair, "measure": "remi"}, {**pair, "measure": "remid"}]
    return {
        "models": [name],
        "subsets": rows,
        "average": {name: numbers},
        "comparisons": comparisons,
        **common,
    }


def bound(name):
    terms = {
        "inputs": dict.fromkeys("abc", 1.0),
        "output_p": 1.0,
        "output_q": 1.0,
        "total": 5.0,
        "noise_floor": 1.0,
    }
    found = {"published": terms, "scale_adjusted": terms, "entropy": {"largest": 9.0}, "remid": 0.1}
    inputs = {"jsd": 0.1, "floor": 0.1, "size": 4}
    row = {"row": name, "models": {name: found}, "blame": [{"input": name, "share": 0.5}]}
    row["inputs"] = dict.fromkeys(("user", "character", "dialogue"), inputs)
    return {"subsets": [row], "embedder": name, "kernel": "linear", "form": "club"}


def blame(name):
    example = {"loss": 1.0, "tokens": [{"text": name, "contribution": -1.0}]}
    example |= dict.fromkeys(("sample_ID", "last_turn", "golden", "response"), name)
    found = {"loss": 0.5, "worst": [example], "best": [example]}
    return {"subsets": [{"row": name, "models": {name: found}}], "unit": "nats", "form": "club"}


def judge(name):
    number = Correlation(0.5, 0.1, 0.9, 0)
    comparison = JudgeComparison(
        {name: {"pearson": number}}, 3, ((name, "IDTest"),), ((name, "IDTest"),), 0.9, 10, 0
    )
    return judge_table(comparison)


def outcome(name):
    found = Outcome()
    example = Example("i", name, "", "A", (Turn("user", "Hi."),), "g")
    found.note(name, name, [example] * 2, Scores(np.array([-1.0, -2.0]), np.array([1, 2])))
    found.remid = remid(name)
    return found


def audit(name):
    return [
        row | {"policy": name if row["policy"] == "perfect" else row["policy"]} for row in audited()
    ]


@functools.cache
def audited():
    return audit_world(None, 3, test=8, names=["perfect"])


TABLES = {
    "remid": lambda name, console: console.print(remid_table(remid(name))),
    "shift": lambda name, console: console.print(shift_table(bound(name))),
    "bound": lambda name, console: console.print(bound_table(bound(name), name)),
    "blame": lambda name, console: console.print(blame_table(blame(name), name)),
    "judge": lambda name, console: console.print(judge(name)),
    "outcome": lambda name, console: outcome(name).show(console),
    "audit": lambda name, console: [console.print(table) for table in audit_tables(audit(name))],
}


def on(console, show):
    """What a console shows, without its colours."""
    file = io.StringIO()
    show(CONSOLES[console](file))
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", file.getvalue())


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize("table", TABLES)
def test_a_table_shows_names_as_they_are(table, console):
    for kind, name in NAMES.items():
        shown = on(console, lambda console, name=name: TABLES[table](name, console))
        assert name.replace("\x1b", "\\x1b") in shown, kind


@pytest.mark.parametrize("console", ["a log file", "a terminal"])
def test_lines_and_titles_of_tasks_are_shown_as_they_are(console, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "NOTE_EVERY_SECONDS", 0)

    def show(console):
        record = Record(tmp_path, console=console)
        record.say(f"said {name}")
        console.print(f"results in {name}")
        with record.task(f"work on {name}", 3) as advance:
            advance(1)

    for kind, name in NAMES.items():
        shown = on(console, show)
        name = name.replace("\x1b", "\\x1b")
        assert all(f"{words} {name}" in shown for words in ("said", "results in", "work on")), kind
        assert shown.count(f"work on {name}") >= 2


def test_a_line_is_not_wrapped():
    path = "/".join(["a folder"] * 60)
    assert f"results: {path}\n" in on(
        "a log file", lambda console: console.print(f"results: {path}")
    )


def test_headings_stand_out_on_a_terminal():
    file = io.StringIO()
    PlainConsole(file, width=100, force_terminal=True).print(remid_table(remid("m")))
    assert re.search(r"\x1b\[1min distribution, R-EMI", file.getvalue())


def test_no_other_file_makes_consoles_and_tables():
    made = {"Table", "Console", "Progress", "Text", "escape", "print", "Panel", "Live"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("rich")
                and path.name != "progress.py"
            ):
                of_types = {alias.name for alias in node.names} - {"Console"}
                assert not of_types & made, f"{path}: {node.module}"
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and path.name != "progress.py"
            ):
                assert node.func.id != "Console", f"{path}:{node.lineno}"


# Streams.


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_table_comes_through_in_any_encoding(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    let_any_text_through()
    name = "Käpt'n 船 \udc80"
    make_console(sys.stdout).print(remid_table(remid(name)))
    print(name)
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    assert name.encode(encoding, "backslashreplace").decode(encoding) in shown and "R-EMID" in shown


def test_work_goes_on_when_nobody_reads_any_more():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as file:
        console, done = make_console(file), 0
        for _ in range(3):
            with task(console, "work", 1) as advance:
                console.print("line\n" * 100)
                advance(1)
                done += 1
        assert done == 3


def test_a_stream_that_leads_nowhere_takes_what_is_left_in_it():
    reader, writer = os.pipe()
    file = open(writer, "w", encoding="utf-8")  # noqa: SIM115
    file.write("left")
    os.close(reader)
    lead_nowhere(file)
    file.close()
    lead_nowhere(io.StringIO())
