"""What one call of an editor does and returns, the same on every host."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from nse_plugin.data.readers import parse_records
from nse_plugin.easyedit.editor import ReadyModel
from nse_plugin.errors import HparamsError, ModelError, RequestError
from nse_plugin.session.session import EditSession
from tests.contract.conftest import atlas_hparams, fact, facts, probes, quick
from tests.tiny import tiny_model, tiny_tokenizer


def edited_weights(editor, model=None):
    model = model or editor.model
    layout = EditSession.of(model, editor.tok).layout
    return {
        layout.down_name(layer): layout.down(layer).weight.detach().clone()
        for layer in editor.hparams.layers
    }


def state(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def same(left, right):
    return left.keys() == right.keys() and not changed(left, right)


# --- edit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_sequential_edit_changes_the_named_layers_and_nothing_else(make_editor, family):
    editor = make_editor(family)
    before = state(editor.model)
    metrics, model, originals = editor.edit(**facts(), sequential_edit=True, verbose=False)
    assert model is editor.model and len(metrics) == 3
    names = set(edited_weights(editor))
    assert len(names) == 2 and changed(before, state(model)) == names == set(originals)
    session = EditSession.of(model)
    assert len(session.ledger) == 3
    session.check()
    session.undo_all()
    assert same(before, state(model))


def test_the_metrics_have_easyedits_schema(make_editor):
    editor = make_editor("llama")
    metrics, *_ = editor.edit(**facts(), **probes(), sequential_edit=True, verbose=False)
    for number, metric in enumerate(metrics):
        assert set(metric) == {"case_id", "requested_rewrite", "pre", "post"}
        assert metric["case_id"] == number
        rewrite = metric["requested_rewrite"]
        assert rewrite["target_new"] == facts()["target_new"][number]
        assert rewrite["rephrase_prompt"] == probes()["rephrase_prompts"][number]
        for phase in ("pre", "post"):
            for name in ("rewrite_acc", "rephrase_acc"):
                (value,) = metric[phase][name]
                assert 0 <= value <= 1
            assert set(metric[phase]["portability"]) == {"hop_acc"}
            assert {"rewrite", "rephrase"} <= set(metric[phase]["metric_meta"])
        several = [] if number == 2 else ["far"]  # the last fact has no such probes
        outputs = {f"{kind}_output" for kind in ("near", *several)}
        assert set(metric["pre"]["locality"]) == outputs
        assert set(metric["post"]["locality"]) == outputs | {
            f"{kind}_acc" for kind in ("near", *several)
        }
        assert len(metric["post"]["locality"]["near_acc"]) == 1
        if several:
            assert len(metric["post"]["locality"]["far_acc"]) == 2
    json.dumps(metrics, default=float)


def test_one_fact_may_be_given_as_texts(make_editor):
    editor, other = make_editor(), make_editor()
    (metric,), *_ = editor.edit(
        **{name: values[0] for name, values in fact(0).items()},
        sequential_edit=True,
        verbose=False,
    )
    other.edit(**fact(0), sequential_edit=True, verbose=False)
    assert metric["requested_rewrite"]["subject"] == "Mara Voss"
    assert same(edited_weights(editor), edited_weights(other))


def test_edit_requests_takes_the_same_facts_as_dicts(make_editor):
    editor, other = make_editor(), make_editor()
    metrics, *_ = editor.edit(**facts(), **probes(), sequential_edit=True, verbose=False)
    requests = [dict(metric["requested_rewrite"]) for metric in metrics]
    again, model, _ = other.edit_requests(requests, sequential_edit=True, verbose=False)
    assert again == metrics and model is other.model
    assert same(edited_weights(editor), edited_weights(other))


def test_edit_refuses_a_batch_size_and_changes_nothing(make_editor):
    editor = make_editor(batch_size=2)
    before = state(editor.model)
    with pytest.raises((AssertionError, HparamsError), match="batch_size"):
        editor.edit(**facts(), verbose=False)
    assert same(before, state(editor.model))


@pytest.mark.parametrize(
    "wrong", [{"subject": ["Nobody"]}, {"subject": None}, {"target_new": [""]}]
)
def test_a_request_that_cannot_be_used_changes_nothing(make_editor, wrong):
    editor = make_editor()
    before = state(editor.model)
    arguments = {name: value for name, value in (fact(0) | wrong).items() if value is not None}
    with pytest.raises((AssertionError, RequestError)):
        editor.edit(**arguments, sequential_edit=True, verbose=False)
    assert same(before, state(editor.model))


def test_wrong_layers_are_named_and_change_nothing(make_editor):
    editor = make_editor(layers=[2, 7])
    before = state(editor.model)
    with pytest.raises(ModelError, match="7"):
        editor.edit(**facts(), sequential_edit=True, verbose=False)
    assert same(before, state(editor.model))


# --- batch_edit -----------------------------------------------------------------------------------


def test_batch_edit_writes_rounds_of_batch_size(make_editor):
    editor = make_editor("llama", batch_size=2)
    metrics, model, originals = editor.batch_edit(
        **facts(3), **probes(3), sequential_edit=True, verbose=False
    )
    session = EditSession.of(editor.model)
    assert [len(record.outcomes) for record in session.ledger] == [2, 1]
    assert model is editor.model and set(originals) == set(edited_weights(editor))
    assert len(metrics) == 3 and all(metric["time"] > 0 for metric in metrics)
    assert all("near_acc" in metric["post"]["locality"] for metric in metrics)


def test_a_round_is_the_same_through_batch_edit_and_through_the_method(make_editor):
    from nse_plugin.methods.nse import edit_round
    from nse_plugin.requests import as_requests

    editor, other = make_editor(batch_size=3), make_editor(batch_size=3)
    metrics, *_ = editor.batch_edit(**facts(3), sequential_edit=True, verbose=False)
    requests = as_requests([metric["requested_rewrite"] for metric in metrics])
    edit_round(EditSession.of(other.model, other.tok), requests, other.hparams)
    assert same(edited_weights(editor), edited_weights(other))


def test_batch_edit_that_is_not_sequential_is_undone(make_editor):
    editor = make_editor("llama", batch_size=2)
    before = state(editor.model)
    metrics, *_ = editor.batch_edit(**facts(3), sequential_edit=False, verbose=False)
    assert len(metrics) == 3
    assert same(before, state(editor.model))


def test_a_round_that_contradicts_itself_changes_nothing(make_editor):
    editor = make_editor(batch_size=2)
    before = state(editor.model)
    twice = {name: values * 2 for name, values in fact(0).items()} | {"target_new": ["Garn", "no"]}
    with pytest.raises(RequestError, match="two targets"):
        editor.batch_edit(**twice, sequential_edit=True, verbose=False)
    assert same(before, state(editor.model))


def test_normal_edit_passes_no_subjects(make_editor):
    """So our methods name the missing field."""
    editor = make_editor(batch_size=3)
    before = state(editor.model)
    arguments = facts(3)
    with pytest.raises(RequestError, match="subject"):
        editor.normal_edit(arguments["prompts"], arguments["target_new"])
    assert same(before, state(editor.model))


# --- a ready model --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_ready_model_serves_like_one_from_disk(make_editor, editor_class, host, saved, family):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(saved[family])
    tokenizer = AutoTokenizer.from_pretrained(saved[family])
    pair = ReadyModel(model, tokenizer) if "own" in host else (model, tokenizer)
    hparams = quick(model_name=pair)
    ready, other = editor_class.from_hparams(hparams), make_editor(family)
    assert ready.model is model and ready.tok is tokenizer and hparams.model_name is pair
    arguments = {**facts(), **probes(), "sequential_edit": True, "verbose": False}
    metrics, *_ = ready.edit(**arguments)
    assert metrics == other.edit(**arguments)[0]
    assert same(edited_weights(ready), edited_weights(other))


def test_two_editors_may_share_a_ready_model(editor_class, host):
    """The second continues where the first stopped: the session belongs to the model."""
    pair = (tiny_model("llama"), tiny_tokenizer())
    pair = ReadyModel(*pair) if "own" in host else pair
    first = editor_class.from_hparams(quick(model_name=pair))
    second = editor_class.from_hparams(quick(model_name=pair))
    first.edit(**fact(0), sequential_edit=True, verbose=False)
    second.edit(**fact(1), sequential_edit=True, verbose=False)
    assert first.model is second.model and len(EditSession.of(first.model).ledger) == 2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_embedded_models_are_there_by_name_and_learn(host, editor_class, family):
    from nse_plugin.data import atlas

    hparams = atlas_hparams(family)
    if "own" in host:
        hparams.model_name = str(atlas.model_dir(family))
    name = hparams.model_name
    editor = editor_class.from_hparams(hparams)
    request = parse_records(atlas.edit_set(1))[0]
    (metric,), *_ = editor.edit(
        prompts=request.text,
        target_new=request.target_new,
        ground_truth=request.ground_truth,
        subject=request.subject,
        verbose=False,
    )
    assert hparams.model_name == name
    assert np.mean(metric["pre"]["rewrite_acc"]) < 1
    assert np.mean(metric["post"]["rewrite_acc"]) == 1


# --- arguments of the method call -----------------------------------------------------------------


def call(editor, number=0, **options):
    requests = [{"prompt": "Mara Voss lives in", "subject": "Mara Voss", "target_new": "Quill",
                 "ground_truth": None}, {"prompt": "Anna was born in", "subject": "Anna",
                 "target_new": "Garn", "ground_truth": None}]  # fmt: skip
    return editor.apply_algo(
        editor.model, editor.tok, [requests[number]], editor.hparams, **options
    )


def test_copy_leaves_the_model_alone(make_editor):
    editor = make_editor()
    before = state(editor.model)
    copied, originals = call(editor, copy=True, return_orig_weights=True)
    assert copied is not editor.model and same(before, state(editor.model))
    assert changed(before, state(copied)) == set(edited_weights(editor)) == set(originals)
    assert EditSession.of(copied) is not EditSession.of(editor.model, editor.tok)
    assert len(EditSession.of(copied).ledger) == 1 and len(EditSession.of(editor.model).ledger) == 0
    call(editor)
    assert same(edited_weights(editor), edited_weights(editor, copied))


@pytest.mark.parametrize("options", [{"return_orig_weights": True}, {"keep_original_weight": True}])
def test_the_weights_before_the_call_are_returned(make_editor, options):
    editor = make_editor()
    _, nothing = call(editor, return_orig_weights=False)
    assert nothing == {}
    before = edited_weights(editor)
    _, originals = call(editor, 1, train_ds=None, **{"return_orig_weights": False, **options})
    assert same(before, originals)
    assert changed(before, edited_weights(editor)) == set(before)


# --- fluency --------------------------------------------------------------------------------------


@pytest.fixture
def punkt(tmp_path, monkeypatch):
    """nltk's sentence splitter, untrained, where a download would put the trained one."""
    nltk = pytest.importorskip("nltk", reason="nltk, which EasyEdit imports, is not installed")
    from nltk.tokenize import punkt as trained

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])  # it writes nowhere else
    tokenizers = tmp_path / "nltk_data" / "tokenizers"
    if hasattr(trained, "save_punkt_params"):
        folder = tokenizers / "punkt_tab" / "english"
        folder.mkdir(parents=True)
        trained.save_punkt_params(trained.PunktParameters(), str(folder))
    else:  # nltk 3.6.5, which EasyEdit pins
        folder = tokenizers / "punkt" / "PY3"
        folder.mkdir(parents=True)
        (folder / "english.pickle").write_bytes(pickle.dumps(trained.PunktSentenceTokenizer()))
    _forget_punkt()
    yield
    _forget_punkt()


