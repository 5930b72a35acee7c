"""What a run of a comparison held is given back before the next one begins."""

import ctypes

import psutil
import pytest

from coevolve.cli.comparing import give_back_memory

SIZE, COUNT = 100_000, 2_000
"""Bytes of a block, small enough for the heap; blocks."""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_that_was_freed_goes_back_to_the_system():
    process = psutil.Process()
    blocks = [bytearray(SIZE) for _ in range(COUNT)]
    # Every tenth stays, so that the heap cannot end earlier.
    blocks = blocks[::10]
    before = process.memory_info().rss
    give_back_memory()
    assert before - process.memory_info().rss > 0.5 * SIZE * COUNT
    assert len(blocks) == COUNT // 10
