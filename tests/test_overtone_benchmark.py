"""benchmarks/overtone.py: what its page says of given numbers, and that finished cells are kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "overtone.py"
    spec = importlib.util.spec_from_file_location("overtone_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def made_up(benchmark):
    """OVERTONE gains 2 points of Por in seed 0 and 4 in seed 1, all else is equal."""
    names = [name for both in benchmark.SCORES.values() for name in both]
    found = {}
    for cell in benchmark.cells([0, 1], 3, 5):
        scores = dict.fromkeys(names, 0.5)
        if cell.variant != "base":
            scores["portability"] += 0.02 * (cell.seed + 1)
        before = dict.fromkeys(names, 0.25)
        found[cell] = {"scores": scores, "before": before, "spread": 0.125, "seconds": 60.0}
    return benchmark.Results(found)


def test_tables_and_findings_follow_from_the_numbers(benchmark):
    page = benchmark.page(made_up(benchmark), [0, 1], "command", 1.0)
    assert "@" not in page
    plain = "| 50.0 / 50.0 " * 5 + "| 0.125 |"
    assert page.count(f"| FT-M {plain}") == 4  # two kinds, two models
    assert page.count(f"| LoRA {plain}") == 6  # and the ablation's
    full = "| NSE + OVERTONE | 50.0 / 50.0 | 50.0 / 50.0 | 53.0 / 50.0 | 50.0 / 50.0 | 50.8 / 50.0 "
    assert page.count(full) == 4
    assert page.count("| untouched model " + "| 25.0 / 25.0 " * 5 + "| - |") == 4
    assert page.count("Por +3.0 (2 of 2) / +0.0") == 16
    for variant in ("no clip", "frozen reference", "no argmax check", "no filter"):
        assert page.count(f"| OVERTONE, {variant} |") == 2


def test_cells_are_those_of_the_page_each_once(benchmark):
    cells = benchmark.cells([0, 1, 2], 20, 100)
    assert len(cells) == len(set(cells)) == len({cell.file for cell in cells}) == 120


def test_a_finished_cell_is_read_and_not_run_again(benchmark, tmp_path, monkeypatch):
    cell = benchmark.Cell("single", "gpt2", "NSE", "full", 0, 1)
    calls = []

    def quick(session, requests, hparams, bounds):
        calls.append(hparams)
        answers = benchmark.ask(session.model, session.tokenizer, requests, bounds)
        return answers, [0.5]

    monkeypatch.setattr(benchmark, "single", quick)
    first = benchmark.run_cell(cell, tmp_path)
    assert benchmark.run_cell(cell, tmp_path) == first and len(calls) == 1
    assert calls[0].method == "OVERTONE" and calls[0].base.stats_dir == str(tmp_path / "stats")
    stale = json.loads((tmp_path / cell.file).read_text())
    stale["identity"]["hparams"]["epsilon"] = 7  # of other settings
    (tmp_path / cell.file).write_text(json.dumps(stale))
    assert benchmark.run_cell(cell, tmp_path)["scores"] == first["scores"] and len(calls) == 2


def test_variants_switch_one_thing_off(benchmark, tmp_path):
    for variant, switches in benchmark.VARIANTS.items():
        cell = benchmark.Cell("single", "llama", "LoRA", variant, 0, 1)
        hparams = benchmark.hparams_of(cell, tmp_path)
        assert hparams.method == ("LoRA" if switches is None else "OVERTONE")
        for name, value in (switches or {}).items():
            assert getattr(hparams, name) is value
