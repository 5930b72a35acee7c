"""What an engine is given does not outlast the run, however that ends; without vLLM."""

import tempfile
from types import SimpleNamespace

import pytest

from coevolve.training.generation import Engines


@pytest.fixture
def engines_of(tmp_path, monkeypatch):
    """A function from a run's name and a rank to its engines."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))

    def engines(name, rank=0):
        processes = SimpleNamespace(rank=rank, main=rank == 0)
        return Engines(None, {}, None, processes, tmp_path / name)

    (tmp_path / "here").mkdir()
    return engines


def test_a_killed_sitting_leaves_nothing_to_the_next(engines_of, tmp_path):
    begun = {(run, rank): engines_of(run, rank) for run in ("one", "other") for rank in (0, 1)}
    left = {}
    for (run, rank), engines in begun.items():
        for server in (False, True):
            place, prefix = engines.scratch(server=server)
            place.mkdir(exist_ok=True)
            left[run, rank, server] = tempfile.mkdtemp(prefix=prefix, dir=place)
    engines_of("one", 1)
    gone = {key for key, folder in left.items() if not tmp_path.joinpath(folder).exists()}
    assert gone == {("one", 1, False)}  # its own, on its own machine
    engines_of("one", 0)
    gone = {key for key, folder in left.items() if not tmp_path.joinpath(folder).exists()}
    assert gone == {("one", 1, False), ("one", 0, False), ("one", 0, True), ("one", 1, True)}
