"""A continuation gives what a whole forward pass gives, in every family."""

from __future__ import annotations

import pytest
import torch
import transformers

from nse_plugin.errors import ModelError
from nse_plugin.model.continuation import capture
from nse_plugin.model.full_pass import FullPass
from nse_plugin.model.layout import first_tensor
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import TokenBatch
from nse_plugin.model.replay import Replay
from tests.tiny import FAMILY_NAMES, UNKNOWN_FAMILIES, tiny_model

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]]
STARTS = [4, 0, 2]
LONG_ROWS = [list(range(10, 50)), [20, 21, 22, 23, 24], list(range(60, 90))]
LONG_STARTS = [30, 2, 8]


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
    layout = layout_of(model)
    batch = TokenBatch.of(ROWS, "cpu")
    tails = capture(layout, batch, torch.tensor(STARTS), layer=layer, last=layout.n_layers - 1)
    assert isinstance(tails, Replay)
    check_tails(model, layout, tails, layer)


def check_tails(model, layout, tails, layer, rows=ROWS, starts=STARTS):
    deltas = torch.randn(3, layout.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = tails.hidden.clone()
        hidden[:, 0] += deltas
        logits = layout.logits(tails.run(hidden))
        chosen = torch.tensor([0, 2])
        some = layout.logits(tails.select(chosen).run(hidden[chosen]))
        for r, (row, start) in enumerate(zip(rows, starts)):
            expected = plain_logits(model, layout, row, start, deltas[r], layer)[start:]
            torch.testing.assert_close(logits[r, : len(expected)], expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(some, logits[chosen], atol=2e-4, rtol=2e-4)


def test_rows_beyond_a_window_get_whole_passes():
    model = tiny_model("mistral", sliding_window=4)
    layout = layout_of(model)
    tails = capture(layout, TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS), layer=1, last=3)
    assert isinstance(tails, FullPass)
    check_tails(model, layout, tails, 1)


def test_a_window_that_short_rows_did_not_reach():
    """GPT-Neo masks in its blocks, and calls its window otherwise than most."""
    model = tiny_gpt_neo(window=16)
    layout = layout_of(model)
    check_against_full_passes(model, 1)
    long = TokenBatch.of(LONG_ROWS, "cpu")
    tails = capture(layout, long, torch.tensor(LONG_STARTS), layer=1, last=3)
    assert isinstance(tails, FullPass)
    check_tails(model, layout, tails, 1, LONG_ROWS, LONG_STARTS)
    check_against_full_passes(model, 1)  # short rows are replayed as before


def test_rows_within_a_window_whose_replay_is_wider():
    """Blocks that mask on their own count the padding between the two parts of a row."""
    model, rows = tiny_gpt_neo(window=16), [list(range(20, 36)), [5, 6, 7], list(range(40, 56))]
    starts, layout = [14, 1, 3], layout_of(model)
    check_against_full_passes(model, 1)
    tails = capture(layout, TokenBatch.of(rows, "cpu"), torch.tensor(starts), layer=1, last=3)
    check_tails(model, layout, tails, 1, rows, starts)


def tiny_gpt_neo(window):
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=300, hidden_size=32, num_layers=4, num_heads=4, intermediate_size=48,
        attention_types=[[["global", "local"], 2]], window_size=window, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.GPTNeoForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return model


def test_attention_without_masks_gets_whole_passes(model, caplog):
    layout = layout_of(model)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="attention is 'flash_attention_2'.*'sdpa'"):
        Replay.capture(layout, TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS), layer=1, last=3)


@pytest.mark.parametrize("family", [*FAMILY_NAMES, *UNKNOWN_FAMILIES])
def test_whole_passes_give_the_same(family):
    model = tiny_model(family)
    layout = layout_of(model)
    batch, starts = TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS)
    tails = FullPass.capture(layout, batch, starts, layer=1, last=3)
    check_tails(model, layout, tails, 1)
    shorter = tails.up_to(1)
    again = FullPass.capture(layout, batch, starts, layer=2, last=3)
    torch.testing.assert_close(shorter.run(tails.hidden), again.hidden, atol=2e-4, rtol=2e-4)


def test_gradients_reach_the_hidden_states_through_whole_passes(model):
    layout = layout_of(model)
    batch, starts = TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS)
    gradients = []
    for kind in (FullPass, Replay):
        tails = kind.capture(layout, batch, starts, layer=1, last=3)
        hidden = tails.hidden.clone().requires_grad_(True)
        tails.run(hidden)[:, 0].square().sum().backward()
        gradients.append(hidden.grad[:, 0])
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_arguments_that_cannot_be_cut_give_whole_passes_and_one_warning(model, monkeypatch, caplog):
    block, real = layout_of(model).blocks[2], layout_of(model).blocks[2].forward

    def forward(hidden_states, *args, gate=None, **kwargs):
        return real(hidden_states, *args, **kwargs)

    def call(module, args, kwargs):
        return args, {**kwargs, "gate": torch.ones(3, 7)}

    monkeypatch.setattr(block, "forward", forward)
    block.register_forward_pre_hook(call, with_kwargs=True)
    for _ in range(2):
        tails = capture(
            layout_of(model), TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS), layer=1, last=3
        )
        assert isinstance(tails, FullPass)
    warnings = [record for record in caplog.records if "cannot be replayed" in record.message]
    assert len(warnings) == 1 and "gate" in warnings[0].message


def test_a_replay_is_compared_on_a_few_rows(model, monkeypatch):
    real, seen = FullPass.capture.__func__, []

    def noted(cls, layout, batch, starts, **blocks):
        seen.append(batch.lengths.tolist())
        return real(cls, layout, batch, starts, **blocks)

    monkeypatch.setattr(FullPass, "capture", classmethod(noted))
    layout = layout_of(model)
    batch, starts = TokenBatch.of(ROWS * 5, "cpu"), torch.tensor(STARTS * 5)
    tails = capture(layout, batch, starts, layer=1, last=3)
    assert isinstance(tails, Replay) and len(tails.hidden) == len(ROWS) * 5
    assert [sorted(lengths) for lengths in seen] == [[3, 7, 7, 7]]


def test_a_replay_that_differs_is_not_used(model, monkeypatch, caplog):
    real = Replay.run
    monkeypatch.setattr(Replay, "run", lambda self, hidden: real(self, hidden) * 1.01)
    tails = capture(
        layout_of(model), TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS), layer=1, last=3
    )
    assert isinstance(tails, FullPass)
    assert "relative difference" in caplog.text


@pytest.mark.parametrize("family", ["qwen3_5_text", "falcon_h1", "lfm2"])
def test_blocks_with_a_state_get_whole_passes(family, caplog):
    model = tiny_model(family)
    layout = layout_of(model)
    batch, starts = TokenBatch.of(ROWS, "cpu"), torch.tensor(STARTS)
    capture(layout, batch, starts, layer=2, last=3)  # what holds above here need not hold below
    tails = capture(layout, batch, starts, layer=0, last=3)
    assert isinstance(tails, FullPass)
    check_tails(model, layout, tails, 0)
    assert len([r for r in caplog.records if "cannot be replayed" in r.message]) == 1


def test_nothing_is_learned_from_rows_without_a_prefix(model, monkeypatch):
    layout, real = layout_of(model), Replay.run
    batch = TokenBatch.of(ROWS, "cpu")
    capture(layout, batch, torch.zeros(3, dtype=torch.long), layer=1, last=3)
    monkeypatch.setattr(Replay, "run", lambda self, hidden: real(self, hidden) * 1.01)
    assert isinstance(capture(layout, batch, torch.tensor(STARTS), layer=1, last=3), FullPass)
