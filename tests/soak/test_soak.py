"""A short soak, so that the long one stays alive."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow(seconds=60)
def test_a_few_rounds_lose_nothing_under_a_few_faults():
    command = [sys.executable, "-m", "tests.soak", "--rounds", "8", "--faults", "8"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
