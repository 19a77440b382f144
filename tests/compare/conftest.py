"""A world of a tiny model, and a whole comparison on it."""

from __future__ import annotations

import pytest

from nse_plugin.compare.comparison import write_report
from tests.compare.grids import comparison, make_world, quiet


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def whole(world, tmp_path_factory):
    """Folder and result of a comparison that ran in one go, in this process."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    result = comparison(world, folder).run(quiet)
    write_report(folder, result)
    return folder, result
