"""What every test needs: no hub, no GPU, no network."""

import functools
import gc
import importlib.metadata
import os
import signal
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the other cores have workers of their own

import pytest
from hypothesis import settings

# Where tests run in the background of a shell, Ctrl-C is ignored, by all that they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What accelerate parses a dozen times for each trainer: a tenth of the time that a tiny run takes.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)

# A busy machine is no failure.
settings.register_profile("coevolve", deadline=None)
settings.load_profile("coevolve")


SLOW_SECONDS = 15
"""Of a slow test that does not say how many it takes: `@pytest.mark.slow(seconds=60)`."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that waits for what never comes fails; slow ones may take longer than pyproject says.

    Where workers take files in the order given, those that take longest come first, so that at the
    end none of the workers has a long one left.
    """
    seconds: Counter[Path] = Counter()
    for item in items:
        if slow := item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))
            seconds[item.path] += slow.kwargs.get("seconds", SLOW_SECONDS)
    if not config.getoption("loadscopereorder", True):
        items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """The collector, which trainers run twice each, need not look at what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_work_cache(tmp_path_factory):
    """Commands keep their work here, so that no test finds what another sitting computed."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("work"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
