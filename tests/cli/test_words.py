"""What the command line says of words: mistyped ones, completed ones, and how many of its own."""

import logging
import re
import shutil
import subprocess
import sys

import pytest
from rich.text import Text

from coevolve.cli import COMMANDS, main, make_parser
from coevolve.errors import meant
from coevolve.progress import PlainConsole, make_console


@pytest.mark.parametrize(
    ("words", "likely"),
    [
        (["trian", "quickstart"], "train"),
        (["import_reference"], "import-reference"),
        (["schema", "recpie"], "recipe"),
        (["export", "x", "--out", "y", "--layout", "referense"], "reference"),
        (["validate", "quickstart", "--al1"], "--all"),
        (["train", "quickstart", "--output-dir", "x", "--dedline=1h"], "--deadline"),
        (["train", "quickstart", "--output-dir", "x", "conector_rl.steps=1"], "connector_rl"),
        (["train", "quickstart", "--output-dir", "x", "connector_rl.step=1"], "steps"),
        (["train", "quikstart", "--output-dir", "x"], "quickstart"),
        (["launch-file", "zero4"], "zero[23]"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_likely_one(
    words, likely, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    assert re.search(rf"Did you mean {likely}\?", capsys.readouterr().err)


def test_nothing_is_guessed_where_nothing_is_like_it():
    assert meant("xyz", ["model", "data"]) == ""
    assert meant("modle", ["model", "data"]) == " Did you mean model?"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_options_and_names(capsys):
    assert main(["completion"]) == 0
    script = capsys.readouterr().out

    def completed(*words):
        told = " ".join(map(repr, words))
        ask = f"COMP_WORDS=({told}); COMP_CWORD={len(words) - 1}; _coevolve; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("coevolve", "re") == ["respond", "recipes", "remid", "report"]
    assert completed("coevolve", "push", "--r") == ["--repo", "--revision"]
    assert completed("coevolve", "train", "smollm2-135m/s") == ["smollm2-135m/smoke"]
    assert completed("coevolve", "train", "smollm2-135m/g") == ["smollm2-135m/gpu"]  # not its grid
    assert completed("coevolve", "compare", "smol") == ["smollm2-135m"]
    assert completed("coevolve", "schema", "rec") == ["recipe"]
    assert len(completed("coevolve", "")) == len(COMMANDS)


@pytest.fixture
def log_level():
    logger = logging.getLogger("coevolve")
    before = logger.level
    yield logger
    logger.setLevel(before)


@pytest.mark.parametrize("place", ["before", "behind"])
def test_quiet_leaves_results_and_errors(place, log_level, capsys):
    words = {"before": ["--quiet", "recipes"], "behind": ["recipes", "--quiet"]}[place]
    assert main(words) == 0 and "quickstart" in capsys.readouterr().out
    make_console(sys.stderr).print("on the way")
    make_console(sys.stdout).print("result")
    told = capsys.readouterr()
    assert told.out == "result\n" and told.err == ""
    assert main(["recipes", "copy", "nope", "x"]) == 2
    assert "unknown" in capsys.readouterr().err
    make_console(sys.stderr).print("on the way")
    assert capsys.readouterr().err == "on the way\n"


def test_quiet_and_verbose_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["recipes", "--quiet", "--verbose"])
    assert "not allowed with" in capsys.readouterr().err


def test_verbose_lets_libraries_speak(log_level, monkeypatch):
    import transformers

    from coevolve.progress import quieten_libraries

    said = []
    monkeypatch.setattr(transformers.logging, "set_verbosity_error", lambda: said.append(1))
    log_level.setLevel(logging.INFO)
    quieten_libraries()
    assert said == []
    log_level.setLevel(logging.WARNING)
    quieten_libraries()
    assert said == [1]


def test_no_color_is_heeded(monkeypatch, capsys):
    def shown():
        PlainConsole(sys.stdout, force_terminal=True, color_system="standard").print(
            Text("x", "red")
        )
        return capsys.readouterr().out

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown() == "\x1b[31mx\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == "x\n"
