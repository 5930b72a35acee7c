"""Whatever place is typed as an output, nothing of the user's is changed;
every command is walked.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coevolve import cli, outputs
from coevolve.cli.paths import claim_outputs
from coevolve.errors import OutputError


def parsers(parser, words=()):
    """(words, parser) of every command, subcommands as well."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, parser
    for action in below:
        for name, command in action.choices.items():
            yield from parsers(command, (*words, name))


COMMANDS = dict(parsers(cli.make_parser()))
OUTPUTS = [
    (words, action.dest)
    for words, parser in COMMANDS.items()
    for action in parser._actions
    if hasattr(action, "writes")
]


def needed(words, output, text, folder):
    """The shortest arguments of a command that it parses, with `text` as one of its outputs."""
    listed = list(words)
    for action in COMMANDS[words]._actions:
        if action.dest == output:
            listed += (
                [f"{action.option_strings[0]}={text}"] if action.option_strings else ["--", text]
            )
        elif action.required or (not action.option_strings and action.nargs != "*"):
            value = (
                f"m={folder / 'input.jsonl'}"
                if action.metavar == "NAME=FILE"
                else str(folder / "input.jsonl")
            )
            if hasattr(action, "writes"):
                value = str(folder / "free" / action.dest)
            listed += [action.option_strings[0], value] if action.option_strings else [value]
    return listed


