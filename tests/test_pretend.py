"""The pretended GPU refuses what CUDA would refuse."""

from __future__ import annotations

import pytest
import torch

from tests.pretend import CPU, GPU, PretendedGPU


def test_what_is_made_from_a_tensor_of_the_gpu_is_there_too():
    with PretendedGPU():
        there, here = torch.ones(3).to(GPU), torch.ones(3)
        for made in (there + 1, there * torch.tensor(2.0), there[torch.tensor([0])], there.T):
            assert made.device == GPU
        assert torch.zeros(2, device=GPU).device == there.new_zeros(2).device == GPU
        assert here.device == there.cpu().device == there.to("cpu").device == CPU
        assert here.copy_(there).device == CPU and here.to(there).device == GPU


def test_tensors_of_two_devices_do_not_mix():
    with PretendedGPU():
        there, here = torch.ones(3).to(GPU), torch.ones(3)
        for mix in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here.add_(there),
            lambda: torch.rand(3, device=GPU, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="GPU"):
                mix()
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            there.numpy()
