"""A run that asks for EasyEdit is not green without it; a plain one leaves out real models."""

from __future__ import annotations

import subprocess
import sys

from tests.test_package import ROOT


def test_where_a_checkout_is_named_its_tests_fail_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EASYEDIT_ROOT", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         "tests/parity/test_host_training.py"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "there is no easyeditor/__init__.py in it" in done.stdout


def test_a_plain_run_says_how_to_run_the_tests_of_real_models():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
         "tests/test_real_model.py"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "run: pytest -m real" in done.stdout
    assert "passed" not in done.stdout