def state(folder):
    """Everything below a folder: names, kinds, contents, times of change."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def places(tmp_path):
    """A folder with one of everything that may be typed by mistake."""
    (tmp_path / "foreign").mkdir()
    for name in (
        "thesis.txt",
        "results.json",
        "bound.json",
        "report.html",
        "manifest.json",
        "run.json",
    ):
        (tmp_path / "foreign" / name).write_text("my own")
    (tmp_path / "foreign.json").write_text('{"mine": [1, 2, 3]}')
    (tmp_path / "input.jsonl").write_text('{"sample_ID": "a", "response": "b"}')
    (tmp_path / "run" / "checkpoints" / "00001-x").mkdir(parents=True)
    (tmp_path / "run" / ".lock").write_text(json.dumps({"host": "h", "pid": 1}))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data_fingerprint": "x"}))
    (tmp_path / "run" / "results.json").write_text(json.dumps({"schema": "coevolve.run/1"}))
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


TYPED = {
    "a foreign folder": "{0}/foreign",
    "a foreign file": "{0}/foreign.json",
    "an input": "{0}/input.jsonl",
    "an input, by another way": "{0}/foreign/../input.jsonl",
    "a run": "{0}/run",
    "a run's checkpoints": "{0}/run/checkpoints",
    "a place that cannot be written": "/proc/coevolve",
    "a path through a file": "{0}/foreign.json/out",
    "a link that leads nowhere": "{0}/link",
    "a pipe": "{0}/pipe",
    "a NUL": "{0}/a\0b",
    "bytes that are no UTF-8": "{0}/a\udcff",
    "300 characters": "{0}/" + "a" * 300,
    "an unknown user's home": "~nobody-of-this-name/out",
    "nothing": "",
    "a blank": " ",
}
# What is right for some commands: a run is what train and report are about, and a cache may lie in
# any folder.
FITTING = {
    ("a run", "output_dir"),
    ("a run", "folder"),
    ("a foreign folder", "cache"),
    ("a run", "cache"),
}


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize(("words", "output"), OUTPUTS, ids=lambda value: str(value))
def test_no_output_changes_what_is_not_its_own(words, output, typed, places, capsys):
    before = state(places)
    arguments = needed(words, output, TYPED[typed].format(places), places)
    options = cli.make_parser().parse_args(arguments)
    options.overwrite = True
    with (
        contextlib.nullcontext()
        if (typed, output) in FITTING
        else pytest.raises(OutputError) as error
    ):
        claim_outputs(cli.make_parser(), options)
    if error is not None:
        assert len(str(error.value).splitlines()) == 1
    assert state(places) == before


@pytest.mark.parametrize("name", ["[/v2]", "[ablation]", "ünïcode", "a b", "-x"])
@pytest.mark.parametrize(("words", "output"), OUTPUTS, ids=lambda value: str(value))
def test_a_free_place_is_taken_as_it_is_called(words, output, name, places, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    before = state(places)
    options = cli.make_parser().parse_args(needed(words, output, f"~/{name}/out", places))
    claim_outputs(cli.make_parser(), options)
    assert getattr(options, output) == places / name / "out"
    assert state(places) == before


def test_two_dashes_are_no_value():
    options = cli.make_parser().parse_args(["respond", "--out", "o", "--model", "m", "--data=--"])
    with pytest.raises(OutputError, match="--data: found '--', which is no value"):
        claim_outputs(cli.make_parser(), options)


def test_an_error_is_readable_whatever_was_found():
    assert len(str(OutputError(f"--out {'y' * 100_000}: found."))) < 200


def test_a_run_may_lie_beside_its_recipe(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x")
    options = cli.make_parser().parse_args(
        ["train", str(tmp_path), "--output-dir", str(tmp_path / "runs" / "a")]
    )
    claim_outputs(cli.make_parser(), options)
    assert options.output_dir == tmp_path / "runs" / "a"


def test_every_command_with_an_output_is_walked():
    """An argument that is called like an output is one, with its kind."""
    called = {"--out", "--output-dir", "--json", "--cache"}
    for words, parser in COMMANDS.items():
        for action in parser._actions:
            if called & set(action.option_strings):
                assert hasattr(action, "writes"), f"{' '.join(words)} {action.option_strings}"
    assert {words[0] for words, _ in OUTPUTS} >= {
        "train",
        "score",
        "remid",
        "bound",
        "export",
        "respond",
        "shift",
    }


WRITERS = {
    "files.py": "writes atomically",
    "outputs.py": "knows whose a place is",
    "data/ledger.py": "goes on with a ledger",
    "training/checkpoints.py": "a run's own folder",
    "training/run_folder.py": "a run's own folder",
    "training/record/lines.py": "a run's own folder",
    "training/setup.py": "a run's own folder",
    "training/divergence.py": "a run's own folder",
    "training/generation.py": "a scratch folder of its own",
    "training/rpm.py": "a run's own folder",
    "training/export.py": "inside a folder of outputs.py",
    "scoring/cache.py": "begins its damaged database anew",
    "scoring/roles.py": "inside a folder of outputs.py",
    "scoring/models.py": "converts a packaged model into the cache",
}


def test_files_are_written_and_removed_in_few_places():
    """By any other way a file could be destroyed without a look at whose it is."""
    calls = r"(rmtree|\.unlink|os\.replace|\.rename|\.write_text|\.write_bytes"
    calls += r"|open\([^)]*[\"'][wax]b?\+?[\"'])\("
    calls += r"|open\([^)]*[\"'](w|a|x|r\+)b?[\"']"
    package = Path(outputs.__file__).parent
    command = ["grep", "-rlE", calls, "--include=*.py", str(package)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.split()
    found = {str(Path(path).relative_to(package)) for path in listed}
    assert found <= set(WRITERS), f"write through coevolve.outputs: {sorted(found - set(WRITERS))}"


# Older work.


def test_older_work_is_replaced_only_where_that_is_said(tmp_path):
    path = tmp_path / "scores.jsonl"
    row = {"sample_ID": "a", "log_prob": -1.0, "tokens": 2, "reasoning": ""}
    outputs.write_output(path, outputs.SCORES, json.dumps(row) + "\n")
    with pytest.raises(OutputError, match=r"holds scores already\. .* --overwrite"):
        outputs.claim(path, outputs.SCORES, option="--out")
    assert outputs.claim(path, outputs.SCORES, option="--out", overwrite=True) == path
    path.write_text('{"sample_ID": "a", "response": "b"}\n')
    with pytest.raises(OutputError, match="is not scores that coevolve wrote"):
        outputs.claim(path, outputs.SCORES, option="--out", overwrite=True)
    with pytest.raises(OutputError, match="is not scores"):  # also hours after it was claimed
        outputs.write_output(path, outputs.SCORES, "")
    assert path.read_text() == '{"sample_ID": "a", "response": "b"}\n'


def test_parts_of_older_results_do_not_stay_beside_newer_ones(tmp_path):
    new = {"results.json": json.dumps({"schema": "coevolve.remid/2"}), "judge.json": "{}"}
    outputs.write_parts(tmp_path / "out", outputs.REMID, new)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    del new["judge.json"]
    outputs.write_parts(tmp_path / "out", outputs.REMID, new)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "notes.txt",
        "results.json",
    ]


def test_a_folder_is_replaced_when_the_new_one_is_complete(tmp_path):
    folder = tmp_path / "estimator"
    mark = json.dumps({"format": "coevolve-estimator"})
    for text in ("old", "new"):
        with outputs.new_folder(folder, outputs.ESTIMATOR) as temporary:
            (temporary / "weights").write_text(text)
            (temporary / "manifest.json").write_text(mark)
    with pytest.raises(RuntimeError), outputs.new_folder(folder, outputs.ESTIMATOR) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert (folder / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["estimator"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"thesis\.txt"),
        outputs.new_folder(folder, outputs.ESTIMATOR),
    ):
        pass
    assert (folder / "thesis.txt").read_text() == "mine"


def test_the_command_itself_refuses_before_it_reads_anything(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    command = [
        sys.executable,
        "-m",
        "coevolve",
        "export",
        "no/such/checkpoint",
        "--out",
        str(tmp_path / "mine"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "thesis.txt is there already" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
