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
from coevolve.remid.blame import blame_grid
from coevolve.remid.bound import bound_grid, shift_grid
from coevolve.remid.bound_results import BlameResults, BoundResults
from coevolve.remid.grid import Block, Grid, grid_table
from coevolve.remid.judge import JudgeComparison, judge_grid
from coevolve.remid.results import RemidResults
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
    numbers = {"mutual_information": 0.0, "positive": 0.0, "negative": 0.0, "remi": 0.1}
    lost = {"remi": 0.1, "remid": 0.2, "remid_error": 0.1}
    rows = [
        {"split": "IDTest", "shift": None, "models": {name: {**numbers, "remid": None}}},
        {"split": "OOD1Test", "shift": "user", "models": {name: {**numbers, **lost}}},
        {"split": "OOD2Test", "shift": "character", "models": {name: None}},
    ]
    rows = [{"row": f"{x['split']}/{name}", "subset": name, "examples": 4, **x} for x in rows]
    rows[2]["reason"] = f"for {name}"
    between = dict.fromkeys(("value", "error", "low", "high", "chance_above_0"), 0.1)
    comparison = {"models": [name, name], **between}
    return RemidResults.model_validate(
        {
            "schema": "coevolve.remid/2",
            **{"form": "club", "normalisation": "per_token", "unit": "nats"},
            **{"negatives": "all", "seed": 0, "level": 0.9, "models": [name], "subsets": rows},
            **{"by_shift": {"user": {name: lost}}, "average": {name: lost}},
            "comparisons": [{**comparison, "measure": "remi"}, {**comparison, "measure": "remid"}],
        }
    )


def bound(name):
    each = ("user", "character", "dialogue")
    terms = {"inputs": dict.fromkeys(each, 1.0), "output_p": 1.0, "output_q": 1.0}
    terms |= {"total": 5.0, "noise_floor": 1.0}
    jsd = dict.fromkeys(("jsd", "jsd_sd", "floor", "floor_sd", "excess"), 0.1)
    jsd |= {"size": 4, "repetitions": 1}
    of_model = {"published": terms, "scale_adjusted": terms, "output_p": jsd, "output_q": jsd}
    of_model |= {"entropy": {"largest": 9.0, "mean": 1.0}, "remid": 0.1}
    row = {"row": name, "split": "OOD1Test", "subset": name, "shift": "user", "examples": 4}
    row |= {"inputs": dict.fromkeys(each, jsd), "models": {name: of_model}}
    row |= {"blame": [{"input": "user", "excess": 0.1, "share": 0.5}]}
    return BoundResults.model_validate(
        {
            **{"schema": "coevolve.bound/1", "unit": "nats", "form": "club", "embedder": name},
            **{"kernel": "linear", "widths": {}, "repetitions": 1, "seed": 0, "models": [name]},
            "subsets": [row],
        }
    )


def blame(name):
    numbers = ("loss", "contribution", "matched", "as_context", "as_response")
    token = {"text": name, "log_prob": -1.0, "elsewhere": 0.0, "contribution": -1.0}
    example = {**dict.fromkeys(numbers, 1.0), "tokens": [token], "golden_tokens": [token]}
    texts = ("sample_ID", "last_turn", "golden", "response", "user_persona", "agent_character")
    example |= dict.fromkeys(texts, name)
    of_model = {"loss": 0.5, "examples": [], "worst": [example], "best": [example]}
    return BlameResults.model_validate(
        {
            **{"schema": "coevolve.blame/1", "form": "club", "normalisation": "per_token"},
            **{"unit": "nats", "other_contexts": 1, "seed": 0, "models": [name]},
            "subsets": [{"row": name, "shift": None, "models": {name: of_model}}],
        }
    )


def judge(name):
    number = {"value": 0.5, "low": 0.1, "high": 0.9, "undefined": 0}
    comparison = JudgeComparison(
        pairs=3,
        unscored=((name, "IDTest"),),
        unmeasured=((name, "IDTest"),),
        level=0.9,
        resamples=10,
        seed=0,
        measures={name: {"pearson": number}},
    )
    return judge_grid(comparison)


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
    "shift": lambda name, console: console.print(grid_table(shift_grid(bound(name)))),
    "bound": lambda name, console: console.print(grid_table(bound_grid(bound(name), name))),
    "blame": lambda name, console: console.print(grid_table(blame_grid(blame(name), name))),
    "judge": lambda name, console: console.print(grid_table(judge(name))),
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


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"blame"}))
def test_no_digit_is_lost_on_a_narrow_terminal(table, width):
    """Every number of the wide table is in the narrow one, whole, in lines that fit."""

    def shown(columns):
        file = io.StringIO()
        TABLES[table]("a_model_of_a_longer_name", PlainConsole(file, width=columns))
        return file.getvalue()

    def numbers(text):
        return sorted(set(re.findall(r"[+-]?\d+\.\d+", text)))

    narrow = shown(width)
    assert max(map(len, narrow.splitlines())) <= width
    assert numbers(narrow) == numbers(shown(400)) != []


def test_a_table_that_is_too_wide_stands_in_parts_with_as_many_columns_as_fit():
    rows = [["a", *["+1.234 ± 0.567"] * 5], ["b", *["-1.234 ± 0.567"] * 5]]
    grid = Grid(["subset", *"vwxyz"], [Block("", rows)], ["the caption"], "the title")
    for width, parts in ((30, 5), (50, 3), (70, 2), (120, 1)):
        file = io.StringIO()
        PlainConsole(file, width=width).print(grid_table(grid))
        text = file.getvalue()
        assert text.count("subset") == parts
        assert text.count("the title") == text.count("the caption") == 1
        assert text.count("+1.234 ± 0.567") == text.count("-1.234 ± 0.567") == 5
