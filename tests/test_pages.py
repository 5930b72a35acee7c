"""Every page keeps its word: links lead somewhere, commands run, options and recipes are real.

`bash` and `python` blocks are run in the order of their page, in a working directory that holds the
repository's recipes and launch files, own data, and the quickstart's run, made once. The quickstart
there is a stand-in, the same recipe with less of everything. A comment above a block says
otherwise: `<!-- slow -->` is for `pytest -m slow`, and `<!-- needs: what -->` is only looked at. A
Python block that begins with the name of a file is that file, too.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path

import pytest
import yaml

from coevolve.cli import main, make_parser
from coevolve.data.corpus import read_corpus
from coevolve.prompts.play import PlayPrompt
from coevolve.prompts.rubric import Rubric
from coevolve.recipe import Recipe, load_recipe
from coevolve.recipe.grid import Grid
from coevolve.recipe.load import check_section
from coevolve.recipe.rpm import RpmRecipe
from coevolve.worlds.corpus import world_corpus

ROOT = Path(__file__).parents[1]
FOLDERS = ("coevolve", "launch", "recipes", "tests")
PAGES = [ROOT / "README.md", *sorted(page for x in FOLDERS for page in (ROOT / x).rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (slow|needs: [^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

WHOLE = (PlayPrompt, Rubric, Grid)
"""What a block of YAML may be beside sections of a recipe."""
SMALLER = {
    "data": {"world": {"train": 1060, "test": 16}, "validation": 16},
    "model": {"tiny": {"hidden_size": 32, "layers": 1, "heads": 2}},
    "cold_start": {"connector": {"steps": 12}, "estimator": {"steps": 12}},
    "rounds": {"count": 1},
    "connector_rl": {"steps": 2, "train_batch_size": 32},
    "estimator_sft": {"steps": 4},
    "estimator_rl": {"steps": 2},
    "refresh": {"examples": 32},
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `mark` is what the comment above it says, or an empty string."""

    page: Path
    mark: str
    language: str
    text: str

    @property
    def commands(self):
        """Words of each command, comments taken out, variables put in."""
        variables, commands = {}, []
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = []
            for word in [*lexer, "&&"]:
                if word == "&&":
                    commands += [words] if words else []
                    words = []
                elif not words and re.match(r"[A-Z]+=", word):
                    name, _, value = word.partition("=")
                    variables[f"${name}"] = value.split()
                else:
                    words += variables.get(word, [word])
        return commands


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks_of(page, *languages):
    found = [Block(page, *match.groups("")) for match in BLOCK.finditer(page.read_text())]
    return [block for block in found if block.language in languages]


def prose_of(page):
    return BLOCK.sub("", page.read_text())


def spans_of(page):
    return re.findall(r"`([^`\n]+)`", prose_of(page))


