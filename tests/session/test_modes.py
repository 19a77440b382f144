"""An edit is the same whatever modes of torch the caller has set."""

from __future__ import annotations

import functools
from contextlib import contextmanager

import pytest
import torch

from nse_plugin.methods.nse import edit_round
from nse_plugin.model.hooks import own_modes
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_hparams, tiny_model, tiny_tokenizer


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def matmul_precision(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_low_precision_inside():
    with matmul_precision("high"), own_modes():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32


@contextmanager
def tf32():
    """Set by torch's new attribute, after which its old functions raise."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "tf32": tf32,
    "medium": lambda: matmul_precision("medium"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@functools.cache
def edited(mode):
    """Weights after two rounds and after undoing the first, both within the mode."""
    model = tiny_model("llama")
    requests, hparams = some_requests(4), tiny_hparams(v_num_grad_steps=3)
    with mode():
        session = EditSession.of(model, tiny_tokenizer())
        edit_round(session, requests[:2], hparams)
        edit_round(session, requests[2:], hparams)
        both = model.model.layers[1].mlp.down_proj.weight.detach().clone()
        session.undo(1)
    return both, model.model.layers[1].mlp.down_proj.weight


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_change_nothing(mode):
    expected, got = edited(torch.enable_grad), edited(MODES[mode])
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert not got[1].is_inference() and got[1].requires_grad
