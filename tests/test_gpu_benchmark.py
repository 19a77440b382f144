"""benchmarks/gpu.py, tried with tiny shapes on the CPU."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

SMALL = """
    --device cpu --dtype float32 --layers 2 --d-model 32 --d-ff 64 --heads 2 --kv-heads 1
    --vocab 1024 --edited 0 1 --rounds 1 2 --steps 2
"""


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gpu.py"))["main"]


def test_it_measures_rounds_of_each_size(main, tmp_path, capsys):
    assert main([*SMALL.split(), "--out", str(tmp_path / "gpu.md")]) == 0
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and "d_model 32, d_ff 64" in text
    head, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line)
    found = [dict(zip(head, row)) for row in rows]
    assert [row["edits in the round"] for row in found] == ["1", "2"]
    for row in found:
        whole = float(row["s per edit"])
        assert 0 < float(row["values"]) < whole and float(row["keys"]) < whole
        assert float(row["peak GiB"]) > 0 and float(row["values / floor"]) > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_how_to_try_it(main, capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "try it with --device cpu" in capsys.readouterr().err
