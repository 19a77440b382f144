"""YAMLs of real models: their numbers fit those models, and each edits a tiny one of its family.

The tiny models are random ones of the real config classes.  A YAML is used as it stands, except
for sizes: as many layers as it names, but at the bottom of a shallow model, few steps and contexts,
an alpha in the tiny model's scale, and a covariance from a few texts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nse_plugin.data.published import MODELS
from nse_plugin.errors import ModelError
from nse_plugin.hparams import NSEHparams
from nse_plugin.hparams.yaml_files import yaml_dir
from nse_plugin.methods.nse import edit_round
from nse_plugin.methods.registry import find_method
from nse_plugin.model.families import FAMILIES
from nse_plugin.session.session import EditSession
from tests.tiny import TEXTS, some_requests, tiny_model


@dataclass(frozen=True)
class Real:
    """What is known of a real model."""

    family: str  # config.model_type
    n_layers: int
    config: dict[str, Any] = field(default_factory=dict)  # beside sizes, where not the default


TIED = {"tie_word_embeddings": True}
REAL = {
    "gpt2-xl": Real("gpt2", 48),
    "gpt-j-6B": Real("gptj", 28),
    "llama-7b": Real("llama", 32, {"num_key_value_heads": 4}),
    "llama3-8b": Real("llama", 32),
    "llama3.2-3b": Real("llama", 28, TIED),
    "mistral-7b": Real("mistral", 32),
    "qwen2-7b": Real("qwen2", 28),
    "qwen2.5-7b": Real("qwen2", 28),
    "qwen3-8b": Real("qwen3", 36),
    "gemma-2-9b": Real("gemma2", 42, TIED),
}
PUBLISHED = {  # methods.md, section 1.5: layers, lambda, alpha, upper, p, v_lr, steps
    "gpt2-xl": ([13, 14, 15, 16, 17], 10000, 35, 150, 1.0, 0.5, 20),
    "gpt-j-6B": ([3, 4, 5, 6, 7, 8], 15000, 15, 100, 0.8, 0.5, 25),
    "llama3-8b": ([4, 5, 6, 7, 8], 15000, 2.5, 50, 1.0, 0.1, 25),
}
each = pytest.mark.parametrize("name", REAL)


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(path_of(name).read_text(encoding="utf-8"))


def path_of(name: str) -> Path:
    return yaml_dir() / "NSE" / f"{name}.yaml"


def scaled_down(name: str, stats_dir: Path) -> dict[str, Any]:
    """The YAML's values, with sizes for a tiny model of one block below and one above."""
    config = read(name)
    layers = list(range(1, 1 + len(config["layers"])))
    return {
        **config,
        "model_name": "tiny",
        "device": "cpu",
        "layers": layers,
        "alpha": config["alpha"] / 100,  # residuals of the tiny models are 1 to 10
        "v_loss_layer": layers[-1] + 1,
        "v_num_grad_steps": 3,
        "n_contexts": 2,
        "context_length": 4,
        "mom2_dataset": str(TEXTS),
        "mom2_n_samples": 40,
        "stats_dir": str(stats_dir),
    }


def tiny_of(name: str):
    real = REAL[name]
    blocks = len(read(name)["layers"]) + 2
    return tiny_model(real.family, num_hidden_layers=blocks, **real.config)


def test_every_yaml_of_a_real_model_is_in_the_table():
    shipped = {path.stem for path in (yaml_dir() / "NSE").glob("*.yaml")}
    assert {name for name in shipped if not name.startswith("atlas-")} - set(MODELS) == set(REAL)


@each
def test_layers_are_those_of_the_real_model(name):
    hparams, n_layers = NSEHparams.from_hparams(f"NSE/{name}"), REAL[name].n_layers
    assert hparams.layers == list(range(hparams.layers[0], hparams.layers[-1] + 1))
    assert hparams.layers[-1] < n_layers / 2
    assert hparams.v_loss_layer == n_layers - 1


@each
def test_the_same_keys_in_the_same_order(name):
    assert list(read(name)) == list(read("gpt2-xl"))


@each
def test_where_the_settings_are_from_is_said(name):
    header = "".join(itertools.takewhile(lambda line: line.startswith("#"), path_of(name).open()))
    assert ("published with the paper (arXiv 2410.04045)" in header) == (name in PUBLISHED)
    assert ("not tuned" in header) == (name not in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    h = NSEHparams.from_hparams(f"NSE/{name}")
    found = (
        h.layers, h.mom2_update_weight, h.alpha, h.upper_bound, h.neuron_threshold, h.v_lr,
        h.v_num_grad_steps,
    )  # fmt: skip
    assert found == PUBLISHED[name]
    assert (h.clamp_norm_factor, h.kl_factor, h.v_weight_decay) == (0.75, 0.0625, 0.5)
    assert (h.max_iterations, h.selection_rule) == (2, "cover")
    assert (h.mom2_dataset, h.mom2_n_samples, h.mom2_dtype) == ("wikipedia", 100_000, "float32")


@each
def test_one_round_on_a_tiny_model_of_the_family(name, tokenizer, tmp_path):
    model = tiny_of(name)
    assert model.config.model_type == REAL[name].family in FAMILIES
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    hparams = NSEHparams.from_dict(scaled_down(name, tmp_path))
    session = EditSession.of(model, tokenizer)
    record = edit_round(session, some_requests(2), hparams)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {session.layout.down_name(layer) for layer in hparams.layers}
    assert all(torch.isfinite(after[key]).all() for key in changed)
    for outcome in record.outcomes:
        assert outcome.status != "out_of_bounds" and outcome.passes == hparams.max_iterations
        assert 0 < outcome.residual_after < outcome.residual_before < float("inf")
    if hparams.neuron_threshold < 1:
        assert all(len(write.neurons) < session.layout.d_ff for write in record.writes)


@pytest.mark.parametrize("name", ["gpt2-xl", "gemma-2-9b"])
def test_a_yaml_of_another_family_is_refused(name, tokenizer, tmp_path):
    other = {"gpt2-xl": "gpt-j-6B", "gemma-2-9b": "gpt2-xl"}[name]
    model = tiny_of(other)
    hparams = NSEHparams.from_dict(scaled_down(name, tmp_path))
    with pytest.raises(ModelError, match=f"{REAL[other].family} model has"):
        edit_round(EditSession.of(model, tokenizer), some_requests(1), hparams)


@each
def test_models_are_loaded_as_published_and_the_file_says_what_takes_half(name):
    files = [p for p in yaml_dir().rglob(f"{name}.yaml") if "OVERTONE" not in p.parts]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "\n# dtype: bfloat16 " in text and yaml.safe_load(text).get("dtype") is None
        halved = yaml.safe_load(text.replace("# dtype: bfloat16", "dtype: bfloat16"))
        assert find_method(halved["alg_name"]).hparams.from_dict(halved).dtype == "bfloat16"
