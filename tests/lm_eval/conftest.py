"""The toy of the public release, as the tests of `reference` make it."""

from pathlib import Path
from runpy import run_path

made = run_path(str(Path(__file__).parents[1] / "reference" / "conftest.py"))
release, imported, estimator, corpus = (
    made[name] for name in ("release", "imported", "estimator", "corpus")
)
