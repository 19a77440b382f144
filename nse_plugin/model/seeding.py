"""Seeded random numbers that leave the global random state unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, number: int = 0) -> Iterator[None]:
    """Seed Python's, numpy's and torch's random generators; restore their states afterwards.

    Args:
        number: of the round: a resumed run draws in it what an uninterrupted one would.
    """
    state, arrays = random.getstate(), np.random.get_state()
    start = seed * 1_000_003 + number
    with torch.random.fork_rng():
        torch.manual_seed(start)
        random.seed(start)
        np.random.seed(start % 2**32)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(arrays)
