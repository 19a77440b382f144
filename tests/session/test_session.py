"""A session finds itself again, notices foreign hands, and belongs to one model."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import accelerate
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM

from nse_plugin.errors import ModelError, SessionError
from nse_plugin.export import from_delta, to_delta, to_full, to_peft
from nse_plugin.methods.nse import edit_round
from nse_plugin.methods.registry import apply_function
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.session.blame import blame
from nse_plugin.session.session import EditSession
from tests.tiny import bits, same_bits, some_requests, tiny_hparams, tiny_model


def test_one_session_per_model(model, tokenizer):
    with pytest.raises(SessionError, match="give its tokenizer"):
        EditSession.of(model)
    session = EditSession.of(model, tokenizer)
    assert EditSession.of(model) is session
    other = copy.deepcopy(model)
    assert EditSession.of(other, tokenizer) is not session
    EditSession.forget(model)
    assert EditSession.of(model, tokenizer) is not session


def test_another_tokenizer_is_refused_and_an_equal_one_is_not(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    again = copy.deepcopy(tokenizer)
    again.padding_side = "left"
    assert EditSession.of(model, again) is session and session.tokenizer is tokenizer
    again.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(SessionError, match=r"other texts around a prompt.*EditSession\.forget"):
        EditSession.of(model, ChatTokenizer(again))
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(SessionError, match="other tokens for the same text"):
        EditSession.of(model, other)
    EditSession.forget(model)
    chat = EditSession.of(model, ChatTokenizer(again))
    assert EditSession.of(model, ChatTokenizer(again)) is chat is EditSession.of(model)
    with pytest.raises(SessionError, match="other texts around a prompt"):
        EditSession.of(model, tokenizer)


def test_the_session_goes_with_its_model(tokenizer):
    model = tiny_model("gpt2")
    session, gone = weakref.ref(EditSession.of(model, tokenizer)), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and session() is None


def test_covariances_are_those_of_the_untouched_model(model, tokenizer, hparams, tmp_path):
    """Also of a layer that is first asked for after an edit below it, which changes its keys."""
    clean, session = copy.deepcopy(model), EditSession.of(model, tokenizer)
    edit_round(session, some_requests(2), replace(hparams, layers=[1]))
    edited = bits(model)
    found = session.untouched.covariances(replace(hparams, layers=[3]))
    assert same_bits(model, edited)
    elsewhere = replace(hparams, layers=[3], stats_dir=str(tmp_path / "clean"))
    wanted = EditSession.of(clean, tokenizer).untouched.covariances(elsewhere)
    assert torch.equal(found[3], wanted[3])


def test_weights_that_the_host_put_back(model, tokenizer, hparams, device):
    apply = apply_function("NSE")
    clean = copy.deepcopy(model)
    records = [r.to_dict() for r in some_requests(2)]
    _, originals = apply(model, tokenizer, records, hparams, return_orig_weights=True)
    session = EditSession.of(model)
    assert len(session.ledger) == 1
    with torch.no_grad():  # as EasyEdit does after an edit that is not sequential
        for name, original in originals.items():
            model.get_parameter(name)[...] = original
    second = some_requests(4)[2:]
    edit_round(session, second, hparams)
    assert len(session.ledger) == 1 and session.ledger[0].outcomes[0].case_id == 2
    edit_round(EditSession.of(clean, tokenizer), second, hparams)
    assert same_bits(model, clean)


def test_going_back_to_an_earlier_round_drops_the_later_ones(model, tokenizer, hparams, device):
    session = EditSession.of(model, tokenizer)
    states = []
    for request in some_requests(3):
        edit_round(session, [request], hparams)
        states.append({n: model.get_parameter(n).detach().clone() for n in session.weights.names()})
    with torch.no_grad():
        for name, value in states[0].items():
            model.get_parameter(name).copy_(value)
    session.check()
    assert len(session.ledger) == 1
    assert session.ledger.some_keys([1], 9)[1].shape == (session.layout.d_ff, 1)
    for name, value in states[0].items():
        assert torch.equal(model.get_parameter(name), value)


def test_a_foreign_change_is_named_and_can_be_accepted(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams)
    name = session.layout.down_name(2)
    with torch.no_grad():
        model.get_parameter(name)[0, 0] += 1e-6
    held = bits(model)
    with pytest.raises(SessionError, match=rf"^{name} changed since round 1"):
        edit_round(session, some_requests(2)[1:], hparams)
    with pytest.raises(SessionError, match="changed since round 1"):
        session.undo_all()
    assert same_bits(model, held)
    EditSession.forget(model)
    fresh = EditSession.of(model, tokenizer)
    edit_round(fresh, some_requests(2)[1:], hparams)
    fresh.undo_all()
    assert same_bits(model, held)


def test_a_foreign_change_is_dated_by_the_last_active_round(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    for request in some_requests(3):
        edit_round(session, [request], hparams)
    session.undo(1)
    with torch.no_grad():
        model.get_parameter(session.layout.down_name(2))[0, 0] += 1e-6
    with pytest.raises(SessionError, match="changed since round 3"):
        session.check()


def test_a_parameter_that_was_replaced_is_a_foreign_change(model, tokenizer, hparams):
    """A later round would be written to a tensor that the model does not have."""
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams)
    session.check()
    same = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(same, assign=True)
    with pytest.raises(SessionError, match=session.layout.down_name(2)):
        session.check()


def test_undoing_more_than_there_is(model, tokenizer):
    with pytest.raises(SessionError, match="rounds is 2, and the ledger has 0 active rounds"):
        EditSession.of(model, tokenizer).undo_last(2)


def test_other_layers_in_a_later_round(model, tokenizer, hparams, device):
    before = bits(model)
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams)
    edit_round(session, some_requests(2)[1:], tiny_hparams(layers=[0], stats_dir=hparams.stats_dir))
    keys = session.ledger.some_keys([0, 1], limit=9)
    assert keys[0].shape[1] == 1 and keys[1].shape[1] == 1
    session.undo_last()
    session.undo_last()
    assert same_bits(model, before)


@pytest.mark.parametrize("size", ["hidden_size", "intermediate_size"])
@pytest.mark.parametrize("change", [{"neuron_threshold": 0.7}, {}])
def test_rounds_of_a_model_of_another_size_are_refused(tokenizer, hparams, size, change):
    model, other = tiny_model("llama"), tiny_model("llama", **{size: 64})
    session, before = EditSession.of(model, tokenizer), bits(other)
    edit_round(session, some_requests(2), replace(hparams, **change))
    larger = EditSession.of(other, tokenizer)
    with pytest.raises(ModelError, match=r"round 1 wrote matrices of 48 neurons and width 32.* 64"):
        larger.adopt(session.ledger)
    assert same_bits(other, before) and not len(larger.ledger)


def test_contexts_are_written_once_by_the_original_model(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    state = torch.get_rng_state()
    contexts = session.untouched.contexts(hparams)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(contexts) == 2 and all(text.endswith(". ") for text in contexts)
    assert all(text.startswith(o) for text, o in zip(contexts, ("The", "Therefore")))
    twin = copy.deepcopy(model)
    assert EditSession.of(twin, tokenizer).untouched.contexts(hparams) == contexts
    edit_round(session, some_requests(4), hparams)
    session.untouched._contexts.clear()
    assert session.untouched.contexts(hparams) == contexts


def test_device_map_of_accelerate(tokenizer, hparams):
    model, plain = tiny_model("llama"), tiny_model("llama")
    names = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    places = dict.fromkeys(names, "cpu") | {f"model.layers.{i}": "cpu" for i in range(4)}
    model = accelerate.dispatch_model(model, places, force_hooks=True)
    edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
    edit_round(EditSession.of(plain, tokenizer), some_requests(3), hparams)
    assert same_bits(plain, model)


def test_offloaded_layers(tokenizer, hparams, tmp_path):
    """Layers on disk: those that are read work, those that are edited are refused by name."""
    plain = tiny_model("llama")
    names = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    places = dict.fromkeys(names, "cpu") | {f"model.layers.{i}": "cpu" for i in range(4)}
    model = accelerate.dispatch_model(
        tiny_model("llama"),
        {**places, "model.layers.3": "disk"},
        main_device="cpu",
        offload_dir=tmp_path / "offload",
    )
    edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
    edit_round(EditSession.of(plain, tokenizer), some_requests(3), hparams)
    for layer in hparams.layers:
        name = EditSession.of(plain).layout.down_name(layer)
        torch.testing.assert_close(model.get_parameter(name), plain.get_parameter(name))
    with pytest.raises(Exception, match=r"layers\.3\.mlp\.down_proj\.weight is offloaded"):
        edit_round(
            EditSession.of(model), some_requests(3), tiny_hparams(layers=[3], mom2_adjustment=False)
        )


def test_a_session_exports_and_blames(tokenizer, hparams, tmp_path):
    model = tiny_model("gpt2")
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(2), hparams)
    assert session.blame("Mara Voss lives in").equals(blame(session, "Mara Voss lives in"))
    fits = to_peft(session, tmp_path / "adapter", rank=1)
    assert {fit.rank for fit in fits.values()} == {1}
    to_delta(session, tmp_path / "delta")
    to_full(session, tmp_path / "full")
    other = tiny_model("gpt2")
    from_delta(other, tokenizer, tmp_path / "delta")
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert same_bits(model, other) and same_bits(model, full)


def test_what_is_no_language_model_is_refused(tokenizer):
    with pytest.raises(ModelError, match="is a Linear without a config; give a causal"):
        EditSession.of(torch.nn.Linear(3, 3), tokenizer)
