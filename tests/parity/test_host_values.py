"""Our values z against those of EasyEdit's MEMIT, stored and, where it is there, live.

EASYEDIT_ROOT=/path/to/EasyEdit pytest tests/parity
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nse_plugin.hparams import NSEHparams
from nse_plugin.locate.values import Values
from nse_plugin.model.probe import layout_of
from nse_plugin.objectives import nll
from tests.locate.values import values_of
from tests.parity.fixture import CASES, FAMILIES, TOLERANCE, Fixture, as_requests, contexts

CASE = CASES["host_values"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASE["cases"])
def test_stored_values(family, case):
    check(ours(family, case), Fixture.of(family).tensors[f"host_values.{case}"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASE["cases"])
def test_live_values(family, case, host_compute_z):
    fixture = Fixture.of(family)
    model, tokenizer = fixture.model(), fixture.tokenizer()
    templates = fixture.host_templates(layout_of(model))
    settings = SimpleNamespace(
        **templates, **CASE["cases"][case], fact_token="subject_last", device="cpu"
    )
    values = [
        host_compute_z(
            model,
            tokenizer,
            {"prompt": r.prompt, "subject": r.subject, "target_new": f" {r.target_new}"},
            settings,
            settings.layers[-1],
            [["{}"], [f"{text}{{}}" for text in contexts()]],
        ).detach()
        for r in as_requests(CASE["requests"][case])
    ]
    check(ours(family, case), torch.stack(values))


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_stop_at_different_steps(family):
    steps = ours(family, "stopping").steps
    assert len(set(steps.tolist())) > 2
    assert steps.min() < CASE["cases"]["stopping"]["v_num_grad_steps"] == steps.max()


def ours(family: str, case: str) -> Values:
    fixture = Fixture.of(family)
    hparams = NSEHparams(alg_name="NSE", model_name="parity", **CASE["cases"][case])
    requests = as_requests(CASE["requests"][case])
    model, tokenizer = fixture.model(), fixture.tokenizer()
    return values_of(layout_of(model), tokenizer, requests, contexts(), hparams, nll)


def check(values: Values, expected: torch.Tensor) -> None:
    """Small against z, and against what the optimisation moved."""
    error = (values.z - expected).norm(dim=1)
    moved = (expected - values.base).norm(dim=1)
    assert (moved > 0.01 * values.base.norm(dim=1)).all()
    assert (error < TOLERANCE * torch.minimum(expected.norm(dim=1), moved)).all()
