"""A comparison in chat that is resumed when the template gives another text."""

from __future__ import annotations

import shutil

from nse_plugin.runs.reading import RunFiles
from tests.compare.grids import comparison, make_world, quiet
from tests.runs.test_chat_next_day import save_tokenizer


def test_new_cells_have_the_texts_of_the_frozen_answers_that_they_use(tmp_path):
    world, out = make_world(tmp_path), tmp_path / "out"
    save_tokenizer(world / "model", 1)
    asked = dict(methods="NSE", seeds="0", chat=True, rounds=2)
    comparison(world, out, **asked).run(quiet)
    untouched, edited = (out / "cells/tiny" / method / "0" for method in ("untouched", "NSE"))
    first = RunFiles(edited).manifest["run"]["chat"]
    assert first == RunFiles(untouched).manifest["run"]["chat"]
    shutil.rmtree(edited)
    (out / "results/tiny/NSE/0.json").unlink()
    save_tokenizer(world / "model", 2)
    comparison(world, out, **asked).run(quiet)
    assert RunFiles(edited).manifest["run"]["chat"] == first
