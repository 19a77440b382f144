"""The documentation site is built, without warnings, and has what is made from the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|link|img)[^>]*\b(?:src|href)=\"https?:")

pytest.importorskip("sphinx", reason='no Sphinx here: pip install -e ".[docs]"')
pytest.importorskip("myst_parser", reason='no MyST here: pip install -e ".[docs]"')
pytest.importorskip("furo", reason='no theme here: pip install -e ".[docs]"')


def test_the_site_builds_without_warnings(tmp_path, monkeypatch, capsys):
    from sphinx.cmd.build import main  # as python -m sphinx, where torch is imported already

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # docs/conf.py adds to it
    options = ["-q", "-W", "--keep-going", "-d", str(tmp_path / "read")]
    assert main([*options, str(ROOT / "docs"), str(tmp_path / "site")]) == 0, capsys.readouterr()
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
