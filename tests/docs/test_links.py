"""Links between the pages lead somewhere, and docs/index.md leads to every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT

LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def linked(page: Path) -> set[Path]:
    """The files that a page links to."""
    return {(page.parent / link).resolve() for link in LINK.findall(page.read_text("utf-8"))}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    assert [path for path in linked(ROOT / page) if not path.exists()] == []


def test_every_page_is_in_the_index():
    index = DOCS / "index.md"
    assert {ROOT / page for page in PAGES} <= {index, *linked(index)}
