"""EasyEdit's own function for values, where there is an EasyEdit."""

from __future__ import annotations

import importlib

import pytest

from nse_plugin.errors import HostError
from nse_plugin.toolkit import seams

seams.make_torchvision_importable()  # before transformers' models are imported


@pytest.fixture(scope="session")
def host_compute_z():
    """EasyEdit's function; skips with the reason where EasyEdit cannot be had."""
    host = seams.find()
    if host is None:
        pytest.skip(f"no EasyEdit on this machine: {seams.HOW_TO_GET_IT}")
    try:
        seams.load(host)
    except HostError as error:
        pytest.skip(str(error))
    return importlib.import_module("easyeditor.models.memit.compute_z").compute_z
