"""The rows of the registry are called in one way."""

from __future__ import annotations

import inspect

import pytest

from nse_plugin.data.defaults import values_for
from nse_plugin.errors import HparamsError
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.registry import METHODS, attaches, find_method, hparams_from
from nse_plugin.requests import EditRequest
from nse_plugin.tune.stages import check_method
from tests.tiny import some_requests, tiny_hparams


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


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("given", ["NSE/smollm2-135m", {"alg_name": "NSE"}])
def test_the_name_of_a_yaml_is_no_hyperparameters(name, given):
    with pytest.raises(HparamsError, match="^hparams is .*; give hyperparameters, as load_hparams"):
        METHODS[name].edit_round(None, [EditRequest(0, "{} lives in", "Ann", "Oslo")], given)


@pytest.mark.parametrize(("name", "wrong"), [("v_num_grad_steps", 0), ("v_lr", -1), ("layers", [])])
def test_attributes_that_were_set_to_wrong_values_are_refused(name, wrong):
    hparams = tiny_hparams()
    setattr(hparams, name, wrong)
    with pytest.raises(HparamsError, match=f"^{name} is "):
        METHODS["NSE"].edit_round(None, some_requests(1), hparams)


@pytest.mark.parametrize("config", [{}, {"alg_name": None}, {"alg_name": 3}])
def test_a_yaml_without_the_name_of_a_method_is_refused(config):
    with pytest.raises(HparamsError, match=r"alg_name is (None|3); name a method"):
        hparams_from("my.yaml", config)


def test_overtone_beside_a_name_is_told_by_its_yaml():
    with pytest.raises(HparamsError, match="only nse compare takes METHOD.OVERTONE"):
        values_for("NSE:p=0.6+OVERTONE", "atlas:gpt2")
    with pytest.raises(HparamsError, match="^'NSA' is not a method .*; did you mean 'NSE'"):
        find_method("NSA")
    with pytest.raises(HparamsError, match="--hparams OVERTONE/NSE/atlas-gpt2"):
        find_method("NSE+OVERTONE")
    with pytest.raises(HparamsError, match="one of: .*OVERTONE/NSE/atlas-gpt2"):
        values_for("OVERTONE", "atlas:gpt2")
    with pytest.raises(HparamsError, match="copy the YAML OVERTONE/NSE/atlas-gpt2"):
        values_for("OVERTONE", "some/other")
    with pytest.raises(HparamsError, match="as OVERTONE/NSE/atlas-gpt2 does"):
        check_method("OVERTONE")
