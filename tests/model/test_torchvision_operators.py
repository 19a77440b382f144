"""Whatever imports transformers does so after torchvision was made importable."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

from tests.test_package import ROOT

STAND_IN = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""


def test_the_room_of_models_declares_the_operators(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(STAND_IN)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "import nse_plugin.model, torchvision"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiled operators do not load" in done.stderr


def test_modules_import_transformers_below_the_room_of_models_only():
    """Elsewhere a module would import it before nse_plugin.model, as imports are sorted."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "nse_plugin").rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
    ]
    assert found and all(path.startswith("nse_plugin/model/") for path in found)