def with_blocks(mark, *languages):
    """A test for each page that has such blocks."""
    pages = [p for p in PAGES if any(b.mark == mark for b in blocks_of(p, *languages))]
    return pytest.mark.parametrize("page", pages, ids=name_of)


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def anchors_of(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in LINK.findall(re.sub(r"`[^`\n]+`", "", prose_of(page))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{link}: there is no {target}"
        assert not anchor or anchor in anchors_of(target), f"{link}: no such heading"


@every_page
def test_files_that_are_named_are_there(page):
    for span in spans_of(page):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*(\.\w+|/)", span):
            assert (ROOT / span).exists(), f"{span} is not there"


@every_page
def test_marks_are_understood(page):
    """A mark with a slip in it would leave its block to the wrong test."""
    text = page.read_text()
    marked = sum(bool(block.mark) for block in blocks_of(page, "bash", "python"))
    shown = re.sub(r"`[^`\n]+`", "", text)
    assert len(re.findall(r"<!--", shown)) == marked
    assert text.count("\n```") == 2 * len(BLOCK.findall(text)), "a block is not closed"


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


def test_the_picture_of_the_layers_shows_every_part():
    layers = run_path(str(ROOT / "tests" / "test_layers.py"))["LAYERS"]
    (picture,) = blocks_of(ROOT / "coevolve" / "README.md", "mermaid")
    shown = set(re.findall(r"\w+", picture.text))
    assert set().union(*layers) <= shown


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """Where the commands are run: what a reader has, with a smaller quickstart."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("recipes", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    path = folder / "recipes" / "quickstart" / "config.yaml"
    recipe = yaml.safe_load(path.read_text())
    for section, values in SMALLER.items():
        for name, value in values.items():
            inner = recipe[section].get(name)
            merged = {**inner, **value} if isinstance(inner, dict) else value
            recipe[section] = {**recipe[section], name: merged}
    path.write_text(yaml.safe_dump(recipe))
    world_corpus(0, train=20, test=200).to_json(folder / "dialogues.json")
    return folder


@pytest.fixture
def reader(workplace, monkeypatch):
    """The working directory of a reader."""
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture(scope="session")
def quickstart(workplace):
    """The quickstart's run, whichever page comes first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        run(["coevolve", "train", "recipes/quickstart", "--output-dir", "runs/quickstart"])


def run(words):
    if words[0] == "coevolve":
        assert main(words[1:]) == 0, shlex.join(words)
    else:
        program = str(Path(sys.executable).with_name(words[0]))
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        subprocess.run([program, *words[1:]], env=environ, check=True)


def run_page(page, mark):
    for block in blocks_of(page, "bash", "python"):
        # A file is there for every command of the page.
        if file := re.match(r"# (\w+\.py)\n", block.text):
            Path(file[1]).write_text(block.text)
        if block.mark != mark:
            continue
        if block.language == "python":
            exec(compile(block.text, name_of(page), "exec"), {"__name__": "page"})
        else:
            for words in block.commands:
                run(words)


@with_blocks("", "bash", "python")
def test_what_a_page_says_to_run_runs(page, reader, quickstart):
    run_page(page, "")


@pytest.mark.slow
@with_blocks("slow", "bash", "python")
def test_what_takes_longer_runs_too(page, reader, quickstart):
    run_page(page, "slow")


@every_page
def test_python_is_python(page):
    for block in blocks_of(page, "python"):
        compile(block.text, name_of(page), "exec")


@every_page
def test_rows_and_sections_of_recipes_are_read(page, reader, tmp_path):
    for block in blocks_of(page, "json"):
        (tmp_path / "data.json").write_text(block.text)
        assert read_corpus(tmp_path / "data.json").require("IDTrain")
    for block in blocks_of(page, "yaml"):
        sections = yaml.safe_load(block.text)
        kinds = (RpmRecipe,) if "rpm" in sections else WHOLE
        if kind := next((x for x in kinds if set(sections) <= set(x.model_fields)), None):
            check_section(sections, name_of(page), kind)
            continue
        assert set(sections) <= set(Recipe.model_fields)
        values = [f"{name}={json.dumps(value)}" for name, value in sections.items()]
        load_recipe("recipes/quickstart", values)


@every_page
def test_every_command_could_be_typed(page, reader):
    """Also those that are not run: programs, files, options, recipes and overrides are there."""
    for block in blocks_of(page, "bash"):
        for words in block.commands:
            look_at(words)


def look_at(words):
    program, *rest = words
    if program == "coevolve":
        look_at_command(rest)
    elif program == "accelerate":
        assert (ROOT / rest[rest.index("--config_file") + 1]).is_file(), rest
        place = rest.index("-m")
        assert rest[place + 1] == "coevolve"
        look_at_command(rest[place + 2 :])
    elif program in ("python", "python3") and rest[1] != "venv":
        module = importlib.util.find_spec(rest[1])
        assert rest[0] == "-m" and module is not None, rest
        if rest[1].startswith("tests.benchmarks."):
            look_at_benchmark(Path(module.origin), rest[2:])
    elif program == "pip":
        for name in re.findall(r"\.\[([\w,-]+)\]", " ".join(rest)):
            assert set(name.split(",")) <= set(EXTRAS), name
    elif program in ("pytest", "bash"):
        for path in (word for word in rest if "/" in word):
            assert (ROOT / path).exists(), path
    else:
        assert program in ("python3", "source", "ruff"), f"what is {program!r}?"


def look_at_command(words):
    parser = make_parser()
    try:
        options, rest = parser.parse_known_args(words)
    except SystemExit:
        pytest.fail(f"coevolve {shlex.join(words)} is refused")
    if options.command == "train":
        load_recipe(options.recipe, [*options.overrides, *rest])
    else:
        assert rest == [], words
        if words[:2] == ["recipes", "copy"] and not Path(words[3]).exists():
            run(["coevolve", *words])  # what follows is of the copy


def look_at_benchmark(path, words):
    known = path.read_text() + path.with_name("harness.py").read_text()
    for option in (word for word in words if word.startswith("--")):
        name = option[2:].replace("-", "_")
        assert f'"{option}"' in known or f" {name}=" in known, f"{path.name} has no {option}"


def options_of(parser):
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of(inner)


@every_page
def test_options_in_the_text_are_there(page):
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for span in spans_of(page):
        program, *words = span.replace("\\|", " ").split()
        if program == "coevolve" and words and words[0].islower():
            assert words[0] in commands.choices, span
            known = set(options_of(commands.choices[words[0]]))
            assert {word for word in words if re.match(r"--\w", word)} <= known, span
        benchmark = ROOT / "tests" / "benchmarks" / f"{program}.py"
        if page.parent == benchmark.parent and benchmark.is_file():
            look_at_benchmark(benchmark, words)
