"""The trace of an edit, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import compute_values
from nse_plugin.model.probe import layout_of
from nse_plugin.objectives.nll import nll
from nse_plugin.objectives.token_table import Spread, TokenTable
from tests.tiny import some_requests, tiny_hparams, tiny_model

CONTEXTS = ("The river is closed. ",)


def test_means_over_contexts_by_hand():
    table = TokenTable()
    odds = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 4.0], [9.0, 1.0]])
    owner, place = torch.tensor([5, 2, 5, 5]), torch.tensor([0, 0, 0, 1])
    for step in range(2):
        table.record(step, owner, place, odds.log(), torch.tensor([0, 1, 0, 1]))
    assert table.requests() == [2, 5]
    first, second = table.courses(5)
    assert (first.place, first.token, second.place, second.token) == (0, 0, 1, 1)
    assert first.probabilities == pytest.approx([(0.75 + 0.2) / 2] * 2)
    assert first.losses == pytest.approx([-(math.log(0.75) + math.log(0.2)) / 2] * 2)
    assert table.at_stop(2) == pytest.approx([math.log(2)])


def test_spread_by_hand():
    assert Spread.of([1.0, 3.0, 2.0]) == pytest.approx((2.0, math.sqrt(2 / 3)))
    assert Spread.of([4.0]) == (0.0, 0.0)
    assert TokenTable().mean_spread() is None


@pytest.mark.parametrize("token_budget", [4096, 64])
def test_an_edit_is_watched_from_its_first_to_its_last_step(tokenizer, token_budget):
    """With micro-batches too: owners are places in the round, whatever is optimised together."""
    model, requests = tiny_model("gpt2"), some_requests(4)
    hparams = tiny_hparams(token_budget=token_budget, v_weight_decay=0.0, kl_factor=0.0)
    layout, table = layout_of(model), TokenTable()
    arguments = (layout, encode_round(layout, tokenizer, requests, CONTEXTS), hparams, nll)
    values = compute_values(*arguments, trace=table)
    assert torch.equal(values.z, compute_values(*arguments).z)  # watching changes nothing
    assert table.requests() == [0, 1, 2, 3]
    for i, request in enumerate(requests):
        courses = table.courses(i)
        ids = tokenizer(f" {request.target_new}")["input_ids"]
        assert [course.token for course in courses] == ids
        assert {len(course.losses) for course in courses} == {int(values.steps[i])}
        # with no other term in it, the loss is the mean of the tokens' losses
        mean = sum(table.at_stop(i)) / len(ids)
        assert mean == pytest.approx(float(values.loss[i]), abs=1e-5)
        assert sum(table.at_stop(i)) < sum(course.losses[0] for course in courses)
