"""Every code block of the tutorial and of the README's short example is run, in order.

Blocks marked ``real`` need SmolLM2-135M: ``nse models get smollm2-135m && pytest -m real``.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nse_plugin import cli
from nse_plugin.data import atlas, published

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)[ ]?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, mark, text) of the blocks of a page."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def execute(language: str, mark: str, text: str) -> None:
    if language == "yaml":
        Path(mark).write_text(text)
    elif language == "python":
        exec(compile(text, "block", "exec"), {})
    else:
        for line in text.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "nse" and cli.main(arguments) == 0, line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    corpus = atlas.corpus()[:600]
    monkeypatch.setattr(atlas, "corpus", lambda: corpus)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_that_need_no_download(folder, monkeypatch, capsys):
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(folder / "cache"))
    plain = [b for b in blocks("docs/tutorial.md") if b[1] == ""]
    readme = [b for b in blocks("README.md") if "EditFolder" in b[2]]
    assert len(plain) == 2 and len(readme) == 1
    for block in (*plain, *readme):
        execute(*block)
    shown = capsys.readouterr().out
    assert "the edit is in effect: round 1" in shown and "zither" in shown


@pytest.mark.real
def test_the_blocks_with_a_real_model(folder, capsys):
    if not published.is_fetched(published.MODELS["smollm2-135m"]):
        pytest.skip("smollm2-135m is not in the cache; fetch it: nse models get smollm2-135m")
    found = [block for block in blocks("docs/tutorial.md") if block[1]]
    assert [block[0] for block in found] == ["sh", "sh", "yaml", "sh", "sh", "sh", "python"]
    for block in found:
        execute(*block)
    assert (folder / "adapter" / "README.md").is_file() and (folder / "my-edits.html").is_file()
