"""SIGTERM in the middle of each command: one line, nothing half-written, and the same command
again ends as one that nobody interrupted.  tests/compare/test_engines.py has those with workers."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from safetensors.torch import load_file

from nse_plugin import cli
from nse_plugin.cli.app import _COMMANDS

QUICK = """
alg_name: NSE
model_name: atlas:gpt2
layers: [1, 2]
v_num_grad_steps: 2
mom2_adjustment: false
n_contexts: 1
max_iterations: 1
"""
FACT = ["--prompt", "{Stojeish Pekapex} speaks", "--target", "Zibriish"]
SMALL = ["--hparams", "quick.yaml", "--data", "atlas:2"]
EDIT = ["edit", "--hparams", "quick.yaml", *FACT]
COMMIT = "nse_plugin.session.session.EditSession.commit"
CASES = {  # a command, and the call of which function is interrupted
    "edit": ([*EDIT, "--out", "new"], "os.replace", 2),
    "run": (["run", *SMALL, "--round-size", "1", "--out", "new"], COMMIT, 2),
    "tune": (
        ["tune", "--model", "atlas:gpt2", "--data", "atlas", "--out", "new.yaml"],
        "nse_plugin.tune.trials.Trials._edited",
        3,
    ),
    "ask": (["ask", "kept", "Stojeish Pekapex speaks"], "nse_plugin.runs.edits.reply", 2),
    "inspect": (["inspect", "kept", "--html", "new.html"], "os.replace", 1),
    "overfit": (["overfit", *SMALL], COMMIT, 2),
    "undo": (["undo", "kept", "--round", "1"], "os.replace", 1),
    "consolidate": (["consolidate", "kept"], "os.replace", 1),
    "export": (["export", "kept", "--to", "full", "--out", "new"], "os.fsync", 2),
    "stats": (
        ["stats", "--hparams=quick.yaml", "--source=atlas", "--samples=300", "--stats-dir=stats"],
        "nse_plugin.statistics.covariance._Sums.add_batch",
        2,
    ),
}
ELSEWHERE = {
    "compare": "tests/compare/test_engines.py, with its workers",
    "chat": "tests/cli/test_edit.py, in a terminal",
    "demo": "tests/cli/test_demo.py; it is a run",
    "models": "tests/data/test_published.py",
    "doctor": "tests/cli/test_app.py; it writes nothing",
}


def test_every_command_is_ended_by_a_test():
    assert set(_COMMANDS) == {*CASES, *ELSEWHERE}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder with a quick YAML and a folder of one edit."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nse_plugin.report.page.Page.html", lambda _self: "a page")
        patched.setattr("nse_plugin.tune.trials.Trials._compute_statistics", lambda *_: None)
        patched.setattr("nse_plugin.tune.trials.Trials._edited", scored)
        folder = tmp_path_factory.mktemp("ended")
        patched.setenv("NSE_PLUGIN_CACHE", str(folder / "cache"))
        patched.chdir(folder)
        (folder / "quick.yaml").write_text(QUICK)
        assert cli.main([*EDIT, "--out", "kept", "-q"]) in (0, 3)
        yield folder


def scored(_self, settings, _facts):
    """In place of a trial of nse tune."""
    value = 1 / (1 + settings["layers"][-1])
    return {"scores": {"efficacy": value, "paraphrase": value, "locality": value}}


@contextmanager
def sigterm_at(place: str, call: int):
    """Send it to this process at some call of a function."""
    real, calls = patch(place).get_original()[0], []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return real(*args, **kwargs)

    with patch(place, counted):
        yield


@pytest.mark.parametrize("name", CASES)
def test_sigterm_and_the_same_command_again(name, scratch, tmp_path, monkeypatch, capsys):
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("the tests were started with this signal handled")
    arguments, place, call = CASES[name]
    folders = [tmp_path / "whole", tmp_path / "ended"]
    for folder in folders:
        for part in ("quick.yaml", "kept"):
            copy = shutil.copytree if (scratch / part).is_dir() else shutil.copy
            folder.mkdir(exist_ok=True)
            copy(scratch / part, folder / part)
    monkeypatch.chdir(folders[0])
    code = cli.main(arguments)
    monkeypatch.chdir(folders[1])
    children = psutil.Process().children(recursive=True)
    capsys.readouterr()
    with sigterm_at(place, call):
        assert cli.main(arguments) == 128 + signal.SIGTERM
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("nse: interrupted"), said
    assert psutil.Process().children(recursive=True) == children
    assert "progress" not in {thread.name for thread in threading.enumerate()}
    assert not [path for path in folders[1].rglob("*") if ".tmp" in path.name]
    assert cli.main(arguments) == code
    found, wanted = map(contents, folders)
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(tensors[name], other[name])
        for tensors, other in zip(found.values(), wanted.values())
        for name in other
    )


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The files below a folder, and the tensors of those that hold some."""
    return {
        path.relative_to(folder).as_posix(): load_file(path)
        if path.suffix == ".safetensors"
        else {}
        for path in folder.rglob("*")
        if path.is_file()
    }
