"""Methods of a host that attach modules, or take one request at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nse_plugin.easyedit.backend import HostBackend
from nse_plugin.errors import DataError, HostError
from nse_plugin.runs.scheduler import SequentialScheduler
from tests.runs.runs import HELD_OUT, interrupt, protocol, requests
from tests.tiny import tiny_model, tiny_tokenizer


class Shifted(nn.Module):
    """A layer with something added to what it gives."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.shift = layer, nn.Parameter(torch.zeros(1))

    def forward(self, *args):
        return self.layer(*args) + self.shift


class Wrapper(nn.Module):
    """What EasyEdit's GRACE and LoRA return: another object, with the model inside."""

    def __init__(self, model):
        super().__init__()
        self.model = model


class Hparams:
    alg_name = "SHIFT"


def attach(calls, step=0.5):
    """A method that shifts a layer's output a little further at each call."""

    def apply(model, tok, records, hparams, **_options):
        calls.append(len(records))
        mlp = model.transformer.h[1].mlp
        if not isinstance(mlp.c_fc, Shifted):
            mlp.c_fc = Shifted(mlp.c_fc)
        mlp.c_fc.shift.data += step
        return Wrapper(model), lambda: None

    return apply


def scheduled(folder, engine):
    return SequentialScheduler(
        engine, requests(), 2, protocol(fluency=0), folder, held_out=HELD_OUT
    )


def engine(apply, **changes):
    return HostBackend(tiny_model("gpt2"), tiny_tokenizer(), apply, Hparams(), 0, **changes)


def test_what_is_attached_is_measured(tmp_path):
    calls = []
    made = engine(attach(calls))
    result = scheduled(tmp_path, made).run()
    assert result.status == "complete" and calls == [2, 2, 2]
    assert made.model.transformer.h[1].mlp.c_fc.shift.item() == 1.5
    assert result.final["measurement"]["all"]["locality"] < 1


def test_one_request_at_a_time(tmp_path):
    calls = []
    scheduled(tmp_path, engine(attach(calls), whole_rounds=False)).run()
    assert calls == [1] * 6


def test_it_can_neither_go_on_nor_be_undone(tmp_path):
    first = engine(attach([]))
    interrupt(scheduled(tmp_path, first), after=1)
    with pytest.raises(DataError, match="start again"):
        scheduled(tmp_path, engine(attach([]))).run()
    with pytest.raises(HostError, match="use SHIFT-plugin"):
        first.undo()
    with pytest.raises(HostError, match="cannot be put aside"), first.rewound():
        pass


def test_not_finite_is_noticed(tmp_path):
    made = engine(attach([], step=float("nan")))
    made.edit(requests(2), 1)
    assert made.problem() == "weights"


def test_another_model_is_refused(tmp_path):
    def apply(model, tok, records, hparams, **_options):
        return tiny_model("gpt2"), {}

    with pytest.raises(HostError, match="another model"):
        engine(apply).edit(requests(2), 1)


def test_requests_one_by_one_keep_what_stood_before_the_round():
    def apply(model, tok, records, hparams, **_options):
        weight = model.transformer.h[1].mlp.c_proj.weight
        before = weight.detach().clone()
        weight.data += 1
        return model, {"transformer.h.1.mlp.c_proj.weight": before}

    made = engine(apply, whole_rounds=False)
    weight = made.model.transformer.h[1].mlp.c_proj.weight
    before = weight.detach().clone()
    made.edit(requests(3), 1)
    assert torch.allclose(weight, before + 3)
    made.undo()
    assert torch.equal(weight, before)
