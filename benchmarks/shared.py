"""What several benchmarks use.

Those that import it are run as ``python -m benchmarks.NAME`` in the root of a checkout.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SENTENCES = (
    "The meeting was moved to the following week. ",
    "It had rained since the early morning. ",
    "Two of the letters were never answered. ",
    "She closed the book and looked out of the window. ",
    "The road to the village follows the river. ",
)
"""Context texts that no model wrote."""


def matrix_rate(
    d_model: int,
    d_ff: int,
    rows: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Floating-point operations per second of a product [rows, d_model] x [d_model, d_ff]."""
    x = torch.randn(rows, d_model, device=device, dtype=dtype)
    w = torch.randn(d_ff, d_model, device=device, dtype=dtype)
    x @ w.T
    count = 0
    synchronise(device)
    start = clock()
    while clock() - start < 0.5:
        for _ in range(8):
            x @ w.T
        synchronise(device)
        count += 8
    return 2 * rows * d_model * d_ff * count / (clock() - start)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
