"""The canaries of this folder against the lowest and the highest versions that pyproject allows.

Each in a fresh environment, which pip fills: minutes, and gigabytes. With COEVOLVE_CANARY=1 only.
"""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from coevolve.libraries.hooks import TESTED

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("COEVOLVE_CANARY") != "1", reason="COEVOLVE_CANARY=1 asks for it"
    ),
]


def requirements(end):
    """pyproject's, with the lowest release of each series at the one end,
    the newest at the other.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        name, low = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        pinned = end == "lowest" and name in TESTED
        yield f"{name}=={low}{'.0' * (2 - low.count('.'))}" if pinned else line


@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_the_canaries_sing(end, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements(end)], check=True)
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    tested = {name: ends for name, ends in TESTED.items() if name != "vllm"}  # `pytest -m vllm`
    found = subprocess.run([python, "-c", ask, *tested], check=True, capture_output=True, text=True)
    versions = [version.partition("+")[0] for version in found.stdout.split()]
    assert versions == [ends[end == "highest"] for ends in tested.values()]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COEVOLVE_CANARY": "0"}
    program = [python, "-m", "pytest", "-q", "-m", "slow or not slow", Path(__file__).parent]
    done = subprocess.run(program, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    print(done.stdout[-200:], file=sys.stderr)
