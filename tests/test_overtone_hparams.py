"""OVERTONE's hyperparameters: a base editor's, read through, and a few of its own."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import yaml

from nse_plugin.data.models import load_model
from nse_plugin.errors import HparamsError
from nse_plugin.hparams import NSEHparams, OvertoneHparams
from nse_plugin.hparams.overtone import OTHERWISE, SETTINGS
from nse_plugin.hparams.yaml_files import yaml_dir
from nse_plugin.methods.registry import attaches
from tests.tiny import tiny_hparams, tiny_model, tiny_tokenizer

INLINE = {"alg_name": "NSE", "model_name": "m", "layers": [1, 2], "batch_size": 7, "seed": 3}
YAMLS = sorted((yaml_dir() / "OVERTONE").rglob("*.yaml"))


def read(**config):
    return OvertoneHparams.from_dict({"alg_name": "OVERTONE", **config})


def test_a_base_by_name_by_path_and_written_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(INLINE))
    inline, by_path = read(base=INLINE), read(base=str(path))
    assert inline == by_path and inline.base == NSEHparams.from_dict(INLINE)
    named = read(base="NSE/atlas-gpt2")
    assert named.base == NSEHparams.from_hparams("NSE/atlas-gpt2")
    assert named.model_name == "atlas:gpt2" and named.layers == named.base.layers


def test_what_all_methods_share_is_the_bases_unless_said_otherwise():
    plain = read(base=INLINE)
    assert (plain.batch_size, plain.seed, plain.model_name) == (7, 3, "m")
    changed = read(base=INLINE, batch_size=2, model_name="other")
    assert (changed.batch_size, changed.base.batch_size, changed.seed) == (2, 2, 3)
    assert changed.model_name == changed.base.model_name == "other"


def test_the_base_sees_what_was_changed_later():
    hparams = read(base=INLINE)
    hparams.batch_size, hparams.device = 4, "cpu"  # as a host does
    assert hparams.for_base() == dataclasses.replace(hparams.base, batch_size=4)
    assert hparams.for_base().alg_name == "NSE"


def test_lambda_in_a_yaml_is_lambda_with_a_dash_in_python():
    hparams = read(base=INLINE, **{"lambda": 0.3})
    assert hparams.lambda_ == 0.3 and hparams.to_dict()["lambda"] == 0.3
    with pytest.raises(HparamsError, match="unknown key 'lambda_'.*'lambda'"):
        read(base=INLINE, lambda_=0.3)


def test_what_it_writes_gives_the_same_again():
    hparams = read(base=INLINE, epsilon=0.2, filter=False)
    assert OvertoneHparams.from_dict(yaml.safe_load(yaml.safe_dump(hparams.to_dict()))) == hparams


def test_secrets_and_models_are_not_written():
    ready = (tiny_model("gpt2"), tiny_tokenizer())
    hparams = OvertoneHparams.wrap(tiny_hparams(model_name=ready, api_key="secret"))
    assert "secret" not in yaml.safe_dump(hparams.to_dict())
    assert hparams.to_dict()["model_name"] == hparams.to_dict()["base"]["model_name"] == "tiny-gpt2"
    assert load_model(hparams)[0] is ready[0]


def test_copies_are_whole():
    hparams = read(base=INLINE)
    for other in (copy.copy(hparams), copy.deepcopy(hparams), dataclasses.replace(hparams)):
        assert other == hparams and other.layers == [1, 2]


def test_attributes_of_nobody_are_missing():
    hparams = read(base=INLINE)
    assert not hasattr(hparams, "nothing") and not hasattr(hparams, "__nothing__")
    assert getattr(hparams, "n_contexts", None) == 5


@pytest.mark.parametrize("config, what", [
    ({"base": INLINE, "epsilom": 1}, "unknown key 'epsilom'.*epsilon.*go under base"),
    ({"base": INLINE, "v_lr": 1}, "unknown key 'v_lr'.*go under base"),
    ({"lambda": 0.1}, "missing key.*'base'"),
    ({"base": INLINE, "lambda": 2}, "lambda is 2; it must be a number from 0 to 1"),
    ({"base": INLINE, "epsilon": -1}, "epsilon is -1"),
    ({"base": INLINE, "clip": "no"}, "clip is 'no'"),
    ({"base": "NSE/atlas-gpt3"}, "no hparams file 'NSE/atlas-gpt3'.*did you mean"),
    ({"base": {"layers": [1]}}, "base has no alg_name"),
    ({"base": 3}, "base has no alg_name"),
    ({"base": {**INLINE, "alg_name": "NSF"}}, "alg_name 'NSF'.*NSE"),
    ({"base": {**INLINE, "layerz": [1]}}, "base: unknown key 'layerz'"),
    ({"base": {"alg_name": "OVERTONE", "base": INLINE}}, "alg_name 'OVERTONE'"),
])  # fmt: skip
def test_what_is_wrong_is_named(config, what):
    with pytest.raises(HparamsError, match=f"(?s){what}"):
        OvertoneHparams.from_dict({"alg_name": "OVERTONE", **config})


def test_a_base_has_to_be_hyperparameters():
    with pytest.raises(HparamsError, match="base is 'NSE/atlas-gpt2'.*wrap"):
        OvertoneHparams(alg_name="OVERTONE", model_name="m", base="NSE/atlas-gpt2")


def own_of(hparams):
    return {name: getattr(hparams, name) for name in OTHERWISE}


def test_defaults_are_the_published_ones_of_the_base(monkeypatch):
    plain = read(base=INLINE)
    assert own_of(plain) == OTHERWISE
    monkeypatch.setattr(NSEHparams, "method", "WISE")  # a base of which something was published
    base = NSEHparams(**{**INLINE, "alg_name": "WISE"})
    around = OvertoneHparams.wrap(base)
    assert own_of(around) == dict(lambda_=0.1, epsilon=0.05, n_sigma=1.0)
    assert OvertoneHparams.wrap(base, n_sigma=2.0).n_sigma == 2.0


def test_published_settings():
    """methods.md, section 2."""
    assert {
        "FT": dict(lambda_=0.1, epsilon=0.01, n_sigma=0.5),
        "LoRA": dict(lambda_=0.1, epsilon=0.05, n_sigma=0.5),
        "MELO": dict(lambda_=0.1, epsilon=0.05, n_sigma=1.0),
        "WISE": dict(lambda_=0.1, epsilon=0.05, n_sigma=1.0),
    } == SETTINGS


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_yamls_name_the_base_of_their_folder(path):
    hparams = OvertoneHparams.from_hparams(path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(config["base"], str):
        assert config["base"] == f"{path.parent.name}/{path.stem}"
    assert hparams.base.method == path.parent.name
    if hparams.base.method in SETTINGS:
        assert own_of(hparams) == SETTINGS[hparams.base.method]


def test_whether_modules_are_attached_is_the_bases():
    assert attaches(OvertoneHparams.from_hparams("OVERTONE/LoRA/atlas-gpt2"))
    assert not attaches(OvertoneHparams.from_hparams("OVERTONE/FT/atlas-gpt2"))
