"""NSE rounds against weights that the published NSE code wrote; see README.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import nse_plugin.methods.nse as nse
import nse_plugin.methods.spread as spread
from nse_plugin.hparams import NSEHparams
from nse_plugin.locate.values import Values
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession
from tests.parity.fixture import CASES, FAMILIES, TOLERANCE, Fixture, as_requests, contexts

CASE = CASES["published_nse"]
LAYERS = CASE["layers"]


@dataclass(frozen=True)
class Rounds:
    """Three rounds of ours: records, and by round and layer the weights after it."""

    records: list[RoundRecord]
    weights: list[dict[int, torch.Tensor]]
    initial: dict[int, torch.Tensor]


@pytest.fixture
def three_rounds(monkeypatch):
    """Run our rounds with the stored values, contexts and covariances."""

    def run(family: str, threshold: float, rule: str = "within") -> Rounds:
        fixture = Fixture.of(family)
        inputs = fixture.group("inputs.")
        requests = as_requests(CASES["requests"])
        model = fixture.model()
        session = EditSession.of(model, fixture.tokenizer())
        covariances = {layer: inputs[f"covariance.{layer}"] for layer in LAYERS}
        monkeypatch.setattr(session.untouched, "contexts", lambda _hparams: contexts())
        monkeypatch.setattr(session.untouched, "covariances", lambda _hparams: covariances)
        monkeypatch.setattr(
            spread,
            "compute_values",
            lambda _l, rows, *_rest, **_named: stored_values(inputs["z"], rows),
        )
        hparams = NSEHparams(
            alg_name="NSE", model_name="parity", layers=LAYERS,
            mom2_update_weight=CASE["mom2_update_weight"], max_iterations=2,
            neuron_threshold=threshold, selection_rule=rule, **CASE["bounds"][family],
        )  # fmt: skip

        def weights() -> dict[int, torch.Tensor]:
            return {layer: session.layout.down(layer).weight.detach().clone() for layer in LAYERS}

        done = Rounds([], [], weights())
        for numbers in CASE["rounds"]:
            asked = [requests[number] for number in numbers]
            done.records.append(nse.edit_round(session, asked, hparams))
            done.weights.append(weights())
        return done

    return run


def stored_values(z: torch.Tensor, rows: list[Any]) -> Values:
    of_round = z[[one.case_id for one in rows]]
    n = len(of_round)
    return Values(of_round, of_round, torch.zeros(n), torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_weights_after_each_round(three_rounds, family, threshold):
    theirs = Fixture.of(family).group(f"published_nse.p{threshold}.")
    ours = three_rounds(family, threshold)
    for number, weights in enumerate(ours.weights, 1):
        for layer in LAYERS:
            initial, expected = ours.initial[layer], theirs[f"round{number}.layer{layer}"]
            written = (expected - initial).norm()
            assert written > 0.1 * initial.norm()
            assert (weights[layer] - expected).norm() < TOLERANCE * written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_same_requests_and_neurons_in_every_write(three_rounds, family, threshold):
    theirs = CASE["writes"][family][str(threshold)]
    ours = three_rounds(family, threshold)
    for record, expected in zip(ours.records, theirs, strict=True):
        assert [
            [w.layer, w.pass_number, list(w.case_ids), w.neurons.tolist()] for w in record.writes
        ] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rounds_have_every_outcome(three_rounds, family):
    outcomes = [o for record in three_rounds(family, 0.8).records for o in record.outcomes]
    assert {o.passes for o in outcomes} == {0, 1, 2}
    assert [o.case_id for o in outcomes if o.status == "out_of_bounds"] == [5]
    assert any(o.status == "converged" and o.passes == 1 for o in outcomes)
    assert any(o.passes == 2 for o in outcomes)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_rule_takes_one_neuron_more(three_rounds, family, monkeypatch):
    select, seen = nse.select_by, []

    def spy(score, threshold, rule):
        seen.append([set(select(score, threshold, r).tolist()) for r in ("within", "cover")])
        return select(score, threshold, rule)

    monkeypatch.setattr(nse, "select_by", spy)
    three_rounds(family, 0.8)
    assert len(seen) == 12
    for within, cover in seen:
        assert within < cover and len(cover) == len(within) + 1
