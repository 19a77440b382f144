"""benchmarks/gpu.py, tried with tiny shapes on the CPU."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Iterator
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


EVERYWHERE = {
    "accelerate", "benchmarks", "hypothesis", "nse_plugin", "numpy", "packaging", "pandas", "peft",
    "psutil", "pytest", "safetensors", "tests", "tokenizers", "torch", "transformers", "yaml",
}  # fmt: skip
"""Packages of our own, and those that come with the usual images for machines with a GPU."""


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports when it is loaded."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_pytest_can_collect_the_tests_on_a_machine_with_few_packages():
    """One import that fails would end the run of the tests marked ``cuda`` before the first."""
    known = EVERYWHERE | sys.stdlib_module_names
    paths = Path(__file__).parent.rglob("*.py")
    unknown = {str(path): set(imported(path)) - known for path in paths}
    assert not {path: names for path, names in unknown.items() if names}
