"""The documentation site is built, without warnings, and has what is made from the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|link|img)[^>]*\b(?:src|href)=\"https?:")

pytest.importorskip("sphinx", reason='no Sphinx here: pip install -e ".[docs]"')
pytest.importorskip("myst_parser", reason='no MyST here: pip install -e ".[docs]"')
pytest.importorskip("furo", reason='no theme here: pip install -e ".[docs]"')


def test_the_site_builds_without_warnings(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going",
         "-d", str(tmp_path / "read"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = {p.relative_to(tmp_path / "site"): p for p in (tmp_path / "site").rglob("*.html")}
    for source in (ROOT / "docs").rglob("*.md"):
        assert source.relative_to(ROOT / "docs").with_suffix(".html") in pages, source

    def text(name):
        return pages[Path(f"{name}.html")].read_text(encoding="utf-8")

    assert 'id="nse-consolidate"' in text("generated/commands")
    assert "--round-size" in text("generated/commands")
    assert "mom2_update_weight_relative" in text("settings")
    assert 'id="nse_plugin.EditFolder.edit"' in text("generated/python")
    for page in pages.values():  # it can be read without a network
        assert not FETCHED.search(page.read_text(encoding="utf-8")), page
