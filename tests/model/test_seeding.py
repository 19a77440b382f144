"""Seeded random numbers: the same inside, as if nothing had been drawn outside."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch

from nse_plugin.hparams.validation import LARGEST_SEED
from nse_plugin.model.seeding import seeded


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def start_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_all_generators_start_from_seed_and_round_and_go_on_afterwards():
    with seeded(3, 1):
        start_all(5)
        expected_after = draws()
        start_all(5)
        with seeded(0, 2):
            first = draws()
        assert draws() == expected_after
        with seeded(0, 2):
            assert draws() == first
        with seeded(1, 2):
            other = draws()
        assert all(a != b for a, b in zip(first, other))


def test_large_seeds_are_fit_for_every_generator():
    for seed in (2**31, LARGEST_SEED):
        with seeded(seed, 7):
            draws()


def test_only_the_gpus_of_the_model_are_seeded(monkeypatch):
    """``fork_rng`` without a list would initialise every GPU of the machine."""
    parameters = [SimpleNamespace(device=torch.device(name)) for name in ("cuda:2", "cpu")]
    model = SimpleNamespace(parameters=lambda: parameters)
    forked, seeds = [], []
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda devices: forked.append(devices) or nullcontext()
    )
    monkeypatch.setattr(torch.cuda, "device", lambda gpu: seeds.append(gpu) or nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda _seed: None)
    with seeded(0, 1, model):
        pass
    with seeded(0, 1):
        pass
    assert forked == [[2], []] and seeds == [2]
