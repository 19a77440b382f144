"""The memory meter, where torch sees GPUs that nothing has used yet."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.compare.machine import MemoryMeter


@pytest.mark.parametrize("in_use", [False, True])
def test_counts_of_gpus_are_set_back_only_once_there_are_some(monkeypatch, in_use):
    """torch raises "did you call init?" for a GPU that it has not begun to use."""
    reset = []

    def set_back(index: int) -> None:
        if not in_use:
            raise RuntimeError("Invalid device argument 0: did you call init?")
        reset.append(index)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", set_back)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 10 + index)
    assert MemoryMeter(own_process=False).read()["cuda_peak"] == (21 if in_use else None)
    assert reset == ([0, 1] if in_use else [])
