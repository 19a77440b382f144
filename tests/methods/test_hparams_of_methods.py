"""Key by key, the YAMLs that EasyEdit has for these methods, and the settings of ours."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import nse_plugin
from nse_plugin.errors import HparamsError
from nse_plugin.hparams.yaml_files import yaml_dir
from nse_plugin.methods.registry import METHODS, find_method
from nse_plugin.session.session import EditSession
from tests.methods.brute import hparams_of
from tests.tiny import some_requests, tiny_model

SHARED = """
model_name: ./hugging_cache/gpt2-xl
stats_dir: ./data/stats
device: 0
fact_token: subject_last
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 47
v_weight_decay: 1e-3
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: false
rewrite_module_tmp: transformer.h.{}.mlp.c_proj
layer_module_tmp: transformer.h.{}
mlp_module_tmp: transformer.h.{}.mlp
attn_module_tmp: transformer.h.{}.attn
ln_f_module: transformer.ln_f
lm_head_module: transformer.wte
mom2_dataset: wikipedia
mom2_n_samples: 100000
mom2_dtype: float32
model_parallel: false
max_length: 40
"""
KEYS = {
    "ROME": "layers: [17]\ncontext_template_length_params: [[5, 10], [10, 10]]\nfp16: true\n",
    "MEMIT": "layers: [13, 14]\nlayer_selection: all\nmom2_update_weight: 20000\nbatch_size: 5\n",
    "AlphaEdit": (
        "layers: [13, 14]\nlayer_selection: all\nmom2_update_weight: 20000\nbatch_size: 5\n"
        "nullspace_threshold: 2e-2\nL2: 10\nP_loc: ./null_space_project.pt\n"
    ),
}
each = pytest.mark.parametrize("method", KEYS)
REAL = {"gpt2-xl": 48, "gpt-j-6B": 28, "llama3-8b": 32}


def easyedits(method: str, **changes: Any) -> dict[str, Any]:
    """A YAML of the toolkit, with some keys changed."""
    return {"alg_name": method, **yaml.safe_load(SHARED + KEYS[method]), **changes}


@each
def test_easyedits_keys_are_taken(method):
    hparams = METHODS[method].hparams.from_dict(easyedits(method))
    assert (hparams.v_lr, hparams.v_weight_decay, hparams.device) == (0.5, 0.001, 0)
    again = type(hparams).from_dict(hparams.to_dict())
    assert again == hparams
    assert getattr(nse_plugin, f"{method}Hparams") is type(hparams)


@each
def test_the_name_with_which_ours_is_found_beside_easyedits(method):
    ours = METHODS[method].hparams.from_dict(easyedits(method, alg_name=f"{method}-plugin"))
    assert find_method(ours.alg_name) is METHODS[method]


@each
def test_a_key_of_another_method_is_refused(method):
    with pytest.raises(HparamsError, match="unknown key 'neuron_threshold'"):
        METHODS[method].hparams.from_dict(easyedits(method, neuron_threshold=0.8))


@each
@pytest.mark.parametrize("name", REAL)
def test_shipped_settings_fit_their_models(method, name):
    hparams = METHODS[method].hparams.from_hparams(f"{method}/{name}")
    assert hparams.v_loss_layer == REAL[name] - 1 and hparams.layers[-1] < REAL[name] / 2
    assert hparams.clamp_norm_factor == (4 if method == "ROME" else 0.75)
    assert (hparams.kl_factor, hparams.mom2_n_samples) == (0.0625, 100_000)
    keys = list(yaml.safe_load((yaml_dir() / method / f"{name}.yaml").read_text()))
    assert keys == list(yaml.safe_load((yaml_dir() / method / "gpt2-xl.yaml").read_text()))


@pytest.mark.parametrize("method", ["MEMIT", "ROME"])
def test_values_go_further_by_the_margin(method, tokenizer, tmp_path):
    found, settings = METHODS[method], {"clamp_norm_factor": 100.0, "stats_dir": str(tmp_path)}
    shifts = []
    for margin in (0.0, 0.25):
        hparams = hparams_of(found.hparams, layers=[2], value_margin=margin, **settings)
        session = EditSession.of(model := tiny_model("gpt2"), tokenizer)
        record = found.edit_round(session, some_requests(1), hparams)
        shifts.append(record.outcomes[0].z_shift)
        assert model is session.model  # a session lives as long as its model
    assert shifts[1] == pytest.approx(1.25 * shifts[0])
