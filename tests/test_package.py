"""What the package promises on the outside: names, contents, and a light import."""

from __future__ import annotations

import configparser
import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nse_plugin

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what it is built from."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nse_plugin", "hparams"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as file:
        yield file


def test_every_file_is_in_the_wheel(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = {path.relative_to(ROOT).as_posix() for path in files(ROOT / "nse_plugin")}
    yamls = {
        f"nse_plugin/yamls/{path.relative_to(ROOT / 'hparams').as_posix()}"
        for path in files(ROOT / "hparams")
    }
    assert shipped == tracked | yamls


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_what_an_index_page_would_show(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "nse-plugin" and metadata["Version"] == nse_plugin.__version__
    assert metadata["License-Expression"] == "MIT" and metadata["Author"] and metadata["Keywords"]
    assert len(metadata.get_all("Project-URL")) >= 3 and metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# nse_plugin")


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
    files = [p for p in (ROOT / "nse_plugin" / "data" / "atlas").rglob("*") if p.suffix != ".py"]
    assert sum(p.stat().st_size for p in files if p.is_file()) < 25e6


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-easyedit.txt"])
def test_versions_in_the_constraints_satisfy_the_package(constraints):
    lines = (ROOT / constraints).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"]
    if "easyedit" in constraints:
        wanted += "\n" + config["options.extras_require"]["easyedit"]
    for requirement in map(Requirement, filter(None, wanted.splitlines())):
        if requirement.name in pinned:
            assert requirement.specifier.contains(pinned[requirement.name]), requirement
        else:
            assert "easyedit" in constraints, f"{requirement.name} is not in {constraints}"
