"""ROME rounds against equation 2 of its paper, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nse_plugin.errors import HparamsError
from nse_plugin.hparams import ROMEHparams
from nse_plugin.methods.rome import edit_round
from nse_plugin.objectives import nll
from nse_plugin.session.session import EditSession
from tests.locate.values import values_of
from tests.methods.brute import (
    Brute,
    check_equal,
    down_weights,
    hparams_of,
    three_rounds,
)
from tests.tiny import same_bits, some_requests


@pytest.fixture
def hparams(tmp_path):
    return hparams_of(ROMEHparams, stats_dir=str(tmp_path), layers=[2], v_num_grad_steps=8)


def mean_key(brute, request, contexts):
    """Over the bare prompt and the prompt behind each context, all alike; float64 [d_ff]."""
    layer = brute.hparams.layers[0]
    every = ["", *contexts]
    bare = [replace(request, prompt=text + request.prompt) for text in every]
    return brute.lookups(bare, []).keys([layer])[layer].double().mean(dim=1)


@pytest.mark.parametrize("adjusted", [True, False])
def test_three_rounds_equal_the_formula(model, tokenizer, hparams, adjusted):
    hparams.mom2_adjustment = adjusted
    layer = hparams.layers[0]
    original = copy.deepcopy(model)
    session = EditSession.of(model, tokenizer)
    brute = Brute.of(model, tokenizer, hparams)
    contexts = session.untouched.contexts(hparams)
    C = session.untouched.covariances(hparams)[layer].double()
    for requests in three_rounds():
        edit_round(session, requests, hparams)
        for request in requests:
            layout = brute.session.layout
            v = values_of(layout, tokenizer, [request], contexts, hparams, nll).z[0].double()
            bare = brute.lookups([request], [])
            k = bare.keys([layer])[layer].double()[:, 0]
            out = layout.down(layer)(k.float()).detach().double()
            u = mean_key(brute, request, contexts)
            if adjusted:
                u = torch.linalg.inv(C) @ u
            brute.patch(layer, torch.outer(v - out, u) / (u @ k))
    EditSession.of(original, tokenizer)
    check_equal(original, model, brute.model, hparams.layers)


def test_the_value_is_the_mlps_output_plus_a_bounded_shift(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    requests = some_requests(4)
    values = values_of(
        session.layout, tokenizer, requests, session.untouched.contexts(hparams), hparams, nll
    )
    lookups = Brute(model, session, hparams).lookups(requests, [])
    now = session.layout.recalled(2, lookups.read([2]).bare[2])
    torch.testing.assert_close(values.base, now)
    shift = (values.z - values.base).norm(dim=1)
    assert (shift <= 1.0001 * hparams.clamp_norm_factor * now.norm(dim=1)).all()
    assert (shift > 0).all()


def test_the_key_gives_the_value_exactly(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    for request in some_requests(4):
        (outcome,) = edit_round(session, [request], hparams).outcomes
        assert outcome.status == "converged" and outcome.passes == 1
        assert outcome.residual_after < 1e-3 * outcome.residual_before


def test_a_round_is_its_requests_in_turn(model, tokenizer, hparams):
    other = copy.deepcopy(model)
    record = edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
    for request in some_requests(3):
        edit_round(EditSession.of(other, tokenizer), [request], hparams)
    for a, b in zip(down_weights(model, [2]), down_weights(other, [2])):
        torch.testing.assert_close(a, b)
    assert [w.case_ids for w in record.writes] == [(0,), (1,), (2,)]
    assert {(w.left.shape[1], w.right.shape[0]) for w in record.writes} == {(1, 1)}
    assert record.keys[2].shape[1] == 3


def test_the_loss_is_read_off_the_logits_whatever_v_loss_layer_says(model, tokenizer, hparams):
    other = copy.deepcopy(model)
    edit_round(EditSession.of(model, tokenizer), some_requests(2), hparams)
    hparams.v_loss_layer = 2
    edit_round(EditSession.of(other, tokenizer), some_requests(2), hparams)
    assert same_bits(model, other)


def test_context_lengths_of_easyedits_key(model, tokenizer, hparams):
    listed = replace(hparams, context_template_length_params=[[3, 6], [5, 2]])
    assert listed.context_lengths() == [3] * 6 + [5] * 2
    assert ROMEHparams.from_dict(listed.to_dict()) == listed
    texts = EditSession.of(model, tokenizer).untouched.contexts(listed)
    assert len(texts) == 8 and texts[0].startswith("The") and texts[5].startswith("The")
    with pytest.raises(HparamsError, match=r"context_template_length_params is \[\[3\]\]"):
        replace(hparams, context_template_length_params=[[3]])


def test_one_layer_only(hparams):
    with pytest.raises(HparamsError, match=r"layers is \[1, 2\]; ROME writes one layer"):
        replace(hparams, layers=[1, 2])
