"""Whole rounds of our MEMIT, AlphaEdit and ROME against EasyEdit's own, where there is an EasyEdit.

EASYEDIT_ROOT=/path/to/EasyEdit pytest tests/parity

Both sides get the same tiny model, contexts, statistics file and hyperparameters; each computes its
values itself.
"""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nse_plugin.hparams import AlphaEditHparams, MEMITHparams, ROMEHparams
from nse_plugin.methods.registry import METHODS
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import SecondMoment, write_npz
from tests.parity.fixture import CASES, FAMILIES, TOLERANCE, Fixture, as_requests, contexts

ROUNDS = CASES["published_nse"]["rounds"]
LAYERS = CASES["published_nse"]["layers"]
N_SAMPLES = 50
SETTINGS: dict[str, Any] = dict(
    fact_token="subject_last", v_num_grad_steps=12, v_lr=0.1, v_loss_layer=3, v_weight_decay=0.05,
    clamp_norm_factor=4.0, kl_factor=0.0625, mom2_adjustment=True, mom2_dataset="wikipedia",
    mom2_n_samples=N_SAMPLES, mom2_dtype="float32", device="cpu",
)  # fmt: skip
SPREAD = dict(SETTINGS, layers=LAYERS, layer_selection="all", mom2_update_weight=1.0)
CASES_BY_METHOD: dict[str, tuple[type, dict[str, Any]]] = {
    "MEMIT": (MEMITHparams, SPREAD),
    "AlphaEdit": (AlphaEditHparams, dict(SPREAD, nullspace_threshold=1.0, L2=0.5)),
    "ROME": (ROMEHparams, dict(SETTINGS, layers=LAYERS[-1:])),
    "ROME along k": (ROMEHparams, dict(SETTINGS, layers=LAYERS[-1:], mom2_adjustment=False)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES_BY_METHOD)
def test_weights_after_each_round(easyedit, family, case, tmp_path, monkeypatch):
    fixture = Fixture.of(family)
    kind, settings = CASES_BY_METHOD[case]
    settings = dict(settings, stats_dir=str(tmp_path))
    ours, theirs = fixture.model(), fixture.model()
    session = EditSession.of(ours, fixture.tokenizer())
    write_statistics(session, fixture, tmp_path)
    monkeypatch.setattr(session.untouched, "contexts", lambda _hparams: contexts())
    apply = host_method(kind.method, monkeypatch)
    host_settings = SimpleNamespace(
        **settings,
        **fixture.host_templates(session.layout),
        alg_name=kind.method,
        model_name={"gpt2": "gpt2-xl"}.get(family, family),
        P_loc=str(tmp_path / "there is none.pt"),
        context_template_length_params=[[5, 10]],
        batch_size=1,
    )
    monkeypatch.chdir(tmp_path)  # AlphaEdit writes its projection into the working directory
    hparams = kind(alg_name=kind.method, model_name="parity", **settings)
    requests = as_requests(CASES["requests"])
    before = copy.deepcopy(ours)
    for number, round_ in enumerate(ROUNDS):
        asked = [requests[i] for i in round_]
        METHODS[kind.method].edit_round(session, asked, hparams)
        for group in [[r] for r in asked] if kind is ROMEHparams else [asked]:
            wanted = [host_request(r) for r in group]
            apply(theirs, fixture.tokenizer(), wanted, host_settings)
        for layer in settings["layers"]:
            initial, got, expected = (
                EditSession.of(m, fixture.tokenizer()).layout.down(layer).weight.detach()
                for m in (before, ours, theirs)
            )
            written = (expected - initial).norm()
            difference = float((got - expected).norm() / written)
            print(f"{case} {family} round {number} layer {layer}: {difference:.1e}")
            assert written > 0.01 * initial.norm()
            assert difference < TOLERANCE


@pytest.mark.parametrize("method", ["ROME", "MEMIT", "AlphaEdit"])
def test_easyedits_yamls_load_unchanged(easyedit, method):
    paths = sorted((easyedit.path / "hparams" / method).glob("*.yaml"))
    assert len(paths) > 3
    for path in paths:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        hparams = METHODS[method].hparams.from_hparams(path)
        for key, value in values.items():
            found = getattr(hparams, key)
            assert found == (float(value) if isinstance(found, float) else value), key


def host_request(request: Any) -> dict[str, Any]:
    return {
        "case_id": request.case_id,
        "prompt": request.prompt,
        "subject": request.subject,
        "target_new": request.target_new,
    }


def host_method(method: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """EasyEdit's function, with our contexts and without what an earlier test left in it."""
    module_name, function = {
        "MEMIT": ("memit.memit_main", "apply_memit_to_model"),
        "AlphaEdit": ("alphaedit.AlphaEdit_main", "apply_AlphaEdit_to_model"),
        "ROME": ("rome.rome_main", "apply_rome_to_model"),
    }[method]
    module = importlib.import_module(f"easyeditor.models.{module_name}")
    texts = [f"{text}{{}}" for text in contexts()]
    templates = ["{}", *texts] if method == "ROME" else [["{}"], texts]
    monkeypatch.setattr(module, "CONTEXT_TEMPLATES_CACHE", templates)
    if method == "ROME":
        direction = importlib.import_module("easyeditor.models.rome.compute_u")
        monkeypatch.setattr(direction, "inv_mom2_cache", {})
    else:
        monkeypatch.setattr(module, "COV_CACHE", {})
    if method == "AlphaEdit":
        monkeypatch.setattr(module, "P_loaded", False)
        monkeypatch.setattr(module, "cache_c_new", False)
    return getattr(module, function)


def write_statistics(session: EditSession, fixture: Fixture, folder: Any) -> None:
    """A file of EasyEdit's kind, which both sides read."""
    for layer in LAYERS:
        moment = SecondMoment(
            fixture.tensors[f"inputs.covariance.{layer}"], 1000, N_SAMPLES, "wikipedia"
        )
        write_npz(folder, session.layout, layer, moment)
