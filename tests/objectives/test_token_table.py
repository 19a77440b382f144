"""The trace of an edit, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import compute_values
from nse_plugin.model.probe import layout_of
from nse_plugin.objectives import nll
from nse_plugin.objectives.overtone import Overtone
from nse_plugin.objectives.token_table import Spread, TokenTable
from tests.tiny import some_requests, tiny_hparams, tiny_model

CONTEXTS = ("The river is closed. ",)


def test_means_over_contexts_by_hand():
    table = TokenTable(Overtone(lambda_=0.1, epsilon=0.05, n_sigma=0.5))
    odds = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 4.0], [9.0, 1.0]])
    owner, place = torch.tensor([5, 2, 5, 5]), torch.tensor([0, 0, 0, 1])
    for _ in range(2):
        table.record(owner, place, odds.log(), torch.tensor([0, 1, 0, 1]))
    first, second = table.courses(5)
    assert (first.place, first.token, second.place, second.token) == (0, 0, 1, 1)
    assert [step.probability for step in first.steps] == pytest.approx([(0.75 + 0.2) / 2] * 2)
    entropy = {p: -p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.75, 0.2, 0.1)}
    assert first.steps[0].entropy == pytest.approx((entropy[0.75] + entropy[0.2]) / 2)
    assert first.losses == pytest.approx([-(math.log(0.75) + math.log(0.2)) / 2] * 2)
    (third,) = table.courses(2)
    assert third.losses == pytest.approx([math.log(2)] * 2) and table.courses(0) == []


def test_what_overtone_decides_is_noted():
    """Three tokens: known; at 60% and smoothed; the mixture prefers another one."""
    odds = torch.tensor([[98.0, 1.0, 1.0], [6.0, 4.0, 0.01], [2.0, 3.0, 0.01]])
    table = TokenTable(Overtone(lambda_=0.1, epsilon=0.05, n_sigma=0.5))
    for place in range(3):
        at = torch.tensor([place])
        table.record(torch.tensor([0]), at, odds[at].log(), torch.tensor([0]))
    steps = [course.steps[0] for course in table.courses(0)]
    decided = [(step.smoothed, step.disagrees, step.settled) for step in steps]
    # The deviations of the log odds are 2.6, 3.6 and 3.2: the filter keeps one, two and two.
    # KL is -log 0.98 = 0.020; of (0.64, 0.36) from (0.5994, 0.3996) it is 0.004; and where
    # 0.9 * 0.4 + 0.1 = 0.46 is less than 0.54 it is -log 0.399 = 0.918.
    assert decided == [(0, 0, 1), (1, 0, 1), (1, 1, 0)]


def test_spread_by_hand():
    assert Spread.of([1.0, 3.0, 2.0]) == pytest.approx((2.0, math.sqrt(2 / 3)))
    assert Spread.of([4.0]) == (0.0, 0.0)


@pytest.mark.parametrize("token_budget", [4096, 64])
def test_an_edit_is_watched_from_its_first_to_its_last_step(tokenizer, token_budget):
    """With micro-batches too: owners are places in the round, whatever is optimised together."""
    model, requests = tiny_model("gpt2"), some_requests(4)
    hparams = tiny_hparams(token_budget=token_budget, v_weight_decay=0.0, kl_factor=0.0)
    layout, table = layout_of(model), TokenTable()
    arguments = (layout, encode_round(layout, tokenizer, requests, CONTEXTS), hparams, nll)
    values = compute_values(*arguments, trace=table)
    assert torch.equal(values.z, compute_values(*arguments).z)  # watching changes nothing
    for i, request in enumerate(requests):
        courses = table.courses(i)
        ids = tokenizer(f" {request.target_new}")["input_ids"]
        assert [course.token for course in courses] == ids
        assert {len(course.losses) for course in courses} == {int(values.steps[i])}
        # with no other term in it, the loss is the mean of the tokens' losses
        at_stop = sum(course.losses[-1] for course in courses)
        assert at_stop / len(ids) == pytest.approx(float(values.loss[i]), abs=1e-5)
        assert at_stop < sum(course.losses[0] for course in courses)
