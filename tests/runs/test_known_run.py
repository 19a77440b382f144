"""A run about facts that the model knows, and what its listeners hear of that."""

from __future__ import annotations

import json

from nse_plugin.data import atlas
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.start import make_scheduler


def test_known_keeps_the_first_that_are_known_up_to_the_limit(tmp_path):
    records = atlas.edit_set(8)
    records[1]["requested_rewrite"]["target_true"]["str"] = "nothing that anybody says"
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    settings = RunSettings(
        hparams="NSE/atlas-gpt2", data=str(data), out=str(tmp_path / "run"), known=True, limit=5
    )
    heard = []
    scheduler = make_scheduler(settings, [lambda event, facts: heard.append((event, facts))])
    (planned,) = scheduler.rounds
    kept = [request.case_id for request in planned.requests]
    assert kept == [record["case_id"] for record in records[:6] if record is not records[1]]
    (note,) = [facts["text"] for event, facts in heard if event == "note"]
    assert note.startswith("the untouched model knows 5 of 6 true answers")
