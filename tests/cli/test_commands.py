"""The command nse, as a user meets it: results, errors, interrupts, second runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nse_plugin import cli
from nse_plugin.cli.doctor import report
from nse_plugin.data import atlas
from nse_plugin.runs import demo as demo_module
from nse_plugin.session.ledger_files import load_ledger

SUMMARY_KEYS = [
    "method", "model", "seed", "edits", "rounds", "efficacy", "paraphrase", "untouched",
    "retention_first", "seconds_per_edit",
]  # fmt: skip


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_module, "N_UNTOUCHED", 20)
    corpus = atlas.corpus()[:600]  # enough for a covariance of full rank
    monkeypatch.setattr(atlas, "corpus", lambda: corpus)
    return tmp_path


def demo(*arguments):
    return cli.main(["demo", "--edits", "6", "--rounds", "3", *arguments])


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", ["atlas:gpt2", "atlas:llama"])
def test_demo_twice_gives_one_summary(model, capsys):
    assert demo("--model", model, "--out", "a") == 0
    assert demo("--model", model, "--out", "b") == 0
    first, second = read("a/summary.json"), read("b/summary.json")
    assert list(first) == SUMMARY_KEYS
    assert first.pop("seconds_per_edit") > 0 and second.pop("seconds_per_edit") > 0
    assert first == second
    assert (first["edits"], first["rounds"], first["model"]) == (6, 3, model)
    for score in ("efficacy", "paraphrase", "untouched", "retention_first"):
        assert 0.8 <= first[score] <= 1
    shown = capsys.readouterr().out
    assert shown.count("before:") == shown.count("after: ") == 2 * 3
    assert len(load_ledger(Path("a"))) == 3
    assert len(Path("a/rounds.jsonl").read_text().splitlines()) == 3
    manifest = read("a/manifest.json")
    assert manifest["status"] == "complete" and len(manifest["requests"]) == 6


def test_a_second_run_replaces_the_first():
    assert demo("--out", "a") == 0
    assert cli.main(["demo", "--edits", "2", "--rounds", "1", "--out", "a", "--seed", "1"]) == 0
    assert read("a/summary.json")["rounds"] == 1
    assert len(load_ledger(Path("a"))) == 1


def test_an_interrupt_leaves_a_readable_partial_result(monkeypatch, capsys):
    real, calls = demo_module.edit_round, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(demo_module, "edit_round", interrupted)
    assert demo("--out", "a") == 130
    assert "interrupted" in capsys.readouterr().err
    summary = read("a/summary.json")
    assert (summary["rounds"], summary["edits"]) == (2, 4)
    assert read("a/manifest.json")["status"] == "interrupted"
    assert len(load_ledger(Path("a"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "atlas:bert"], "atlas:bert"),
        (["--edits", "0"], "edits is 0; the world has 1 to"),
        (["--edits", "100000"], "edits is 100000"),
        (["--rounds", "7"], "rounds is 7; give 1 to 6"),
        (["--out", "file"], "file is a file; give a folder"),
        (["--out", "foreign"], "foreign holds files that are not of a demo"),
    ],
)
def test_bad_arguments_of_the_demo(arguments, message, capsys):
    Path("file").write_text("x")
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").write_text("x")
    assert demo(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("nse: ") and message in error
    assert Path("foreign/thesis.tex").exists()


def test_stats_are_made_once_and_written_for_easyedit(capsys):
    arguments = ["stats", "--hparams", "NSE/atlas-gpt2", "--samples", "50", "--source", "self",
                 "--stats-dir", "s"]  # fmt: skip
    assert cli.main([*arguments, "--npz"]) == 0
    assert capsys.readouterr().out.count("tokens of 50 texts, written to ") == 2
    (path, _) = sorted(Path("s").rglob("*.npz"))
    with np.load(path, allow_pickle=False) as file:
        assert file["sample_size"] == 50 and file["mom2.mom2"].shape[0] > 100
    before = {p: p.stat().st_mtime_ns for p in Path("s").rglob("*.safetensors")}
    assert len(before) == 2 and cli.main(arguments) == 0
    assert before == {p: p.stat().st_mtime_ns for p in Path("s").rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hparams", "NSE/nothing"], "no hparams file 'NSE/nothing'"),
        (["--hparams", "NSE/atlas-gpt2", "--samples", "0"], "mom2_n_samples is 0"),
        (["--hparams", "NSE/atlas-gpt2", "--model", "/no/such"], "no model folder '/no/such'"),
        (["--hparams", "NSE/atlas-gpt2", "--source", "gone.txt"], "gone.txt"),
    ],
)
def test_bad_arguments_of_stats(arguments, message, capsys):
    assert cli.main(["stats", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_doctor_says_what_was_found(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for what in ("torch", "devices", "host", "model families", "disk at ./data/stats"):
        assert what in shown
    rows = dict(report("not/yet/there"))
    assert "GiB free" in rows["disk at not/yet/there"] and not Path("not").exists()
