"""docs/settings.md, which is made from the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert page == reference.settings_page(), "bring it up to date: python docs/reference.py"
    assert "| `until_collapse` | float or null above 0 and at most 1 | `null` |" in page
    assert '| `order` | `given` or `shuffled` or `grouped` | `"given"` |' in page
    assert "| `lambda` | float from 0 to 1 |" in page  # in YAML; lambda_ in Python
