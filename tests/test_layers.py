"""Imports run one way, from the command line down to pure numerics."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coevolve"

# Each layer may import from those before it, and from itself.
LAYERS = [
    {"errors"},
    {"files", "progress", "seeds", "registry"},
    {"outputs", "documents", "libraries", "shipped"},
    {"information", "data", "recipe"},
    {"prompts"},
    {"scoring"},
    {"chat", "remid"},
    {"worlds", "teachers", "respond", "shifts"},
    {"preflight"},
    {"training"},
    {"compare"},
    {"reference", "report", "estimator_reward", "lm_eval"},
    {"cli"},
    {"api"},
]
# What a layer may import from outside when it is loaded; elsewhere anything goes.
PURE = {
    "information": {"numpy"},
    "errors": set(),
    "files": set(),
    "documents": {"pydantic"},
    "recipe": {"pydantic", "yaml"},
    "data": set(),
    "remid": {"numpy", "rich", "pydantic"},
    "scoring": {"numpy", "torch", "transformers", "peft"},
}
# What of `libraries` the layers below training may have.
OF_SCORING = {"coevolve.libraries.torch", "coevolve.libraries.transformers"}


def imports(path, *, on_load):
    """Modules that a file imports; with `on_load`, only those outside functions and `if
    TYPE_CHECKING`.
    """
    found = set()

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.update(
                    (child.module, *(f"{child.module}.{alias.name}" for alias in child.names))
                )
            deferred = isinstance(child, (ast.FunctionDef, ast.Lambda)) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            )
            if not (on_load and deferred):
                visit(child)

    visit(ast.parse(path.read_text()))
    return found


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if part(path) not in ("__init__", "__main__")
]
PARTS = {part(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = part(path)
    level = next(index for index, layer in enumerate(LAYERS) if own in layer)
    below = set().union(*LAYERS[:level]) | {own}
    ours = {
        name.split(".")[1] for name in imports(path, on_load=False) if name.startswith("coevolve.")
    } & PARTS
    assert ours <= below, f"{path}: imports {sorted(ours - below)}"
    if own in PURE:
        outside = (
            {name.split(".")[0] for name in imports(path, on_load=True)}
            - {"coevolve"}
            - sys.stdlib_module_names
        )
        assert outside <= PURE[own], f"{path}: loads {sorted(outside - PURE[own])}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "libraries").glob("*.py")), ids=lambda p: p.name)
def test_a_file_of_libraries_loads_its_own_library(path):
    outside = {name.split(".")[0] for name in imports(path, on_load=True)} - {"coevolve"}
    allowed = {"torch", "transformers", path.stem} if path.stem not in ("__init__", "hooks") else {}
    assert outside - sys.stdlib_module_names <= set(allowed)


def test_scoring_reaches_only_into_what_it_has():
    reached = {
        name for path in FILES if part(path) == "scoring" for name in imports(path, on_load=False)
    }
    assert {
        name for name in reached if name.count(".") == 2 and ".libraries." in name
    } == OF_SCORING


def test_no_files_import_one_another_in_a_circle():
    # A package is what its `__init__` loads, which may be named by it: `from coevolve.cli import
    # score`.
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    needs = {
        name: (imports(path, on_load=True) & modules.keys()) - {name}
        for name, path in modules.items()
    }
    assert list(graphlib.TopologicalSorter(needs).static_order())


def test_scoring_runs_where_trl_and_datasets_are_missing():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['trl', 'datasets', 'deepspeed', 'wandb', 'pydantic']))\n"
        "from coevolve import Example, ProbabilityEstimator\n"
        "import coevolve.remid.score, coevolve.data.corpus, coevolve.worlds.corpus\n"
        "print(ProbabilityEstimator.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("ProbabilityEstimator"), done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_can_be_seen_at_once(file):
    text = file.read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_lines_are_short():
    lines = [line for file in FILES for line in file.read_text().splitlines()]
    assert sum(len(line) <= 100 for line in lines) >= 0.98 * len(lines)
