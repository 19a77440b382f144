"""benchmarks/memory.py says what a session really keeps, and docs/memory.md what it prints."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from nse_plugin.methods.nse import edit_round
from nse_plugin.runs.budget import estimate
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_hparams, tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("d_ff", [48, 8])  # of 5 keys in all, 48 / 2 are more and 8 / 2 fewer
def test_it_is_what_a_session_keeps(benchmark, tokenizer, tmp_path, d_ff):
    hparams = tiny_hparams(stats_dir=str(tmp_path), mom2_update_weight=10.0)
    model = tiny_model("llama", intermediate_size=d_ff)
    session = EditSession.of(model, tokenizer)
    for requests in (some_requests(3), some_requests(5)[3:]):
        edit_round(session, requests, hparams)
    session.previous_keys.catch_up()
    (layer, *_), name = hparams.layers, session.layout.down_name(hparams.layers[0])
    keys, untouched = session.previous_keys._layers[layer], session.untouched
    factor = next(kept for key, kept in untouched._derived.items() if key[0] == layer)
    found = {
        "C": size([untouched.covariances(hparams)[layer]]),
        "factor of C": size([factor]),
        "previous keys": size(keys.keys),
        "previous keys, solved": 8 * d_ff * 5 if keys.are_few else 0,  # those of the next round
        "P, in place of the keys": 0 if keys.total is None else size([keys.total]),
        "original weight": size([session.weights.original(name)]),
        "change": size([session.weights.change(name)]),
    }
    assert keys.are_few == (d_ff == 48)
    bounds, layers = estimate(model, hparams, 5, 5), len(hparams.layers)
    weights = ("original weight", "change")
    assert layers * sum(found[name] for name in weights) <= bounds.memory_originals
    solve = sum(n for name, n in found.items() if name not in weights)
    assert layers * solve + 3 * 8 * d_ff**2 <= bounds.memory_solve
    assert benchmark["kept"](32, d_ff, 5, weight_bytes=4) == found
    if keys.are_few:  # of the first round, which the second one solved with
        assert size(keys.solved) == 8 * d_ff * 3


def test_the_page_has_the_table(benchmark):
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert benchmark["table"]([(4096, 14336), (8192, 28672)], [1000, 10_000]) in page
