"""What of hyperparameters is written down."""

from __future__ import annotations

import torch

from nse_plugin.hparams import NSEHparams, OvertoneHparams
from nse_plugin.runs.identity import as_json, device_name


def test_another_kind_of_gpu_is_another_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    names = [device_name(torch.device(name)) for name in ("cpu", "cuda:0", "cuda:1")]
    assert names == ["cpu", "GPU 0", "GPU 1"]


def test_places_on_a_disk_are_not_part_of_them_also_under_a_base():
    """Statistics may be moved between two calls of one run, whatever the loss is."""
    found = []
    for folder in ("here", "there"):
        base = NSEHparams(alg_name="NSE", model_name="tiny", layers=[1], stats_dir=folder)
        found.append((as_json(base), as_json(OvertoneHparams.wrap(base))))
    assert found[0] == found[1]
    assert found[0][1]["base"]["layers"] == [1]
