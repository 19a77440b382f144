"""The notebook, executed from top to bottom."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "neurons.py"

pytest.importorskip("marimo", reason='no marimo here: pip install -e ".[notebook]"')


def test_it_edits_looks_and_undoes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the notebook puts its folder
    outputs, values = runpy.run_path(str(NOTEBOOK))["app"].run()
    assert len(values["reports"]) == 4 and all(report.in_effect for report in values["reports"])
    assert set(values["writers"]["round"]) <= {1, 2, 3, 4} and len(values["writers"])
    assert len(values["gone"]) == 3 and len(values["still"]) == 9
    assert values["same_bits"] is True
    shown = [getattr(output, "text", "") for output in outputs]
    assert sum(text.count("<img src='data:image/png") for text in shown) == 2  # the figures
    assert any("to the bit" in text for text in shown)
