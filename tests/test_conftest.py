"""A run that asks for EasyEdit is not green without it; a plain one leaves out real models."""

from __future__ import annotations

import pytest

from tests.test_package import ROOT


def run(path: str) -> int:
    """A run of pytest within this one, where torch is imported already; its exit code."""
    options = ["-q", "-x", "-rs", "-p", "no:cacheprovider", "--capture=no"]
    return pytest.main([*options, f"--rootdir={ROOT}", str(ROOT / path)])


def test_where_a_checkout_is_named_its_tests_fail_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EASYEDIT_ROOT", str(tmp_path))
    assert run("tests/parity/test_host_training.py") == 1
    assert "there is no easyeditor/__init__.py in it" in capsys.readouterr().out


def test_a_plain_run_says_how_to_run_the_tests_of_real_models(capsys):
    assert run("tests/test_real_model.py") == 0
    said = capsys.readouterr().out
    assert "run: pytest -m real" in said and "passed" not in said
