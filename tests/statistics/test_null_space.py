"""The directions of general text, and the file that keeps them."""

from __future__ import annotations

import logging

import pytest
import torch

from nse_plugin.errors import StatisticsError
from nse_plugin.statistics import null_space
from nse_plugin.statistics.null_space import busy_directions, kept_busy_directions


@pytest.fixture
def covariance():
    """[12, 12], of rank 8."""
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    return x @ x.T / 8


@pytest.fixture
def statistics(tmp_path):
    return tmp_path / "mlp.0_float32_mom2_100.safetensors"


@pytest.fixture
def computed(monkeypatch):
    """The thresholds for which directions are computed; those of any size are kept."""
    thresholds = []

    def spy(covariance, threshold):
        thresholds.append(threshold)
        return busy_directions(covariance, threshold)

    monkeypatch.setattr(null_space, "busy_directions", spy)
    monkeypatch.setattr(null_space, "KEEP_FROM", 1)
    return thresholds


def test_nothing_left_to_write_in_is_an_error():
    with pytest.raises(StatisticsError, match="nullspace_threshold is 1e-12.*median"):
        busy_directions(torch.eye(12), 1e-12)


def test_kept_directions_have_the_same_bits(covariance, statistics, computed):
    first = kept_busy_directions(covariance, 1e-3, statistics)
    again = kept_busy_directions(covariance, 1e-3, statistics)
    assert computed == [1e-3]
    assert first.dtype == again.dtype == torch.float64
    assert torch.equal(first, again)
    assert torch.equal(first, busy_directions(covariance, 1e-3))


def test_another_threshold_or_covariance_replaces_them(covariance, statistics, computed):
    kept_busy_directions(covariance, 1e-3, statistics)
    kept_busy_directions(covariance, 0.5, statistics)
    scaled = kept_busy_directions(2 * covariance, 0.5, statistics)
    assert computed == [1e-3, 0.5, 0.5]
    assert torch.equal(scaled, busy_directions(2 * covariance, 0.5))
    assert len(list(statistics.parent.iterdir())) == 1


def test_a_damaged_file_is_made_again(covariance, statistics, computed, caplog):
    kept_busy_directions(covariance, 1e-3, statistics)
    (path,) = statistics.parent.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        kept_busy_directions(covariance, 1e-3, statistics)
    assert computed == [1e-3, 1e-3]
    assert "made again" in caplog.text
    kept_busy_directions(covariance, 1e-3, statistics)
    assert len(computed) == 2


def test_a_place_that_cannot_be_written_costs_the_file_only(covariance, tmp_path, computed, caplog):
    (tmp_path / "taken").write_text("")
    with caplog.at_level(logging.WARNING):
        found = kept_busy_directions(covariance, 1e-3, tmp_path / "taken" / "a.safetensors")
    assert torch.equal(found, busy_directions(covariance, 1e-3))
    assert "not kept" in caplog.text


def test_a_small_layer_has_no_file(covariance, statistics):
    kept_busy_directions(covariance, 1e-3, statistics)
    assert not list(statistics.parent.iterdir())
