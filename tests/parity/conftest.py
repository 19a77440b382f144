"""EasyEdit's own function for values, where there is an EasyEdit."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="session")
def host_compute_z(easyedit):
    """EasyEdit's function; skips with the reason where EasyEdit cannot be had."""
    return importlib.import_module("easyeditor.models.memit.compute_z").compute_z
