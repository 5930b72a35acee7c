"""Nothing but `coevolve/libraries` reaches into another library."""

import ast
import importlib
import inspect
import re
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from coevolve.libraries import hooks

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "coevolve"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE / "libraries"]
LIBRARIES = ("accelerate", "deepspeed", "peft", "torch", "transformers", "trl", "vllm")
DOCUMENTED = {
    *LIBRARIES,
    "torch.distributed",
    "torch.nn.utils.rnn",
    "torch.utils.cpp_extension",
    "torch.utils.data",
    "transformers.integrations",
    "trl.models",
    "vllm.lora.request",
}
"""Modules that a library's own documentation imports from."""
TO_BE_OVERRIDDEN = ("TrainerCallback", "Function")
"""Classes whose every method is there to be given."""
OF_PYTHON = {
    *("os._exit", "argparse._ActionsContainer", "argparse._SubParsersAction"),
    *("parser._actions", "parser._option_string_actions", "stage._replace"),
}
PUBLIC = {
    *("compute_loss", "create_optimizer", "create_scheduler", "get_train_dataloader", "forward"),
    *("update", "batch_select_indices", "device", "is_initialized", "keys", "values"),
}
"""What is overridden in public."""


def private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(tree):
    """Private names that a file gives to things of its own."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            names.add(getattr(node.slice, "value", None))  # self.__dict__["_name"] = ...
    return names


def reached(path, text=None):
    """Where a file reaches into something that is not its own, in words."""
    tree = ast.parse(path.read_text() if text is None else text)
    own, found = own_names(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and "attr" in ast.unparse(node.func) and len(node.args) > 1:
            name = getattr(node.args[1], "value", None)
            if isinstance(name, str) and private(name) and name not in own:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module:
            library = node.module.partition(".")[0] in LIBRARIES
            odd = node.module not in DOCUMENTED or any(private(x.name) for x in node.names)
            found += [ast.unparse(node)] if library and odd else []
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            odd = [x for x in names if x.partition(".")[0] in LIBRARIES and x not in DOCUMENTED]
            found += [ast.unparse(node)] if odd else []
    return sorted(set(found) - OF_PYTHON)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_a_library(path):
    assert reached(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f(trainer):\n    return trainer._metrics",
        "class A(Trainer):\n    def f(self):\n        return self._tr_loss",
        "class A(Trainer):\n    def f(self):\n        return super()._get_grad_norm()",
        "setattr(model, '_attn_implementation', 'eager')",
        "getattr(trainer, '_step')",
        "from torch.distributed._composable import contract",
        "from trl.trainer import utils",
        "from transformers.trainer import Trainer",
        "from torch import _C",
        "import deepspeed.runtime.zero",
    ],
)
def test_it_would_be_seen(text):
    assert reached(PACKAGE / "files.py", text)


def test_no_private_method_of_a_library_is_overridden():
    """Nor a public one unseen, as a release may bring one that has the name of one of ours."""
    kinds = set()
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] in ("scoring", "training"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            kinds |= {
                kind
                for kind in vars(importlib.import_module(name)).values()
                if inspect.isclass(kind) and kind.__module__ == name
            }
    looked_at = set()
    for kind in kinds:
        theirs = [base for base in kind.__mro__ if base.__module__.startswith(LIBRARIES)]
        if not theirs or any(base.__name__ in TO_BE_OVERRIDDEN for base in theirs):
            continue
        taken = set().union(*map(vars, theirs))
        for base in theirs:
            with suppress(OSError):  # one that is written in C has none
                taken |= set(re.findall(r"self\.(\w+)", inspect.getsource(base)))
        for base in kind.__mro__:
            if base.__module__.startswith("coevolve.") and "libraries" not in base.__module__:
                looked_at.add(base.__name__)
                body = {x for x in vars(base) if not x.startswith(("__", "_abc"))}
                body |= set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(base)))
                assert body & taken <= PUBLIC, f"{base.__name__}: {sorted(body & taken - PUBLIC)}"
    assert {"Resumable", "RoleGRPOTrainer", "SharedPrompts", "_RoomyLayer"} <= looked_at


def test_the_versions_that_are_allowed_are_those_that_were_tested():
    """From the lowest on; up to the last release of the highest's series."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
    allowed = {re.split("[<>=]", line)[0]: line for line in lines}
    for name, (low, high) in hooks.TESTED.items():
        major, minor, _ = high.split(".")
        low = low.removesuffix(".0")
        assert allowed[name] == f"{name}>={low},<{major}.{int(minor) + 1}"
