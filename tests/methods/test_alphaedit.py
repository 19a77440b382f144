"""AlphaEdit rounds against the formula of its paper, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from nse_plugin.hparams import AlphaEditHparams
from nse_plugin.methods.alphaedit import edit_round, into_null_space
from nse_plugin.objectives import nll
from nse_plugin.session.session import EditSession
from nse_plugin.statistics import null_space
from nse_plugin.statistics.null_space import busy_directions
from tests.locate.values import values_of
from tests.methods.brute import (
    FEW_AND_MANY_KEYS,
    Brute,
    check_equal,
    down_weights,
    hparams_of,
    three_rounds,
)
from tests.tiny import some_requests, tiny_model


@pytest.fixture
def hparams(tmp_path):
    return hparams_of(AlphaEditHparams, stats_dir=str(tmp_path), nullspace_threshold=0.5, L2=0.3)


def projection(covariance, threshold):
    """P by a singular value decomposition, as the paper has it."""
    U, S, _ = torch.linalg.svd(covariance.double())
    U = U[:, threshold > S]
    return U @ U.T


@pytest.mark.parametrize(("family", "sizes"), FEW_AND_MANY_KEYS, ids=str)
def test_three_rounds_equal_the_formula(family, sizes, tokenizer, hparams):
    model = tiny_model(family, **sizes)
    original = copy.deepcopy(model)
    session = EditSession.of(model, tokenizer)
    brute = Brute.of(model, tokenizer, hparams)
    contexts, covariances = (
        session.untouched.contexts(hparams),
        session.untouched.covariances(hparams),
    )
    P = {k: projection(C, hparams.nullspace_threshold) for k, C in covariances.items()}
    previous = {layer: torch.zeros_like(P[layer]) for layer in hparams.layers}

    def solve(layer, K, R):
        A = (previous[layer] + K @ K.T) @ P[layer] + hparams.L2 * torch.eye(len(K))
        return R @ K.T @ P[layer] @ torch.linalg.inv(A)

    for requests in three_rounds():
        z = values_of(brute.session.layout, tokenizer, requests, contexts, hparams, nll).z
        edit_round(session, requests, hparams)
        for layer, K in brute.spread(requests, z, contexts, solve).items():
            previous[layer] += K @ K.T
    EditSession.of(original, tokenizer)
    check_equal(original, model, brute.model, hparams.layers)


def test_busy_directions_are_left_as_they_are(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    edit = copy.deepcopy(model)
    EditSession.of(edit, tokenizer)
    before = down_weights(edit, hparams.layers)
    edit_round(session, some_requests(3), hparams)
    covariances = session.untouched.covariances(hparams)
    for layer, w0, w in zip(hparams.layers, before, down_weights(model, hparams.layers)):
        U = busy_directions(covariances[layer], hparams.nullspace_threshold)
        assert 0 < U.shape[1] < session.layout.d_ff
        change = (w - w0).double()
        assert (change @ U).norm() < 1e-4 * change.norm()


def test_the_projection():
    torch.manual_seed(0)
    x = torch.randn(12, 8, dtype=torch.float64)
    C = x @ x.T / 8  # rank 8 of 12
    U = busy_directions(C.float(), 1e-3)
    assert U.shape == (12, 8)
    P = into_null_space(U, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(P, projection(C, 1e-3), atol=1e-5, rtol=0)
    assert (P @ x).norm() < 1e-4


def test_the_projection_is_computed_once(model, tokenizer, hparams, monkeypatch, device):
    seen = []

    def spy(covariance, threshold):
        seen.append(threshold)
        return busy_directions(covariance, threshold)

    monkeypatch.setattr(null_space, "busy_directions", spy)
    session = EditSession.of(model, tokenizer)
    for requests in three_rounds():
        edit_round(session, requests, hparams)
    assert seen == [0.5, 0.5]  # one per layer


def test_a_second_process_reads_the_directions_of_a_large_layer(
    tokenizer, hparams, monkeypatch, device
):
    monkeypatch.setattr(null_space, "KEEP_FROM", 1)
    weights = []
    for _process in range(2):
        model = device.put(tiny_model("gpt2"))
        edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
        weights.append(down_weights(model, hparams.layers))
        monkeypatch.setattr(torch.linalg, "eigh", None)
    assert all(map(torch.equal, *weights))
