"""All methods of a model and a seed are given one stream, also where the model chooses it."""

from __future__ import annotations

import pytest

from nse_plugin.compare import cells
from nse_plugin.compare.results import read_cell
from nse_plugin.errors import DataError
from nse_plugin.evaluation.known import Known
from tests.compare.grids import comparison, quiet


def test_the_model_is_asked_once_and_all_methods_edit_what_it_knows(world, tmp_path, monkeypatch):
    asked = []

    def knows_the_odd_ones(model, tokenizer, requests, *, limit):
        asked.append([request.case_id for request in requests])
        return Known(list(requests)[1::2][:limit])

    monkeypatch.setattr(cells, "keep_known", knows_the_odd_ones)
    grid = comparison(
        world, tmp_path, known=True, limit=2, rounds=1, seeds="0", methods="NSE:one-pass,NSE"
    )
    grid.run(quiet)
    assert len(asked) == 1 and len(asked[0]) == 6, "the limit is on what is kept"
    results = [read_cell(path) for path in tmp_path.glob("results/**/*.json")]
    assert [r["run_info"]["edits"] for r in results if r["run_info"]["method"] != "untouched"] == [
        2, 2
    ]  # fmt: skip
    assert len({result["run_info"]["stream"] for result in results}) == 1

    with pytest.raises(DataError, match="known"):
        comparison(
            world, tmp_path, known=False, limit=2, rounds=1, seeds="0", methods="NSE:one-pass"
        ).run(quiet)
