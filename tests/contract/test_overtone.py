"""OVERTONE around our own editors, on every host."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.hparams import OvertoneHparams
from tests.contract.conftest import fact, quick
from tests.tiny import bits, same_bits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_edits_and_is_undone(editor_class, saved, family):
    hparams = OvertoneHparams.wrap(quick(model_name=saved[family]))
    editor = editor_class.from_hparams(hparams)
    before = bits(editor.model)
    metrics, _, originals = editor.edit(**fact(0), sequential_edit=False)
    assert metrics[0]["post"]["rewrite_acc"] and originals
    assert same_bits(editor.model, before)


def test_another_loss_gives_other_weights(editor_class, saved):
    edited = []
    for settings in ({}, {"lambda_": 1.0, "epsilon": 0.0}):
        base = quick(model_name=saved["gpt2"])
        editor = editor_class.from_hparams(OvertoneHparams.wrap(base, **settings))
        _, model, originals = editor.edit(**fact(0), sequential_edit=True)
        edited.append([model.get_parameter(name).detach().clone() for name in originals])
    assert not all(torch.equal(a, b) for a, b in zip(*edited))


def test_rounds_of_several(editor_class, saved):
    base = quick(model_name=saved["gpt2"], batch_size=2)
    editor = editor_class.from_hparams(OvertoneHparams.wrap(base))
    both = {name: column + fact(1)[name] for name, column in fact(0).items()}
    metrics, _, _ = editor.batch_edit(**both, sequential_edit=True)
    assert len(metrics) == 2
