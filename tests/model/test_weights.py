"""Edited weights: sums in float32, rewinding and undo to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nse_plugin.errors import ModelError
from nse_plugin.model import weights as weights_module
from nse_plugin.model.weights import EditedWeights, all_finite, fingerprint


def tracked(dtype=torch.float32, shape=(6, 5)):
    parameter = nn.Parameter(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    )
    weights = EditedWeights()
    weights.track("w", parameter)
    return weights, parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rewound_is_exact_also_after_an_exception(dtype):
    weights, parameter = tracked(dtype)
    original = parameter.detach().clone()
    weights.add("w", torch.full((6, 5), 0.1))
    held = parameter.detach().clone()
    pointer = parameter.data_ptr()
    with pytest.raises(ZeroDivisionError), weights.rewound():
        assert torch.equal(parameter, original) and not torch.equal(parameter, held)
        raise ZeroDivisionError
    assert torch.equal(parameter, held) and parameter.data_ptr() == pointer


def test_tiny_changes_are_not_lost_in_bfloat16():
    weights, parameter = tracked(torch.bfloat16)
    original = parameter.detach().float()
    step = torch.full((6, 5), 1e-4)
    patched = parameter.detach().clone()
    for _ in range(50):
        weights.add("w", step)
        patched += step.to(torch.bfloat16)  # what patching in place would do
    wanted = (original + 50 * step).to(torch.bfloat16)
    assert torch.equal(parameter, wanted)
    large = original.abs() > 0.1  # there, one step is below half a bfloat16 spacing
    assert torch.equal(patched.float()[large], original[large])
    assert not torch.equal(parameter.float()[large], original[large])


def test_a_float64_weight_keeps_its_bits_where_nothing_is_written():
    _, parameter = tracked(torch.float64)
    with torch.no_grad():
        parameter += 1e-12  # which no float32 number holds
    weights = EditedWeights()
    weights.track("w", parameter)
    original = parameter.detach().clone()
    change = torch.zeros(6, 5)
    change[:, 1] = 0.25
    before = weights.snapshot()
    weights.add("w", change)
    assert torch.equal(parameter, original + change) and torch.equal(weights.value("w"), parameter)
    assert torch.equal(weights.at("w", weights.snapshot()), parameter)
    assert torch.equal(weights.at("w", before), original)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), st.booleans())
def test_setting_no_change_restores_every_bit(steps, half):
    weights, parameter = tracked(torch.bfloat16 if half else torch.float32)
    original = parameter.detach().clone()
    for step in steps:
        weights.add("w", torch.full((6, 5), step))
    weights.set("w", None)
    assert torch.equal(parameter, original)
    assert fingerprint(parameter) == weights.original_fingerprint()["w"]


def test_snapshot_and_restore():
    weights, parameter = tracked()
    weights.add("w", torch.ones(6, 5))
    snapshot, held = weights.snapshot(), parameter.detach().clone()
    weights.add("w", torch.ones(6, 5))
    assert not torch.equal(parameter, held)
    weights.restore(snapshot)
    assert torch.equal(parameter, held)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_change_that_is_not_finite_writes_nothing(value):
    weights, parameter = tracked(torch.float16)
    held = parameter.detach().clone()
    with pytest.raises(ModelError, match="change of w is not finite"):
        weights.add("w", torch.full((6, 5), value))
    assert torch.equal(parameter, held)


def test_weights_that_cannot_be_edited_are_refused():
    weights = EditedWeights()
    with pytest.raises(ModelError, match="offloaded"):
        weights.track("a", nn.Parameter(torch.empty(2, 2, device="meta")))
    with pytest.raises(ModelError, match=r"stored as torch\.int8"):
        weights.track("b", torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(ModelError, match="NaN or infinity"):
        weights.track("c", torch.tensor([[1.0, float("nan")]]))
    assert weights.names() == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -1.5, 3e38, float("nan"), float("inf"), -float("inf")])),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_all_finite_is_what_it_says(values, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    assert all_finite(tensor) is bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fingerprint_in_pieces_is_that_of_the_whole(dtype, monkeypatch):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = fingerprint(weight)
    monkeypatch.setattr(weights_module, "_AT_ONCE", {"cpu": 10})
    assert fingerprint(weight) == whole


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 29), st.integers(0, 29), st.sampled_from(["float32", "bfloat16"]))
def test_fingerprint_sees_every_bit_and_place(i, j, dtype):
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    changed = weight.clone().flatten()
    changed[i] = (
        torch.nextafter(changed[i].float(), torch.tensor(9.0)) if dtype == "float32" else 2.5
    )
    assert fingerprint(changed.view(6, 5)) != fingerprint(weight)
    swapped = weight.clone().flatten()
    swapped[i], swapped[j] = weight.flatten()[j], weight.flatten()[i]
    same = torch.equal(swapped, weight.flatten())  # i is j, or both places hold one value
    assert (fingerprint(swapped.view(6, 5)) == fingerprint(weight)) == same
    assert fingerprint(weight.clone()) == fingerprint(weight)
    assert fingerprint(weight.view(6, 5, 1)) == fingerprint(weight.t().contiguous().t())
