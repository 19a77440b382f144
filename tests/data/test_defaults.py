"""Settings for a model without a YAML: those that ship where there are some, else by its depth."""

from __future__ import annotations

import dataclasses

import pytest

from nse_plugin import NSEHparams, hparams_for
from nse_plugin.data.defaults import values_for
from nse_plugin.errors import HparamsError, ModelError
from nse_plugin.hparams.variants import read_method_yaml
from nse_plugin.methods.registry import hparams_from
from nse_plugin.runs.settings import RunSettings
from tests.tiny import tiny_model


def test_a_yaml_that_ships_goes_first():
    shipped = read_method_yaml("MEMIT/atlas-gpt2")
    assert values_for("MEMIT", "atlas:gpt2") == shipped
    changed = values_for("MEMIT:previous-keys;v_lr=2e-2", "atlas:gpt2")
    assert changed == shipped | {"use_previous_keys": True, "v_lr": 0.02}
    ours = values_for("MEMIT-plugin:previous-keys", "atlas:gpt2")  # also where the host has one
    assert ours == shipped | {"use_previous_keys": True, "alg_name": "MEMIT-plugin"}


def test_hyperparameters_of_a_method_for_a_model(tmp_path):
    shipped = NSEHparams.from_hparams("NSE:stable/atlas-gpt2")
    assert hparams_for("NSE:stable", "atlas:gpt2") == shipped
    assert hparams_for("NSE:stable", "atlas:gpt2", v_lr=0.3).v_lr == 0.3
    folder = tmp_path / "mine"
    tiny_model("llama").config.save_pretrained(folder)
    general = hparams_for("NSE", str(folder))
    assert (general.model_name, general.v_optimizer) == (str(folder), "polyak")
    with pytest.raises(HparamsError, match="v_lrr"):
        hparams_for("NSE", "atlas:gpt2", v_lrr=0.3)


@pytest.mark.parametrize("method", ["NSE", "MEMIT"])
def test_general_settings_are_those_of_smollm2(tmp_path, method):
    tiny_model("llama", num_hidden_layers=30).config.save_pretrained(tmp_path)
    general = hparams_for(method, str(tmp_path))
    shipped = hparams_for(method, "smollm2-135m")
    assert shipped.covariance_weight(1536) == general.covariance_weight(1536) == 1536
    same = {"mom2_update_weight": None, "mom2_update_weight_relative": 1.0}
    assert dataclasses.replace(shipped, model_name=str(tmp_path), **same) == general


@pytest.mark.parametrize(("n_layers", "layers"), [(30, [4, 5, 6, 7, 8]), (2, [0, 1]), (1, [0])])
def test_layers_follow_the_depth_of_a_model_without_a_yaml(tmp_path, n_layers, layers):
    changes = {"num_hidden_layers": n_layers}
    tiny_model("llama", **changes).config.save_pretrained(tmp_path / "mine")
    for method in ("NSE", "MEMIT", "AlphaEdit", "ROME", "FT"):
        hparams = hparams_from(method, values_for(method, str(tmp_path / "mine")))
        one = method in ("ROME", "FT")
        assert hparams.layers == ([max(0, layers[-1] - 2)] if one else layers)
    assert values_for("NSE:repair", str(tmp_path / "mine"))["repair_rounds"] == 1
    assert values_for("NSE", str(tmp_path / "mine"))["mom2_update_weight_relative"] == 1.0
    with pytest.raises(HparamsError, match="nse tune --method LoRA"):
        values_for("LoRA", str(tmp_path / "mine"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="cannot read the config"):
        values_for("NSE", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hparams": "a", "method": "NSE", "model": "m"}, "leave one out"),
        ({"method": "NSE"}, "model is missing"),
        ({}, "hparams is missing; give --hparams, or --method with --model"),
    ],
)
def test_a_run_has_one_method(given, message):
    with pytest.raises(HparamsError, match=message):
        RunSettings.from_dict({"data": "atlas:4", **given})