def _forget_punkt():
    import nltk

    nltk.data.clear_cache()
    if hasattr(nltk.tokenize, "_get_punkt_tokenizer"):
        nltk.tokenize._get_punkt_tokenizer.cache_clear()


@pytest.mark.parametrize("call_name", ["edit", "batch_edit"])
def test_generation_is_scored_where_asked_for(host, request, editor_class, call_name):
    if host != "embedded":
        request.getfixturevalue("punkt")
    pair = (tiny_model("llama", max_position_embeddings=256), tiny_tokenizer())
    editor = editor_class(quick(model_name=ReadyModel(*pair) if "own" in host else pair))
    metrics, *_ = getattr(editor, call_name)(**fact(0), test_generation=True, verbose=False)
    for phase in ("pre", "post"):
        assert metrics[0][phase]["fluency"]["ngram_entropy"] > 0


@pytest.mark.parametrize("call_name", ["edit", "edit_requests", "batch_edit"])
def test_missing_fluency_data_are_named_before_any_work(easyedit, saved, monkeypatch, call_name):
    import nltk

    from nse_plugin.easyedit.editor import base_editor
    from nse_plugin.errors import HostError

    monkeypatch.setattr(nltk.data, "path", [])
    _forget_punkt()
    editor = base_editor().from_hparams(quick(model_name=saved["gpt2"]))
    arguments = {"requests": []} if call_name == "edit_requests" else fact(0)
    with pytest.raises(HostError, match=r"needs nltk's punkt(_tab)? data"):
        getattr(editor, call_name)(**arguments, test_generation=True)
    assert EditSession.of(editor.model, editor.tok).ledger.__len__() == 0
