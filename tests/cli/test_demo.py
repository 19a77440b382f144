"""``nse demo``, as a user meets it: results, errors, interrupts, second runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nse_plugin import cli
from nse_plugin.runs import demo as demo_module
from nse_plugin.runs.reading import RunFiles
from tests.runs.runs import same_run

SUMMARY_KEYS = [
    "method", "model", "seed", "edits", "rounds", "efficacy", "paraphrase", "other_facts",
    "retention_first", "seconds_per_edit",
]  # fmt: skip
ROUNDS = ["round-0001.safetensors", "round-0002.safetensors", "round-0003.safetensors"]


@pytest.fixture(scope="module", autouse=True)
def few_other_facts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "N_OTHER", 20)
        yield


@pytest.fixture(scope="module")
def finished(few_other_facts, tmp_path_factory):
    """The folder of a finished demo."""
    folder = tmp_path_factory.mktemp("finished") / "a"
    assert demo("--out", str(folder)) == 0
    return folder


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo(*arguments):
    return cli.main(["demo", "--edits", "3", "--rounds", "3", *arguments])


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def rows(shown):
    return [line for line in shown.splitlines() if line.count("|") == 4 and line[4].isdigit()]


def test_quiet_leaves_the_result(finished, capsys):
    assert demo("--out", str(finished), "--quiet") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("after 3 rounds: ") and shown.count("\n") == 1


def test_the_edits_of_a_demo_hold(capsys):
    assert demo("--model", "atlas:llama", "--out", "a") == 0
    summary = read("a/summary.json")
    assert list(summary) == SUMMARY_KEYS and summary["seconds_per_edit"] > 0
    assert (summary["edits"], summary["rounds"], summary["model"]) == (3, 3, "atlas:llama")
    for score in ("efficacy", "paraphrase", "other_facts", "retention_first"):
        assert 0.8 <= summary[score] <= 1
    shown = capsys.readouterr().out
    assert shown.count("before:") == shown.count("after: ") == 3
    assert len(rows(shown)) == 3 and len(RunFiles(Path("a")).ledger) == 3


def test_it_is_a_run_like_any_other(finished, capsys):
    shutil.copytree(finished, "a")
    manifest = read("a/manifest.json")
    assert manifest["made_by"] == "nse run" and manifest["run"]["stream"]["count"] == 3
    assert read("a/final.json")["status"] == "complete"
    assert cli.main(["inspect", "a"]) == 0
    assert cli.main(["undo", "a", "--round", "2"]) == 0
    assert "active rounds: 1, 3" in capsys.readouterr().out


def test_the_same_demo_is_shown_again_and_another_is_refused(finished, capsys):
    shutil.copytree(finished, "a")
    written = {name: Path("a", name).stat().st_mtime_ns for name in ROUNDS}
    summary = read("a/summary.json")
    capsys.readouterr()
    assert demo("--out", "a") == 0
    shown = capsys.readouterr().out
    assert "nothing was left to do: 3 rounds done before" in shown and len(rows(shown)) == 3
    assert read("a/summary.json") == summary
    assert list(summary) == SUMMARY_KEYS and summary["model"] == "atlas:gpt2"
    assert demo("--out", "a", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": "a", "status": "complete", **summary}
    assert cli.main(["demo", "--edits", "2", "--rounds", "1", "--out", "a"]) == 1
    assert "a holds another run" in capsys.readouterr().err
    assert written == {name: Path("a", name).stat().st_mtime_ns for name in ROUNDS}


def test_an_interrupt_leaves_what_the_same_command_resumes(finished, monkeypatch, capsys):
    real = demo_module.Demo.__call__

    def interrupted(self, event, facts):
        real(self, event, facts)
        if event == "round" and facts["round"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_module.Demo, "__call__", interrupted)
        assert demo("--out", "a") == 130
    said = capsys.readouterr().err
    assert "2 finished rounds are in a; the same command resumes after round 2" in said
    summary = read("a/summary.json")
    assert (summary["rounds"], summary["edits"]) == (2, 2)
    assert demo("--out", "a") == 0
    resumed, whole = read("a/summary.json"), read(finished / "summary.json")
    assert {**resumed, "seconds_per_edit": 0} == {**whole, "seconds_per_edit": 0}
    assert same_run(finished, "a")


def test_an_interrupt_before_the_first_round_says_so(monkeypatch, capsys):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "make_scheduler", interrupted)
    assert demo("--out", "a") == 130
    assert "no run was started yet" in capsys.readouterr().err and not Path("a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "atlas:bert"], "atlas:bert"),
        (["--edits", "-1"], "edits is -1; it must be a whole number"),
        (["--edits", "100000"], "edits is 100000; give 1 to"),
        (["--rounds", "7"], "rounds is 7; give 1 to 3"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert demo(*arguments) == 1
    error = capsys.readouterr().err
    assert "nse: " in error and message in error
