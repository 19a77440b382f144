"""MEMIT rounds against equation 14 of its paper, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from nse_plugin.hparams import MEMITHparams
from nse_plugin.methods.memit import edit_round
from nse_plugin.objectives import nll
from nse_plugin.session.previous_keys import PreviousKeys
from nse_plugin.session.session import EditSession
from tests.locate.values import values_of
from tests.methods.brute import FEW_AND_MANY_KEYS, Brute, check_equal, hparams_of, three_rounds
from tests.tiny import some_requests, tiny_model


@pytest.fixture
def hparams(tmp_path):
    return hparams_of(MEMITHparams, stats_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("family", "sizes", "use_previous"),
    [*((*case, True) for case in FEW_AND_MANY_KEYS), ("gpt2", {}, False), ("llama", {}, False)],
    ids=str,
)
def test_three_rounds_equal_the_formula(family, sizes, use_previous, tokenizer, hparams):
    hparams.use_previous_keys = use_previous
    model = tiny_model(family, **sizes)
    original = copy.deepcopy(model)
    session = EditSession.of(model, tokenizer)
    brute = Brute.of(model, tokenizer, hparams)
    contexts, covariances = (
        session.untouched.contexts(hparams),
        session.untouched.covariances(hparams),
    )
    previous = {layer: torch.zeros_like(C).double() for layer, C in covariances.items()}

    def solve(layer, K, R):
        A = hparams.mom2_update_weight * covariances[layer].double() + K @ K.T
        A += use_previous * previous[layer]
        return R @ K.T @ torch.linalg.inv(A)

    for requests in three_rounds():
        # no rewinding: z of every round is that of the model as it is then
        z = values_of(brute.session.layout, tokenizer, requests, contexts, hparams, nll).z
        edit_round(session, requests, hparams)
        for layer, K in brute.spread(requests, z, contexts, solve).items():
            previous[layer] += K @ K.T
    EditSession.of(original, tokenizer)
    check_equal(original, model, brute.model, hparams.layers)


def test_one_pass_whose_keys_are_remembered(model, tokenizer, hparams, device):
    session = EditSession.of(model, tokenizer)
    record = edit_round(session, some_requests(3), hparams)
    assert [(w.layer, w.pass_number) for w in record.writes] == [(1, 1), (2, 1)]
    assert all(w.neurons.tolist() == list(range(session.layout.d_ff)) for w in record.writes)
    assert [o.passes for o in record.outcomes] == [1, 1, 1]
    assert {k.shape for k in record.keys.values()} == {(session.layout.d_ff, 3)}


@pytest.mark.parametrize("adjusted", [True, False])
def test_few_earlier_keys_are_solved_without_their_sum(
    model, tokenizer, hparams, adjusted, monkeypatch
):
    """P has d_ff^2 numbers, and is formed only once there are many keys."""
    monkeypatch.delattr(PreviousKeys, "matrix")
    hparams.use_previous_keys, hparams.mom2_adjustment = True, adjusted
    session = EditSession.of(model, tokenizer)
    for requests in three_rounds():
        assert edit_round(session, requests, hparams).writes


def test_without_the_covariance_values_are_reached(model, tokenizer, hparams):
    # how nearly depends on the weights, and those that transformers draws vary with its version
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.normal_(0, 0.2, generator=generator)
    hparams.mom2_adjustment = False
    record = edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
    assert all(o.residual_after < 0.3 * o.residual_before for o in record.outcomes)
