"""``python -m benchmarks.overtone``: its tables against computed numbers, and its cells."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.overtone import cells, tables
from nse_plugin.errors import DataError
from tests.tiny import tiny_model


def made_up(variant, portability, spread):
    """A cell of two edits."""
    cell = cells.Cell("single", "a-model", "many", "LoRA", variant, 0, None)
    names = [name for both in cells.SCORES.values() for name in both]
    before = dict.fromkeys(names, 0.25)
    each = [
        {"case_id": i, **dict.fromkeys(names, 0.5), "portability_tokens": por, "spread": spread,
         "before": before}
        for i, por in enumerate(portability)
    ]  # fmt: skip
    return cell, {"each": each, "seconds": 60.0}


def test_tables_follow_from_the_numbers():
    found = dict(
        [
            made_up("base", [0.2, 0.4], 0.5),
            made_up("full", [0.5, 0.5], 0.25),
        ]
    )
    (text,) = tables.tables(found)
    half = "50.0 / 50.0 | 50.0 / 50.0"
    assert "| untouched model " + "| 25.0 / 25.0 " * 5 in text
    assert f"| LoRA | {half} | 30.0 / 50.0 | 50.0 / 50.0 | 45.0 / 50.0 | 0.500 |" in text
    assert f"| LoRA + OVERTONE | {half} | 50.0 / 50.0 | 50.0 / 50.0 | 50.0 / 50.0 | 0.250 |" in text
    # per edit +0.3 and +0.1: the bootstrap over two edits has the ends (0.1, 0.1) and (0.3, 0.3)
    gained = "+0.0 (+0.0 to +0.0)"
    assert (
        f"| LoRA + OVERTONE | {gained} | {gained} | +20.0 (+10.0 to +30.0) | {gained} "
        "| -0.250 (-0.250 to -0.250) |"
    ) in text


def test_a_variant_may_be_settings():
    cell = cells.Cell(
        "single", "atlas:gpt2", "one", "NSE, v_num_grad_steps=3", "lambda=0.3, clip=false", 0, None
    )
    hparams = cells.hparams_of(cell)
    assert (hparams.lambda_, hparams.clip, hparams.base.v_num_grad_steps) == (0.3, False, 3)
    assert cell.method == "NSE, v_num_grad_steps=3 + OVERTONE, lambda=0.3, clip=false"


def test_edits_are_of_the_stratum_and_drawn_by_the_seed(tmp_path, tokenizer):
    records = [
        {
            "prompt": f"The river of town {i} is", "subject": f"town {i}", "target_new": target,
            "locality": {"near": {"prompt": "The sea is", "ground_truth": "wide"}},
            "portability": {"hop": {"prompt": f"By town {i} flows", "ground_truth": "water"}},
        }
        for i, target in enumerate(["a", "the long grey water"] * 4)
    ]  # fmt: skip
    del records[1]["portability"]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))

    def drawn(stratum, seed, edits):
        cell = cells.Cell("single", "a-model", stratum, "LoRA", "base", seed, None)
        return [r.subject for r in cells.chosen(cell, edits, [str(path)], tokenizer)]

    three = drawn("many", 0, 3)
    assert sorted(three) == ["town 3", "town 5", "town 7"]  # not the one without portability
    assert drawn("all", 0, 8) == [f"town {i}" for i in range(8)]
    assert drawn("many", 0, 2) == three[:2]  # more edits are added to the same ones
    assert {tuple(drawn("many", seed, 2)) for seed in range(9)} != {tuple(drawn("many", 0, 2))}
    with pytest.raises(DataError, match="give --edits 3"):
        drawn("many", 0, 4)


def test_a_cell_resumes_after_its_last_edit(tmp_path, monkeypatch, tokenizer):
    cell = cells.Cell("single", "atlas:gpt2", "all", "NSE", "full", 0, None)
    calls = []

    def quick(session, requests, hparams, done):
        calls.append((hparams, done))
        yield from ({"case_id": number} for number in range(done, len(requests)))

    monkeypatch.setattr(cells, "single", quick)
    monkeypatch.setattr(cells, "load_model", lambda _: (tiny_model("gpt2"), tokenizer, ""))
    first = cells.run_cell(cell, 2, ["atlas:3"], tmp_path)
    assert cells.run_cell(cell, 2, ["atlas:3"], tmp_path) == first and len(calls) == 1
    assert calls[0][0].method == "OVERTONE" and calls[0][0].base.method == "NSE"
    more = cells.run_cell(cell, 3, ["atlas:3"], tmp_path)
    assert [entry["case_id"] for entry in more["each"]] == [0, 1, 2] and calls[1][1] == 2
    assert cells.run_cell(cell, 1, ["atlas:3"], tmp_path)["each"] == more["each"][:1]
    stale = json.loads((tmp_path / cell.file).read_text())
    stale["identity"]["hparams"]["epsilon"] = 7  # of other settings
    (tmp_path / cell.file).write_text(json.dumps(stale))
    cells.run_cell(cell, 2, ["atlas:3"], tmp_path)
    assert calls[2][1] == 0


def test_bases_have_the_settings_that_they_name_and_variants_one_switch():
    for base, (method, changes) in cells.BASES.items():
        cell = cells.Cell("single", "smollm2-135m", "many", base, "base", 0, None)
        hparams = cells.hparams_of(cell)
        if method in cells.EASYEDITS_OWN:  # in OVERTONE, with settings that make it cross entropy
            assert (hparams.lambda_, hparams.epsilon) == (1.0, 0.0)
            hparams = hparams.base
            assert getattr(hparams, "margin_factor", 1.0) == 1.0
        assert hparams.method == method
        assert {key: getattr(hparams, key) for key in changes} == changes
    changed = replace(cell, base="LoRA, paper, stop_loss=0.05, layers=[3]")
    hparams = cells.hparams_of(changed)
    assert (hparams.stop_loss, hparams.layers, hparams.lora_type) == (0.05, [3], "adalora")
    for variant, switches in cells.VARIANTS.items():
        cell = cells.Cell("single", "smollm2-135m", "many", "LoRA, paper", variant, 0, None)
        hparams = cells.hparams_of(cell)
        assert hparams.method == ("LoRA" if switches is None else "OVERTONE")
        if switches is not None:
            assert (hparams.lambda_, hparams.epsilon, hparams.n_sigma) == (0.1, 0.05, 0.5)
        for name, value in (switches or {}).items():
            assert getattr(hparams, name) is value
