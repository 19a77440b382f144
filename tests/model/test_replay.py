"""A continuation gives what a whole forward pass gives, in every family."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.errors import ModelError
from nse_plugin.model.layout import DecoderLayout, first_tensor
from nse_plugin.model.prompts import TokenBatch
from nse_plugin.model.replay import Continuation
from tests.tiny import UNKNOWN_FAMILIES, tiny_model

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]]
STARTS = [4, 0, 2]


def plain_logits(model, layout, row, start, delta, layer):
    """One row, no padding, no reuse: delta added by a hook in a full pass."""

    def add(_module, _args, output):
        first_tensor(output)[0, start] += delta
        return output

    handle = layout.blocks[layer].register_forward_hook(add)
    try:
        return model(input_ids=torch.tensor([row])).logits[0].float()
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_same_logits_as_full_passes(any_model, layer):
    check_against_full_passes(any_model, layer)


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_families_that_are_probed(family):
    check_against_full_passes(tiny_model(family), 1)


def check_against_full_passes(model, layer):
    layout = DecoderLayout(model)
    batch = TokenBatch.of(ROWS, "cpu")
    tails = Continuation.capture(
        layout, batch, torch.tensor(STARTS), layer=layer, last=layout.n_layers - 1
    )
    deltas = torch.randn(3, layout.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = tails.hidden.clone()
        hidden[:, 0] += deltas
        logits = layout.logits(tails.run(hidden))
        chosen = torch.tensor([0, 2])
        some = layout.logits(tails.select(chosen).run(hidden[chosen]))
        for r, (row, start) in enumerate(zip(ROWS, STARTS)):
            expected = plain_logits(model, layout, row, start, deltas[r], layer)[start:]
            torch.testing.assert_close(logits[r, : len(expected)], expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(some, logits[chosen], atol=2e-4, rtol=2e-4)


def test_prompt_beyond_the_sliding_window_is_refused():
    model = tiny_model("mistral", sliding_window=4)
    batch = TokenBatch.of(ROWS, "cpu")
    with pytest.raises(ModelError, match="7 tokens .* window of 4"):
        Continuation.capture(DecoderLayout(model), batch, torch.tensor(STARTS), layer=1, last=3)


def test_attention_without_masks_is_refused(model):
    model.config._attn_implementation = "flash_attention_2"
    batch = TokenBatch.of(ROWS, "cpu")
    with pytest.raises(ModelError, match="attention is 'flash_attention_2'.*'sdpa'"):
        Continuation.capture(DecoderLayout(model), batch, torch.tensor(STARTS), layer=1, last=3)


def test_arguments_that_cannot_be_cut_are_named(model, monkeypatch):
    block, real = DecoderLayout(model).blocks[2], DecoderLayout(model).blocks[2].forward

    def forward(hidden_states, *args, gate=None, **kwargs):
        return real(hidden_states, *args, **kwargs)

    def call(module, args, kwargs):
        return args, {**kwargs, "gate": torch.ones(3, 7)}

    monkeypatch.setattr(block, "forward", forward)
    block.register_forward_pre_hook(call, with_kwargs=True)
    batch = TokenBatch.of(ROWS, "cpu")
    with pytest.raises(ModelError, match="take .*gate, which nse_plugin"):
        Continuation.capture(DecoderLayout(model), batch, torch.tensor(STARTS), layer=1, last=3)
