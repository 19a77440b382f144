"""Seed the global random generators for a block and restore them afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def seeded(seed: int, number: int = 0, model: nn.Module | None = None) -> Iterator[None]:
    """Seed Python's, numpy's and torch's random generators; restore their states afterwards.

    Args:
        number: of the round, so that a resumed run draws the same numbers.
        model: seed the GPUs that it is on too; no other GPU is initialised.
    """
    state, arrays = random.getstate(), np.random.get_state()
    start = (seed * 1_000_003 + number) % 2**64  # torch takes no larger one
    devices = {parameter.device for parameter in model.parameters()} if model is not None else ()
    gpus = sorted(device.index for device in devices if device.type == "cuda")
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(start)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(start)
        random.seed(start)
        np.random.seed(start % 2**32)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(arrays)
