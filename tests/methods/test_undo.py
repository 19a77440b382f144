"""Three rounds, the last one undone, then all: to the bit, for each method that solves."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.hparams import AlphaEditHparams, MEMITHparams, NSEHparams, ROMEHparams
from nse_plugin.methods.bases import BASES
from nse_plugin.session.session import EditSession
from tests.methods.brute import hparams_of, three_rounds
from tests.tiny import bits, same_bits, tiny_model

OWN = {
    "AlphaEdit": {"nullspace_threshold": 1e3},  # of the tiny models' keys, most directions are busy
    "ROME": {"layers": [2]},
}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("gpt2", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.float32)],
)
@pytest.mark.parametrize("kind", [AlphaEditHparams, MEMITHparams, NSEHparams, ROMEHparams])
def test_undo_restores_every_bit(kind, family, dtype, tokenizer, tmp_path):
    hparams = hparams_of(kind, stats_dir=str(tmp_path), **OWN.get(kind.method, {}))
    model = tiny_model(family, dtype=dtype)
    before = bits(model)
    session = EditSession.of(model, tokenizer)
    after = []
    for requests in three_rounds():
        record = BASES[kind.method].edit_round(session, requests, hparams)
        assert record.method == hparams.method
        assert all(torch.isfinite(p).all() for p in model.parameters())
        left = sum(o.residual_after for o in record.outcomes)
        assert left < sum(o.residual_before for o in record.outcomes)
        after.append(bits(model))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {session.layout.down_name(layer) for layer in hparams.layers}
    assert {p.dtype for p in model.parameters()} == {next(iter(before.values())).dtype}
    session.undo_last()
    assert same_bits(model, after[1])
    session.undo_all()
    assert same_bits(model, before)
