"""The session and the model agree, whatever the host or other code did to the model."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.easyedit import checkout
from nse_plugin.easyedit.editor import ReadyModel
from nse_plugin.errors import SessionError
from nse_plugin.session.session import EditSession
from tests.contract.conftest import fact, facts, probes
from tests.contract.test_edits import call, changed, edited_weights, same, state

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])


def session_of(editor):
    return EditSession.of(editor.model, editor.tok)


def edit(editor, *numbers, sequential):
    """Write some of the facts, one call each."""
    return [
        editor.edit(**fact(n), sequential_edit=sequential, verbose=False)[0][0] for n in numbers
    ]


def without_name(metrics):
    return [{**metric, "case_id": 0} for metric in metrics]


# --- undone by the host ---------------------------------------------------------------------------


@FAMILIES
def test_an_edit_that_was_undone_is_noticed_and_dropped(make_editor, family):
    editor = make_editor(family)
    before = state(editor.model)
    edit(editor, 0, sequential=False)
    assert same(before, state(editor.model))
    session = session_of(editor)
    session.check()
    assert len(session.ledger) == 0
    assert session.ledger.some_keys(editor.hparams.layers, limit=9) == {}
    assert same(before, state(editor.model))


@FAMILIES
def test_each_edit_that_is_not_sequential_starts_clean(make_editor, family):
    together, *_ = make_editor(family).edit(**facts(3), **probes(3), verbose=False)
    for metric in together:
        record = metric["requested_rewrite"]
        (alone,), *_ = make_editor(family).edit_requests([dict(record)], verbose=False)
        assert without_name([alone]) == without_name([metric])


def test_the_edit_after_one_that_was_undone_is_like_a_first_one(make_editor):
    editor, fresh = make_editor(), make_editor()
    edit(editor, 0, sequential=False)
    edit(editor, 1, sequential=True)
    edit(fresh, 1, sequential=True)
    assert same(edited_weights(editor), edited_weights(fresh))
    assert len(session_of(editor).ledger) == 1


def test_only_what_was_undone_is_dropped(make_editor):
    editor, other = make_editor(), make_editor()
    edit(editor, 0, 1, sequential=True)
    held = edited_weights(editor)
    edit(editor, 2, sequential=False)
    assert same(held, edited_weights(editor))
    edit(editor, 3, sequential=True)
    edit(other, 0, 1, 3, sequential=True)
    assert same(edited_weights(editor), edited_weights(other))
    assert len(session_of(editor).ledger) == 3


def test_a_round_undone_by_batch_edit_is_dropped(make_editor):
    editor, other = make_editor(batch_size=2), make_editor(batch_size=2)
    editor.batch_edit(**facts(4), sequential_edit=False, verbose=False)
    editor.batch_edit(**facts(2), sequential_edit=True, verbose=False)
    other.batch_edit(**facts(2), sequential_edit=True, verbose=False)
    assert same(edited_weights(editor), edited_weights(other))
    assert len(session_of(editor).ledger) == 1


def test_a_sequence_in_one_call_is_the_sequence_in_many(make_editor):
    editor, other = make_editor(), make_editor()
    editor.edit(**facts(3), sequential_edit=True, verbose=False)
    edit(other, 0, 1, 2, sequential=True)
    assert same(edited_weights(editor), edited_weights(other))


def test_the_user_may_restore_all_weights(make_editor):
    """As EasyEdit's own scripts do with the weights that an edit returned."""
    editor = make_editor()
    before = edited_weights(editor)
    _, _, originals = editor.edit(**fact(0), sequential_edit=True, verbose=False)
    edit(editor, 1, sequential=True)
    with torch.no_grad():
        for name, weight in originals.items():
            editor.model.get_parameter(name)[...] = weight
    session = session_of(editor)
    session.check()
    assert len(session.ledger) == 0 and same(before, edited_weights(editor))


# --- several models and editors -------------------------------------------------------------------


@FAMILIES
def test_two_models_do_not_touch_each_other(make_editor, family):
    one, two = make_editor(family), make_editor("gpt2")
    edit(one, 0, sequential=True)
    edit(two, 2, sequential=True)
    edit(one, 1, sequential=False)
    edit(two, 3, sequential=True)
    edit(one, 3, sequential=True)
    alone, other = make_editor(family), make_editor("gpt2")
    edit(alone, 0, 3, sequential=True)
    edit(other, 2, 3, sequential=True)
    assert same(edited_weights(one), edited_weights(alone))
    assert same(edited_weights(two), edited_weights(other))
    assert session_of(one) is not session_of(two)


# --- changed by other code ------------------------------------------------------------------------


@FAMILIES
def test_a_foreign_change_of_an_edited_matrix_is_named(make_editor, family):
    editor = make_editor(family)
    edit(editor, 0, sequential=True)
    name = next(iter(edited_weights(editor)))
    with torch.no_grad():
        editor.model.get_parameter(name)[0, 0] += 1e-3
    before = state(editor.model)
    with pytest.raises(SessionError, match=name.replace(".", r"\.")):
        edit(editor, 1, sequential=True)
    assert same(before, state(editor.model))
    EditSession.forget(editor.model)
    editor.hparams.stats_dir = "statistics-of-the-changed-model"
    edit(editor, 1, sequential=True)
    assert len(session_of(editor).ledger) == 1


