"""Hyperparameters: every shipped YAML loads, everything wrong is refused by name."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from nse_plugin import (
    MEMITHparams,
    NSEHparams,
    NSEHyperParams,
    OvertoneHparams,
    OvertoneHyperParams,
    hparams_for,
)
from nse_plugin.compare.specs import parse_methods
from nse_plugin.errors import HparamsError
from nse_plugin.hparams.yaml_files import yaml_dir
from nse_plugin.methods.registry import METHODS, find_method

GOOD = {"alg_name": "NSE", "model_name": "m", "layers": [1, 2]}
SHIPPED = sorted(yaml_dir().rglob("*.yaml"))


def str_of(path):
    return str(path.relative_to(yaml_dir()).with_suffix(""))


@pytest.mark.parametrize("path", SHIPPED, ids=str_of)
def test_every_yaml_loads_by_path_and_by_name(path):
    name = path.relative_to(yaml_dir()).parts[0]
    kind = find_method(name).hparams
    by_path = kind.from_hparams(path)
    by_name = kind.from_hparams(str_of(path))
    assert by_path == by_name and by_path.alg_name == name


@pytest.mark.parametrize("path", SHIPPED, ids=str_of)
def test_every_key_of_a_yaml_is_commented(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if line and not line.startswith(("#", " "))]
    bare = [line for line in keys if "#" not in line]
    assert [line.split(":")[0] for line in bare if line.split(":")[0] not in
            ("alg_name", "model_name", "device")] == []  # fmt: skip


def test_there_is_a_yaml_for_every_method():
    assert set(METHODS) <= {path.relative_to(yaml_dir()).parts[0] for path in SHIPPED}


def test_the_toolkits_names():
    assert NSEHyperParams is NSEHparams and OvertoneHyperParams is OvertoneHparams


def test_easyedits_memit_keys_are_taken():
    keys = dict(
        GOOD, stats_dir="s", device=0, clamp_norm_factor=0.75, layer_selection="all",
        fact_token="subject_last", v_num_grad_steps=20, v_lr="5e-1", v_loss_layer=47,
        v_weight_decay=0.5, kl_factor=0.0625, mom2_adjustment=True, mom2_update_weight=20000,
        rewrite_module_tmp="transformer.h.{}.mlp.c_proj", layer_module_tmp="transformer.h.{}",
        mlp_module_tmp="transformer.h.{}.mlp", attn_module_tmp="transformer.h.{}.attn",
        ln_f_module="transformer.ln_f", lm_head_module="transformer.wte",
        mom2_dataset="wikipedia", mom2_n_samples=100000, mom2_dtype="float32",
        model_parallel=False, batch_size=1, max_length=40,
    )  # fmt: skip
    assert NSEHparams.from_dict(keys).device == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neuron_threshold": 0}, "neuron_threshold is 0; it must be a number above 0 and at most"),
        ({"v_lr": 0}, "v_lr is 0; it must be a number above 0"),
        ({"v_num_grad_steps": 0}, "v_num_grad_steps is 0; it must be a whole number of at least 1"),
        ({"fact_token": "last"}, "fact_token is 'last'; it must be 'subject_last'"),
        ({"layers": []}, r"layers is \[\]; give block numbers"),
        ({"layers": [2, 1]}, r"layers is \[2, 1\]; .* in rising order"),
        ({"layers": [1, 1]}, r"layers is \[1, 1\]"),
        ({"layers": [-1]}, r"layers is \[-1\]"),
        ({"alg_name": "MEMIT"}, "alg_name is 'MEMIT', and NSEHparams is for 'NSE'"),
        ({"alpha": 5, "upper_bound": 5}, "upper_bound is 5.0 and alpha is 5.0"),
        ({"other_token_weight": 1, "mom2_adjustment": False}, "other_token_weight is 1.0, a mult"),
        ({"alpha": 5, "alpha_relative": 0.1}, "alpha is 5.0 and alpha_relative is 0.1"),
        ({"v_lr": 5, "v_lr_relative": 0.1}, "v_lr is 5.0 and v_lr_relative is 0.1"),
        ({"upper_bound": 5, "upper_bound_relative": 2}, "upper_bound is 5.0 and upper_bound_relat"),
        (
            {"mom2_update_weight": 9, "mom2_update_weight_relative": 0.2},
            "mom2_update_weight is 9.0",
        ),
        ({"v_loss_layer": 1}, "v_loss_layer is 1, below the z-layer 2"),
        ({"device": [1]}, r"device is \[1\]"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(HparamsError, match=message):
        NSEHparams.from_dict({**GOOD, **change})


def test_missing_keys_and_files(tmp_path):
    with pytest.raises(HparamsError, match="missing key.* 'layers'"):
        NSEHparams.from_dict({"alg_name": "NSE", "model_name": "m"})
    with pytest.raises(HparamsError, match=r"NSE/atlas-gpt.*did you mean 'NSE/atlas-gpt2'"):
        NSEHparams.from_hparams("NSE/atlas-gpt")
    path = tmp_path / "a.yaml"
    for text, message in [("a: [", "is not YAML"), ("- 1", "holds list"), ("v_lr: 1", "missing")]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(HparamsError, match=message) as caught:
            NSEHparams.from_hparams(path)
        assert str(path) in str(caught.value)


def test_stable_is_the_same_for_nse_and_memit():
    changes = dict(
        merge_subjects=True, consolidate_every_edits=100, consolidate_below=0.95, repair_rounds=3,
        other_token_weight=1.0, avoid_sinks=True, repair_weight=4.0,
    )  # fmt: skip
    for method, more in (("NSE", {"max_iterations": 1}), ("MEMIT", {})):
        hparams = METHODS[method].hparams
        plain = hparams.from_hparams(f"{method}/atlas-gpt2")
        found = hparams.from_hparams(f"{method}:stable/atlas-gpt2")
        assert found == dataclasses.replace(plain, **changes, **more)


def test_changes_follow_the_method_in_a_name(tmp_path, monkeypatch):
    plain = NSEHparams.from_hparams("NSE/atlas-gpt2")
    found = NSEHparams.from_hparams("NSE:repair-all;v_lr=2e-2;repair_every=3/atlas-gpt2")
    assert found == dataclasses.replace(plain, repair_rounds=1, repair_every=3, v_lr=0.02)
    around = OvertoneHparams.from_dict({"alg_name": "OVERTONE", "base": "NSE:one-pass/atlas-gpt2"})
    assert around.base == dataclasses.replace(plain, max_iterations=1)
    for name, message in [
        ("NSE:repiar/atlas-gpt2", "NSE has no variant 'repiar'; did you mean 'repair'"),
        ("NSE:/atlas-gpt2", "nothing follows the colon"),
        ("NSE:repair/atlas-gpt", "no hparams file 'NSE/atlas-gpt'; did you mean"),
        ("NSE:p=0/atlas-gpt2", "neuron_threshold"),
        ("NSE:v_lrr=1/atlas-gpt2", "v_lrr.*did you mean 'v_lr'"),
    ]:
        with pytest.raises(HparamsError, match=message):
            NSEHparams.from_hparams(name)
    monkeypatch.chdir(tmp_path)  # a file of that name goes first
    (tmp_path / "NSE:repair").mkdir()
    (tmp_path / "NSE:repair/own.yaml").write_text(yaml.safe_dump(plain.to_dict()), encoding="utf-8")
    assert NSEHparams.from_hparams("NSE:repair/own.yaml") == plain


def test_changes_to_a_yaml_by_path(tmp_path, monkeypatch):
    plain = NSEHparams.from_hparams("NSE/atlas-gpt2")
    path = tmp_path / "tuned" / "my.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(plain.to_dict()), encoding="utf-8")
    changed = dataclasses.replace(plain, repair_rounds=1)
    assert NSEHparams.from_hparams(f"NSE:repair/{path}") == changed
    monkeypatch.chdir(path.parent)
    assert NSEHparams.from_hparams("NSE:repair/my.yaml") == changed
    with pytest.raises(HparamsError, match="changes MEMIT, and my.yaml has alg_name: NSE"):
        MEMITHparams.from_hparams("MEMIT:repair/my.yaml")
    with pytest.raises(HparamsError, match="no hparams file 'NSE/mine.yaml'"):
        NSEHparams.from_hparams("NSE:repair/mine.yaml")


def test_a_change_replaces_the_other_form_of_a_setting():
    gemma = NSEHparams.from_hparams("NSE/gemma3-270m")
    assert gemma.v_lr_relative and not gemma.mom2_update_weight_relative
    found = NSEHparams.from_hparams("NSE:v_lr=8;mom2_update_weight_relative=0.5/gemma3-270m")
    assert (found.v_lr, found.v_lr_relative) == (8, None)
    assert (found.mom2_update_weight, found.mom2_update_weight_relative) == (None, 0.5)
    general = hparams_for("NSE", "atlas:gpt2", mom2_update_weight_relative=2.0)
    assert general.covariance_weight(100) == 200
    (spec,) = parse_methods("NSE:v_lr=8+OVERTONE")
    base = spec.values("gemma3-270m", "gemma3-270m")["base"]
    assert base["v_lr"] == 8 and "v_lr_relative" not in base
    with pytest.raises(HparamsError, match="both set the same quantity"):
        NSEHparams.from_hparams("NSE:v_lr=8;v_lr_relative=0.1/gemma3-270m")


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("alg_name: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(HparamsError, match="is not YAML"):
        NSEHparams.from_hparams(path)


def test_two_data_types_are_refused():
    assert NSEHparams.from_dict(GOOD | {"fp16": True, "dtype": "float16"}).fp16
    with pytest.raises(HparamsError, match="fp16 is true and dtype is 'bfloat16'"):
        NSEHparams.from_dict(GOOD | {"fp16": True, "dtype": "bfloat16"})
