"""Every code block of the tutorial is run, in order.

Blocks marked ``real`` need SmolLM2-135M: ``nse models get smollm2-135m && pytest -m real``.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest

from nse_plugin import cli
from nse_plugin.data import published
from tests.docs.pages import Block, blocks


def execute(block: Block) -> None:
    if block.language == "yaml":
        Path(block.mark).write_text(block.text)
    elif block.language == "python":
        exec(compile(block.text, "block", "exec"), {})
    else:
        for line in block.text.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "nse" and cli.main(arguments) == 0, line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_that_need_no_download(folder, capsys):
    plain = [b for b in blocks("docs/tutorial.md") if b.mark == ""]
    assert len(plain) == 2
    for block in plain:
        execute(block)
    shown = capsys.readouterr().out
    assert "the edit is in effect: round 1" in shown and "zither" in shown


@pytest.mark.real
def test_the_blocks_with_a_real_model(folder, monkeypatch, capsys):
    if not published.is_fetched(published.MODELS["smollm2-135m"]):
        pytest.skip("smollm2-135m is not in the cache; fetch it: nse models get smollm2-135m")
    found = [block for block in blocks("docs/tutorial.md") if block.mark]
    assert [block.language for block in found] == ["sh", "sh", "yaml", "sh", "sh", "sh", "python"]
    shown = []
    for block in found:
        execute(block)
        if "nse ask" in block.text:  # the conversation that the text beside it describes
            said = ["Where is the Eiffel Tower?", "/original", "/blame", "/quit"]
            monkeypatch.setattr("builtins.input", Mock(side_effect=said))
            assert cli.main(["chat", "first-edits"]) == 0
        shown.append(capsys.readouterr().out)
    _, first, _, second, asked, kept, in_python = shown
    assert first.endswith("the edit is in effect: round 1 of first-edits\n")
    assert second.endswith("all 2 edits are in effect: round 2 of first-edits\n")
    answers = asked.splitlines()
    assert "Rome" in answers[0] and "Paris" in answers[1]  # edited and untouched, in chat
    assert "untouched: " in asked and "round 1: without it the next token is" in asked
    assert "round 1 of first-edits is undone; active rounds: 2" in kept
    assert "the edit is in effect: round 3 of first-edits" in in_python
    assert (folder / "first-adapter" / "README.md").is_file() and (
        folder / "first-edits.html"
    ).is_file()
