"""``nse edit``, ``nse ask`` and ``nse chat``, as a user meets them."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from unittest.mock import Mock

import pytest

from nse_plugin import cli
from nse_plugin.hparams.variants import read_method_yaml
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.requests import EditRequest
from nse_plugin.runs.edits import EditFolder
from nse_plugin.runs.reading import RunFiles
from tests.cli.terminal import Terminal

TEXT, OLD, NEW = "Stojeish Pekapex speaks", "Stugixish", "Zibriish"
QUICK = ["--method", "NSE:polyak;n_contexts=1"]
EDIT = ["edit", "--model", "atlas:gpt2", *QUICK, "--prompt", "{Stojeish Pekapex} speaks",
        "--target", NEW]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder to work in, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("hands")
        patch.chdir(folder)
        patch.setenv("NSE_PLUGIN_CACHE", str(folder / "cache"))
        (folder / "half.yaml").write_text("- prompt: '{A B} is'")
        assert cli.main([*EDIT, "--out", "kept", "--quiet"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def in_scratch(scratch):
    return scratch


def test_the_outcome_of_an_edit_is_shown_and_is_the_exit_code(capsys):
    assert cli.main([*EDIT, "--out", "a"]) == 0
    both = capsys.readouterr()
    lines = both.out.splitlines()
    assert lines[0] == f"{TEXT} -> {NEW}" and lines[-1] == "the edit is in effect: round 1 of a"
    assert "nse ask a" in both.err
    words = "a language of the moon that nobody knows"
    again = ["edit", "--prompt", "{Ann Lee} speaks", "--target", words, "--out", "a"]
    assert cli.main([*again, "--json", "-q"]) == 3
    both = capsys.readouterr()
    found = json.loads(both.out)
    assert (found["round"], found["in_effect"], found["earlier"]["asked"]) == (2, False, 1)
    assert "next:" not in both.err


@pytest.mark.parametrize("made_in_chat", [False, True])
def test_how_to_ask_for_an_edit_that_does_not_show(monkeypatch, capsys, made_in_chat):
    """With --plain if the edit was made in plain text and the question was asked in chat."""
    raw = Mock(chat_template="{{ messages }}")
    edits = Mock(tokenizer=raw, session=Mock(tokenizer=raw))
    if made_in_chat:
        edits.session.tokenizer = object.__new__(ChatTokenizer)
    edits.missed.return_value = [EditRequest(0, "{} speaks", "Stojeish Pekapex", NEW)]
    monkeypatch.setattr("nse_plugin.runs.edits.EditFolder", lambda *_, **__: edits)
    assert cli.main(["ask", "kept", "Who is it?"]) == 0
    assert ("and --plain" in capsys.readouterr().err) != made_in_chat


def test_the_folder_is_asked_inspected_undone_and_exported(capsys):
    assert cli.main(["ask", "kept", TEXT, "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["edited"].startswith(NEW) and reply["untouched"].startswith(OLD)
    longer = f"Who is Stojeish Pekapex? {TEXT} {NEW} and"
    assert cli.main(["ask", "kept", longer, "--tokens", "1"]) == 0
    told = capsys.readouterr().err
    assert "does not show in this answer" in told and "next: ask with its prompt, or edit" in told
    assert cli.main(["inspect", "kept"]) == 0
    assert cli.main(["export", "kept", "--to", "delta", "--out", "delta"]) == 0
    assert "1 edit of 1 round on atlas-gpt2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "--out", "kept", "--target", "x"], "--prompt is missing; give --prompt"),
        (["edit", "--prompt", "a b", "--target", "x"], "put it in braces"),
        (["edit", "--facts", "f.yaml", "--target", "x"], "--facts and --target were given"),
        (["edit", "--facts", "f.yaml"], "there is no file 'f.yaml'"),
        (["edit", "--facts", "halv.yaml"], "'halv.yaml'; did you mean 'half.yaml'?\n"),
        (["edit", "--prompt", "{} plays the", "--target", "x"], "as the subject (--subject"),
        (["edit", "--facts", "half.yaml"], "the fact '{A B} is' has no target"),
        ([*EDIT[:-2], "--target", " ", "--out", "new"], "target is ' '; give a text"),
        (["ask", "nowhere", "x"], "nowhere is not a folder"),
        (["ask", "kept", " "], "QUESTION is ' '; give a question"),
        (["chat", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line_and_come_before_the_model(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(EditFolder, "__init__", lambda *_a, **_k: pytest.fail("too late"))
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("nse: ") and message in error and error.count("\n") == 1


def test_a_chat_in_a_terminal(scratch):
    shutil.copytree("kept", "talk")
    terminal = Terminal("chat", "talk", "--tokens", "3")
    try:
        assert "with 1 round of edits" in terminal.until_prompt()
        assert NEW[:3] in terminal.say(TEXT)
        assert f"untouched: {OLD[:3]}" in terminal.say("/original")
        assert "round 1: without it the next token is" in terminal.say("/blame")
        assert "there is no /undp; did you mean '/undo'?" in terminal.say("/undp")
        assert "round 2 of talk" in terminal.say("/edit {Zawos Kofird} speaks => Zibriish")
        assert "active rounds: 2" in terminal.say("/undo 1")
        assert OLD[:3] in terminal.say(TEXT)
        assert terminal.terminate() == 128 + signal.SIGTERM
    finally:
        terminal.process.kill()
    assert RunFiles(scratch / "talk").ledger.numbers() == [2]
    assert cli.main(["inspect", "talk"]) == 0


def test_a_chat_ends_with_quit_and_with_the_input(monkeypatch, capsys):
    for answer in ("/quit", "/quit now", "/q", EOFError()):
        monkeypatch.setattr("builtins.input", Mock(side_effect=[answer]))
        assert cli.main(["chat", "kept"]) == 0
        assert "/help for commands" in capsys.readouterr().out


def test_errors_do_not_end_a_chat(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "kept/round-0003.safetensors")
    monkeypatch.setattr(EditFolder, "edit", Mock(side_effect=full))
    said = ["/undo ²", "/edit {Ann Lee} speaks => Zibriish", "/help", "/quit"]
    monkeypatch.setattr("builtins.input", Mock(side_effect=said))
    assert cli.main(["chat", "kept"]) == 0
    shown = capsys.readouterr()
    assert "round is '²'; give the number of a round" in shown.err
    assert "No space left on device; free space" in shown.err and "/blame" in shown.out


def test_a_consolidation_that_loses_answers_says_so(monkeypatch, capsys):
    line = {"file": 3, "edits": 5, "answered_before": 5, "answered": 4}
    monkeypatch.setattr("nse_plugin.runs.reading.RunFiles", Mock())
    monkeypatch.setattr("nse_plugin.runs.consolidate.can_consolidate", lambda _files: True)
    made = Mock(consolidate=Mock(return_value=line))
    monkeypatch.setattr("nse_plugin.runs.edits.EditFolder", Mock(return_value=made))
    given = ["consolidate", "run1", "--repair-rounds", "2", "--without", "5", "--without", "7"]
    assert cli.main(given) == 0
    made.consolidate.assert_called_once_with(2, without=[5, 7])
    shown = capsys.readouterr()
    assert "5 of them were in effect before, 4 are now" in shown.out
    assert "undo it with: nse undo run1 --round 3" in shown.err
    line["answered"] = 5
    assert cli.main(["consolidate", "run1", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == line and "undo" not in shown.err


def test_a_run_whose_method_has_no_values_is_not_consolidated(monkeypatch, capsys):
    monkeypatch.setattr(EditFolder, "__init__", lambda *_a, **_k: pytest.fail("too late"))
    monkeypatch.setattr(RunFiles, "hparams", read_method_yaml("LoRA/atlas-gpt2"))
    assert cli.main(["consolidate", "kept"]) == 1
    assert "kept is a run of LoRA, whose rounds cannot" in capsys.readouterr().err
