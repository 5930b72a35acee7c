"""One pair of roles for all tests of a file."""

import sys
from pathlib import Path

import pytest
import torch

from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.stopping import Stop

sys.path.insert(0, str(Path(__file__).parent))  # for library_runs, which processes load as well
from library_runs import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Phases of two steps."""
    return Runs(tmp_path_factory.mktemp("run"), Processes(torch.device("cpu"), Stop()))
