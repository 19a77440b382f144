"""A pass that begins half-way gives the bits of a whole one, or is not made."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.model import partial_pass
from nse_plugin.model.hooks import read_rows
from nse_plugin.model.partial_pass import beginning_at, can_begin_at
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import TokenBatch
from tests.tiny import UNKNOWN_FAMILIES, tiny_model

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]]


def test_the_bits_of_a_whole_pass(any_model):
    check_bits(any_model)


@pytest.mark.parametrize("family", [*UNKNOWN_FAMILIES, "qwen3_5_text", "falcon_h1", "lfm2"])
def test_the_bits_of_a_whole_pass_in_families_that_are_probed(family):
    check_bits(tiny_model(family))


def check_bits(model):
    layout = layout_of(model)
    assert can_begin_at(layout, 2, 3)
    batch = TokenBatch.of(ROWS, "cpu")
    last = {"last": layout.blocks[3]}
    whole = read_rows(
        layout, batch, batch.lengths - 1, outputs_of=last, whole_inputs_of={2: layout.blocks[2]}
    )
    for row, length in enumerate(batch.lengths):
        whole[2][row, length:] = 0.0  # padding is not kept
    with beginning_at(layout, 2, whole[2]):
        got = read_rows(layout, batch, batch.lengths - 1, outputs_of=last)
    assert torch.equal(got["last"], whole["last"])
    assert not any("forward" in vars(block) for block in layout.blocks)


def test_a_pass_that_goes_further_is_tested_again(monkeypatch):
    model = tiny_model("llama")
    layout = layout_of(model)
    real, tested = partial_pass._tested, []

    def noted(layout, block, last):
        tested.append((block, last))
        return real(layout, block, last)

    monkeypatch.setattr(partial_pass, "_tested", noted)
    assert [can_begin_at(layout, 1, last) for last in (2, 1, 3, 2)] == [True] * 4
    assert tested == [(1, 2), (1, 3)]


def test_blocks_that_attend_to_what_skipped_ones_have_left(caplog):
    caplog.set_level("INFO")
    kinds = ["sliding_attention", "full_attention"] * 2
    model = tiny_model("gemma4_text", num_kv_shared_layers=2, layer_types=kinds)
    layout = layout_of(model)
    assert not can_begin_at(layout, 2, 3) and not can_begin_at(layout, 2, 3)
    assert len([r for r in caplog.records if "can begin at block 2" in r.message]) == 1
