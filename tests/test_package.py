"""What the package promises on the outside: names, contents, and a light import."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import nse_plugin

ROOT = Path(__file__).parent.parent


def test_every_folder_with_code_is_packaged():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "nse_plugin").rglob("__init__.py")
    }
    assert listed == found | {"nse_plugin.yamls"}


def test_the_public_names_exist():
    for name in nse_plugin.__all__:
        assert getattr(nse_plugin, name) is not None
    assert set(nse_plugin.__all__) <= set(dir(nse_plugin))


def test_importing_loads_nothing_heavy_and_prints_nothing():
    code = """
import sys, nse_plugin
sys.exit(" ".join({"torch", "transformers", "easyeditor"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shipped_models_and_facts_stay_small():
    files = [p for p in (ROOT / "nse_plugin" / "atlas").rglob("*") if p.suffix != ".py"]
    assert sum(p.stat().st_size for p in files if p.is_file()) < 25e6


def test_versions_in_the_constraints_satisfy_the_package():
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for line in config["options"]["install_requires"].strip().splitlines():
        name, bound = (part.strip() for part in line.split(">="))
        version = [int(part) for part in pinned[name].split(".")]
        assert version >= [int(part) for part in bound.split(".")], line
