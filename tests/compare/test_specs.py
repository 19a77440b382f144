"""What may stand in --methods."""

from __future__ import annotations

import pytest

from nse_plugin.compare.plan import ModelSpec
from nse_plugin.compare.specs import parse_method, parse_methods
from nse_plugin.errors import HparamsError
from nse_plugin.hparams import NSEHparams
from nse_plugin.hparams.variants import VARIANTS
from nse_plugin.methods.registry import METHODS, find_method


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("NSE", {}),
        ("NSE:one-pass", {"max_iterations": 1}),
        ("NSE:other-tokens", {"other_token_weight": 1.0}),
        ("NSE:p=0.6", {"neuron_threshold": 0.6}),
        ("NSE:by-update;p=0.6", {"selection_by": "update", "neuron_threshold": 0.6}),
        ("NSE:layers=[1,2];v_loss_layer=null", {"layers": [1, 2], "v_loss_layer": None}),
        ("NSE: v_lr = 1e-1 ; mom2_adjustment=false", {"v_lr": 0.1, "mom2_adjustment": False}),
        ("NSE:v_lr=1e+2", {"v_lr": 100.0}),
    ],
)
def test_changes(text, changes):
    spec = parse_method(text)
    assert (spec.method, dict(spec.changes), spec.overtone, spec.ours) == (
        "NSE", changes, False, False,
    )  # fmt: skip


def test_about_names_variants_in_words_and_other_changes_as_given():
    words = VARIANTS["NSE"]["one-pass"].about
    assert parse_method("NSE:one-pass; v_lr = 0.2").about() == f"{words}; v_lr = 0.2"
    assert parse_method("NSE:p=0.6").about() == "p = 0.6" and parse_method("NSE").about() == ""


def test_changes_get_the_type_of_their_field():
    spec = parse_method("NSE:v_lr=1e-1;max_iterations=3")
    values = spec.values("atlas-gpt2", "atlas:gpt2")
    hparams = NSEHparams.from_dict(values)
    assert (hparams.v_lr, hparams.max_iterations, hparams.layers) == (0.1, 3, [1, 2])


def test_plugin_and_overtone():
    spec = parse_method("NSE-plugin:p=0.6+OVERTONE")
    assert (spec.method, spec.ours, spec.overtone) == ("NSE", True, True)
    assert spec.changes == {"neuron_threshold": 0.6}


def test_overtone_goes_around_the_method_s_yaml():
    spec = parse_method("NSE:p=0.6;epsilon=0.2;lambda=0.3+OVERTONE")
    values = spec.values("atlas-gpt2", "atlas:gpt2")
    hparams = find_method(values["alg_name"]).hparams.from_dict(values)
    assert (hparams.epsilon, hparams.lambda_, hparams.device) == (0.2, 0.3, "cpu")
    assert (hparams.base.neuron_threshold, hparams.base.v_lr) == (0.6, 0.3)
    assert hparams.base.model_name == "atlas:gpt2"


def test_commas_in_brackets_do_not_part_methods():
    names = [spec.name for spec in parse_methods("NSE, NSE:layers=[1,2] ,NSE:p=0.8")]
    assert names == ["NSE", "NSE:layers=[1,2]", "NSE:p=0.8"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NSEE", "did you mean 'NSE'"),
        ("NSE:no-rewindin", "did you mean 'no-rewinding'"),
        ("NSE:", "nothing follows the colon"),
        ("NSE:p=", "not key=value"),
        ("NSE:layers=[1", "cannot read 'layers=\\[1'"),
        ("NSE:model_name=x", "cannot be changed here"),
        ("NSE+OVERTON", "did you mean 'OVERTONE'"),
        ("NSE,NSE", "give each once"),
        (",", "methods is empty"),
    ],
)
def test_errors(text, said):
    with pytest.raises(HparamsError, match=said):
        parse_methods(text)


def test_every_variant_is_of_a_method_and_says_what_it_is():
    for method, variants in VARIANTS.items():
        assert method in METHODS
        for name, variant in variants.items():
            assert parse_method(f"{method}:{name}").about() == variant.about


def test_folders_differ_and_are_fit_for_a_disk():
    specs = parse_methods("NSE,NSE:p=0.6,NSE:p=0.8,NSE:layers=[1,2]")
    folders = [spec.folder for spec in specs]
    assert len(set(folders)) == 4
    assert all("/" not in folder and ":" not in folder for folder in folders)


def test_models(tmp_path):
    assert ModelSpec.parse("atlas:gpt2") == ModelSpec("atlas-gpt2", "atlas:gpt2")
    assert ModelSpec.parse("org/gpt2-xl") == ModelSpec("gpt2-xl", "org/gpt2-xl")
    assert ModelSpec.parse(f"tiny={tmp_path}") == ModelSpec("tiny", str(tmp_path))
    for text in ("", "=x", "a/b=x", "tiny="):
        with pytest.raises(HparamsError, match="models has"):
            ModelSpec.parse(text)
