"""P against a sum over all keys, whatever was added and taken back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nse_plugin.session import previous_keys as previous_module
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.previous_keys import PreviousKeys
from nse_plugin.session.records import RoundRecord

D_FF = 6


def record(number, n, layers=(1, 2)):
    generator = torch.Generator().manual_seed(number)
    keys = {layer: torch.randn(D_FF, n, generator=generator) for layer in layers}
    return RoundRecord(number, "NSE", (), (), keys)


def brute_force(ledger, layer, neurons, left_out):
    total = torch.zeros(D_FF, D_FF, dtype=torch.float64)
    for entry in ledger:
        for column, key in enumerate(entry.keys.get(layer, torch.empty(D_FF, 0)).T.double()):
            if column not in left_out.get(entry.number, ()):
                total += torch.outer(key, key)
    return total[neurons][:, neurons]


def test_a_round_without_keys_has_none_to_leave_out():
    """Such as one of FT, whose fact NSE edits again."""
    ledger, neurons = Ledger(), torch.arange(D_FF)
    for number, n in ((1, 2), (2, 0)):
        ledger.append(record(number, n))
    previous, columns = PreviousKeys(ledger), {1: [1], 2: [0]}
    with previous.without(columns):
        expected = brute_force(ledger, 1, neurons, columns)
        torch.testing.assert_close(previous.matrix(1, neurons), expected)


STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=12)


@pytest.mark.parametrize("small", [0, 4096], ids=["from keys first", "kept from the start"])
def test_against_a_sum_over_all_keys(small, monkeypatch):
    monkeypatch.setattr(previous_module, "_SMALL", small)

    @settings(max_examples=40, deadline=None)
    @given(STEPS, st.sets(st.integers(0, D_FF - 1), min_size=1), st.data())
    def check(steps, chosen, data):
        ledger = Ledger()
        previous, neurons = PreviousKeys(ledger), torch.tensor(sorted(chosen))
        assert previous.matrix(1, neurons) is None
        for number, (undo, n) in enumerate(steps):
            if undo and len(ledger):
                ledger.truncate(len(ledger) - 1)
                previous.drop_from(len(ledger))
            ledger.append(record(number, n, layers=(1,) if n == 3 else (1, 2)))
            counts = {r.number: r.key_counts.get(1, 0) for r in ledger}
            columns = {n: st.sets(st.integers(0, m - 1)) for n, m in counts.items() if m}
            some = {n: sorted(data.draw(which)) for n, which in columns.items()}
            for left_out in ({}, some, {n: [0] for n in columns}, {}):
                with previous.without(left_out):
                    expected = brute_force(ledger, 1, neurons, left_out)
                    few = previous.few(1, torch.empty(D_FF, 1))
                    assert (few is None) == (2 * sum(counts.values()) > D_FF)
                    if few is not None:
                        torch.testing.assert_close((few @ few.T)[neurons][:, neurons], expected)
                        for factor in (torch.eye(D_FF).double(), 2 * torch.eye(D_FF).double()):
                            solved = previous.solved(1, factor, lambda k, by=factor: by @ k)
                            torch.testing.assert_close(solved, factor @ few)
                    torch.testing.assert_close(previous.matrix(1, neurons), expected)
        torch.testing.assert_close(
            PreviousKeys(ledger).matrix(1, neurons), previous.matrix(1, neurons)
        )

    check()
