"""A run about facts that the model knows, and what its listeners hear of that."""

from __future__ import annotations

import json

import pytest

from nse_plugin.data import atlas
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.known import Known
from nse_plugin.runs import start
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


@pytest.mark.parametrize(("limit", "named"), [(None, 4), (3, 3), (2, None)])
def test_a_note_says_how_to_get_more_known_facts_of_earth(limit, named):
    known = Known(requests=read_data("earth:2", None, 0), asked={"{} is": 4}, kept={"{} is": 2})
    settings = RunSettings(hparams="NSE/x", data="earth:4", known=True, limit=limit)
    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "keep_known", lambda *_a, **_k: known)
        listeners = [lambda event, facts: heard.append(facts.get("text", ""))]
        start._known_only(settings, known.requests, None, None, listeners)
    more = f"; for {named} known facts use --data earth --known --limit {named}"
    assert heard[-1].endswith(more if named else "only these are used")
