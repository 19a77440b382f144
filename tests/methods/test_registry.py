"""The rows of the registry are called in one way."""

from __future__ import annotations

import inspect

import pytest

from nse_plugin.methods.bases import BASES
from nse_plugin.methods.registry import METHODS, attaches


@pytest.mark.parametrize("name", METHODS)
def test_the_name_is_that_of_the_hyperparameters(name):
    assert METHODS[name].name == name == METHODS[name].hparams.method


@pytest.mark.parametrize("name", BASES)
def test_every_base_takes_a_loss_and_a_trace(name):
    taken = list(inspect.signature(BASES[name].edit_round).parameters)
    assert taken[:5] == ["session", "requests", "hparams", "objective", "trace"]


def test_the_name_for_ours_beside_the_hosts_is_the_same_method():
    hparams = METHODS["LoRA"].hparams(
        alg_name="LoRA-plugin", model_name="m", target_modules=["c_attn"]
    )
    assert attaches(hparams)
