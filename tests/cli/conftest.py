"""A run made by the real command, shared by the tests of the commands."""

import subprocess
import sys

import pytest
import yaml

RECIPE = {
    "name": "cli",
    "prompts": "world",
    "data": {"world": {"train": 24, "test": 5}, "validation": 4},
    "model": {
        "base": "tiny",
        "tiny": {"hidden_size": 32, "layers": 1, "heads": 2},
        "tuning": "full",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 96,
        "max_reasoning_tokens": 24,
    },
    "traces": {"teacher": "dataset"},
    "cold_start": {
        role: {"steps": 2, "learning_rate": 1e-3, "train_batch_size": 4}
        for role in ("connector", "estimator")
    },
    "rounds": {"count": 0},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "export": {"form": "greedy"},
}


@pytest.fixture(scope="session")
def run(run_folder):
    """As `run_folder`."""
    return run_folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run made by the real command in a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "coevolve", "train", str(folder / "recipe.yaml"), "seed=3"]
    # An override may stand on either side.
    command += ["--output-dir", str(folder / "run"), "logging.every=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "cold start: connector SFT" in done.stderr and "R-EMI" in done.stderr
    return folder / "run"
