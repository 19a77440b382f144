"""``nse stats`` and ``nse doctor``, as a user meets them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from nse_plugin import cli, hparams_for
from nse_plugin.data.models import load_model
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.requests import EditRequest
from nse_plugin.runs.doctor import report
from nse_plugin.session.session import EditSession
from nse_plugin.statistics import covariance
from nse_plugin.statistics.files import stats_folder
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_stats_are_made_once_and_written_for_easyedit(capsys):
    arguments = ["stats", "--hparams", "NSE/atlas-gpt2", "--samples", "20", "--source", "self",
                 "--stats-dir", "s"]  # fmt: skip
    assert cli.main([*arguments, "--npz"]) == 0
    shown = capsys.readouterr().out
    (path, other) = sorted(Path("s").rglob("*.npz"))
    assert f"     20  {path}\n" in shown and f"     20  {other}\n" in shown
    with np.load(path, allow_pickle=False) as file:
        assert file["sample_size"] == 20 and file["mom2.mom2"].shape[0] > 100
    before = {p: p.stat().st_mtime_ns for p in Path("s").rglob("*.safetensors")}
    assert len(before) == 2 and cli.main(arguments) == 0
    assert before == {p: p.stat().st_mtime_ns for p in Path("s").rglob("*.safetensors")}
    assert "kept in s\n" in capsys.readouterr().err
    assert cli.main([*arguments, "--json"]) == 0
    assert [row["texts"] for row in json.loads(capsys.readouterr().out)] == [20, 20]


def test_python_finds_what_the_command_computed(capsys, monkeypatch):
    """Both use the cache, since there is no ./data/stats; the hyperparameters stay as they are."""
    arguments = ["stats", "--hparams", "NSE/atlas-gpt2", "--samples", "20", "--source", "self"]
    assert cli.main(arguments) == 0
    assert f"kept in {stats_folder()}\n" in capsys.readouterr().err
    monkeypatch.setattr(covariance, "_one_pass", lambda *_: pytest.fail("computed again"))
    shipped = NSEHparams.from_hparams("NSE/atlas-gpt2")
    hparams = dataclasses.replace(shipped, mom2_dataset="self", mom2_n_samples=20)
    model, tokenizer, _ = load_model(hparams)
    request = EditRequest("a", "{} lives in", "Mara Voss", " Garn")
    edit_round(EditSession.of(model, tokenizer), [request], hparams)
    assert hparams.stats_dir == "./data/stats"


def test_a_model_without_a_yaml_has_the_layers_of_the_general_settings(tmp_path, capsys, tokenizer):
    folder = str(tmp_path / "mine")
    tiny_model("gpt2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Path("prose.txt").write_text("The river is long.\n" * 5, encoding="utf-8")
    arguments = ["stats", "--model", folder, "--source", "prose.txt", "--json"]
    assert cli.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in rows] == hparams_for("NSE", folder).layers == [0, 1]
    assert cli.main(arguments[:-1]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[-2:]] == ["0", "1"]


def test_files_for_easyedit_are_where_it_looks(capsys):
    arguments = ["stats", "--hparams", "NSE/atlas-gpt2", "--samples", "20", "--source", "self"]
    assert cli.main([*arguments, "--npz"]) == 0
    assert len(list(Path("data/stats").rglob("*.npz"))) == 2 and not Path("cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is missing; give --model, or --hparams"),
        (["--hparams", "NSE/atlas-gpt2", "--method", "NSE"], "leave one out"),
        (["--model", "atlas:gpt2", "--method", "FT"], "FT uses no covariance"),
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
    for what in ("torch", "devices", "host", "model families", "statistics"):
        assert what in shown
    assert str(stats_folder()) in dict(report())["statistics"]
    found = dict(report("not/yet/there"))["statistics"]
    assert re.match(r"in not/yet/there, [\d.]+ GiB free", found) and not Path("not").exists()
