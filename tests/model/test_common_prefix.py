"""Rows grouped by common start and by length, and the tokens that a capture computes."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nse_plugin.model.common_prefix import groups
from nse_plugin.model.full_pass import FullPass
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import PASS, TokenBatch, cheapest_batches
from nse_plugin.model.replay import Replay

ROW = st.tuples(st.sampled_from([0, 6, 9]), st.lists(st.integers(1, 2), min_size=1, max_size=12))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.data())
def test_every_row_is_in_one_group_and_what_is_common_is(pairs, data):
    rows = [[7] * n_common + rest for n_common, rest in pairs]
    starts = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    found = groups(rows, starts)
    assert sorted(i for group in found for i in group.rows) == list(range(len(rows)))
    for group in found:
        assert len({tuple(rows[i][: group.common]) for i in group.rows}) == 1
        assert group.common <= min(starts[i] for i in group.rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=8).map(sorted))
def test_batches_cost_least(widths):
    def cost(runs):
        return sum(PASS + len(widths[run]) * max(widths[run]) for run in runs)

    found = cheapest_batches(widths)
    assert [w for run in found for w in widths[run]] == widths
    places = range(1, len(widths))
    cuts = [c for k in range(len(widths)) for c in itertools.combinations(places, k)]
    ways = [[slice(a, b) for a, b in zip((0, *c), (*c, len(widths)))] for c in cuts]
    assert cost(found) == min(cost(way) for way in ways)


def test_a_common_start_is_computed_once(any_model):
    layout, start = layout_of(any_model), list(range(1, 13))
    rows = [[*start, 20, 21, 22], [*start, 23, 24, 25, 26], [30, 31, 32, 33], [*start, 27, 28, 29]]
    starts = torch.tensor([13, 14, 2, 12])
    batch = TokenBatch.of(rows, "cpu")
    whole = FullPass.capture(layout, batch, starts, layer=1, last=3)
    computed = 0

    def count(_module, args, kwargs):
        nonlocal computed
        computed += (args[0] if args else kwargs["input"]).numel()

    embeddings = any_model.get_input_embeddings()
    handle = embeddings.register_forward_pre_hook(count, with_kwargs=True)
    tails = Replay.capture(layout, batch, starts, layer=1, last=3)
    handle.remove()
    assert computed == len(start) + 3 + 4 + 4 + 3 + 2  # two padded: 3, 3 and 4 in one pass
    got, expected = tails.run(tails.hidden), whole.run(whole.hidden)
    for row, length in enumerate(whole.lengths.tolist()):
        torch.testing.assert_close(got[row, :length], expected[row, :length], atol=2e-4, rtol=2e-4)
