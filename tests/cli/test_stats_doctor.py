"""``nse stats`` and ``nse doctor``, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nse_plugin import cli
from nse_plugin.cli.doctor import report
from nse_plugin.data import atlas


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = atlas.corpus()[:600]  # enough for a covariance of full rank
    monkeypatch.setattr(atlas, "corpus", lambda: corpus)
    return tmp_path


def test_stats_are_made_once_and_written_for_easyedit(capsys):
    arguments = ["stats", "--hparams", "NSE/atlas-gpt2", "--samples", "50", "--source", "self",
                 "--stats-dir", "s"]  # fmt: skip
    assert cli.main([*arguments, "--npz"]) == 0
    shown = capsys.readouterr().out
    (path, other) = sorted(Path("s").rglob("*.npz"))
    assert f"     50  {path}\n" in shown and f"     50  {other}\n" in shown
    with np.load(path, allow_pickle=False) as file:
        assert file["sample_size"] == 50 and file["mom2.mom2"].shape[0] > 100
    before = {p: p.stat().st_mtime_ns for p in Path("s").rglob("*.safetensors")}
    assert len(before) == 2 and cli.main(arguments) == 0
    assert before == {p: p.stat().st_mtime_ns for p in Path("s").rglob("*.safetensors")}
    assert "kept in s\n" in capsys.readouterr().err
    assert cli.main([*arguments, "--json"]) == 0
    assert [row["texts"] for row in json.loads(capsys.readouterr().out)] == [50, 50]


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
