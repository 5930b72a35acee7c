"""Seeds for the parts of a run, derived from the run's own so that no two parts share a stream."""

import hashlib

SEEDS = 2**31
"""So many there are, from 0, and `derive_seed` gives each as often."""


def derive_seed(seed: int, *labels: str | int) -> int:
    """A seed for the part of the run that `labels` name."""
    text = ":".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
