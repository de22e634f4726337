"""Randomness as a function of where the run is, so that none of its state has to be stored."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one place of a run: SHA-256 of the run's seed and the parts.

    Args:
        seed: the run's.
        parts: what tells the place from all others, for example a name, the epoch, the batch and the rank.

    >>> derive(0, "step", 1, 2) == derive(0, "step", 1, 2), derive(0, "step", 1, 2) == derive(0, "step", 12)
    (True, False)
    """
    # repr keeps "1" and 1 apart, and the separator 1, 2 and 12.
    text = "/".join(repr(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def reseed(seed: int) -> None:
    """Seed the global generators of torch (all devices), Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    # NumPy's takes 32 bits.
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seeded inside the block; outside of it the generators of the CPU are as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            reseed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
