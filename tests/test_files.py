"""Files that are written in full or not at all."""

from __future__ import annotations

import errno

import pytest
from safetensors import SafetensorError

from nse_plugin.files import write_whole

FULL = (OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"))  # fmt: skip


@pytest.mark.parametrize("error", FULL, ids=["system", "safetensors"])
def test_an_error_names_the_file_that_stays_as_it_was(tmp_path, error):
    path = tmp_path / "a.safetensors"
    path.write_text("whole")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(path, write)
    assert caught.value.filename == str(path)
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
