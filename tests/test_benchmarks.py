"""Every benchmark finds what it imports, also after names have changed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
FOUND = sorted(set(FOLDER.glob("[a-z]*.py")) - {FOLDER / "shared.py"})


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path):
    assert callable(runpy.run_path(str(path), run_name="imported")["main"])