def rome_hparams(layer, model_name):
    return checkout.part("easyeditor:ROMEHyperParams")(
        alg_name="ROME", model_name=model_name, device="cpu", layers=[layer],
        fact_token="subject_last", v_num_grad_steps=3, v_lr=0.5, v_loss_layer=3,
        v_weight_decay=0.5, clamp_norm_factor=4, kl_factor=0.0625, mom2_adjustment=False,
        context_template_length_params=[[5, 5]], rewrite_module_tmp="transformer.h.{}.mlp.c_proj",
        layer_module_tmp="transformer.h.{}", mlp_module_tmp="transformer.h.{}.mlp",
        attn_module_tmp="transformer.h.{}.attn", ln_f_module="transformer.ln_f",
        lm_head_module="transformer.wte", stats_dir="stats", mom2_dataset="wikipedia",
        mom2_n_samples=10, mom2_dtype="float32", model_parallel=False,
    )  # fmt: skip


def rome(model, tokenizer, layer, saved):
    """EasyEdit's own ROME on the same model."""
    hparams = rome_hparams(layer, saved)
    request = {"prompt": "Anna was born in", "subject": "Anna", "target_new": "Garn"}
    side, tokenizer.padding_side = tokenizer.padding_side, "right"
    before = state(model)
    checkout.method_table()["ROME"](model, tokenizer, [request], hparams)
    tokenizer.padding_side = side
    name = f"transformer.h.{layer}.mlp.c_proj.weight"
    assert changed(before, state(model)) == {name}
    return name


@pytest.fixture
def with_rome(easyedit, saved):
    return lambda editor, layer: rome(editor.model, editor.tok, layer, saved["gpt2"])


@pytest.mark.parametrize("layer", [2, 3], ids=["edited layer", "another layer"])
def test_rome_between_edits_is_named(with_rome, make_editor, layer):
    editor = make_editor(layers=[1, 2])
    edit(editor, 0, sequential=True)
    name = with_rome(editor, layer)
    with pytest.raises(SessionError, match=name.replace(".", r"\.")):
        edit(editor, 1, sequential=True)


def test_rome_before_the_first_edit_counts_as_original(with_rome, make_editor):
    editor = make_editor(layers=[1, 2])
    with_rome(editor, 2)
    editor.hparams.stats_dir = "statistics-of-the-changed-model"
    before = state(editor.model)
    edit(editor, 0, sequential=True)
    session_of(editor).undo_all()
    assert same(before, state(editor.model))


def test_easyedits_own_methods_run_beside_ours(easyedit, make_editor, editor_class, host):
    """With a ready model, which EasyEdit's evaluator alone does not accept."""
    if host == "embedded":
        pytest.skip("the embedded host has no methods of its own beside those of nse_plugin")
    editor = make_editor(layers=[1, 2])
    edit(editor, 0, sequential=True)
    held = state(editor.model)
    ready = ReadyModel(editor.model, editor.tok)
    theirs = editor_class.from_hparams(rome_hparams(2, ready))
    metrics, *_ = theirs.edit(**fact(1), verbose=False)
    assert "rewrite_acc" in metrics[0]["post"] and same(held, state(editor.model))
    edit(editor, 2, sequential=True)
    assert len(session_of(editor).ledger) == 2


def test_a_foreign_change_elsewhere_is_named(make_editor):
    editor = make_editor("gpt2", layers=[1, 2])
    edit(editor, 0, sequential=True)
    name = "transformer.h.3.mlp.c_proj.weight"
    with torch.no_grad():
        editor.model.get_parameter(name)[0, 0] += 1e-3
    with pytest.raises(SessionError, match=name.replace(".", r"\.")):
        edit(editor, 1, sequential=True)


# --- the tokenizer --------------------------------------------------------------------------------


def settings(tokenizer):
    return (
        tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id,
        tokenizer.eos_token_id, tokenizer.special_tokens_map, tokenizer.model_max_length,
        len(tokenizer), dict(tokenizer.init_kwargs),
    )  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@FAMILIES
def test_the_tokenizer_is_left_as_found(make_editor, family, side):
    editor = make_editor(family)
    editor.tok.padding_side = side
    before = settings(editor.tok)
    call(editor)
    assert settings(editor.tok) == before


@FAMILIES
def test_the_padding_side_makes_no_difference(make_editor, family):
    weights = []
    for side in ("left", "right"):
        editor = make_editor(family, batch_size=3)
        editor.tok.padding_side = side
        editor.batch_edit(**facts(3), sequential_edit=True, verbose=False)
        assert editor.tok.padding_side == side
        weights.append(edited_weights(editor))
    assert same(*weights)


def test_training_mode_and_gradients_are_left_as_found(make_editor):
    editor = make_editor()
    editor.model.train()
    for parameter in editor.model.parameters():
        parameter.requires_grad_(False)
    edit(editor, 0, sequential=True)
    assert editor.model.training
    assert not any(parameter.requires_grad for parameter in editor.model.parameters())
    assert all(parameter.grad is None for parameter in editor.model.parameters())
