"""A run that asks for EasyEdit is not green without it."""

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
