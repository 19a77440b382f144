"""The schema of a run directory: documented, checked, and what a run really writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_type_hints

import pytest

from nse_plugin.errors import DataError
from nse_plugin.runs import schema
from tests.runs.runs import scheduler

KINDS = (schema.Manifest, schema.Identity, schema.RoundLine, schema.FrozenLine, schema.Final,
         schema.Measurement, schema.Stop, schema.UndoneRound)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    scheduler(folder).run()
    return folder


def test_every_field_is_documented():
    page = (Path(__file__).parents[2] / "docs/run-directory.md").read_text(encoding="utf-8")
    for kind in KINDS:
        for name in get_type_hints(kind):
            assert f"`{name}`" in page or f'"{name}"' in page, (kind.__name__, name)


def test_a_run_writes_these_fields_and_no_others(made):
    manifest = json.loads((made / schema.MANIFEST).read_text())
    final = json.loads((made / schema.FINAL).read_text())
    assert set(manifest) == set(get_type_hints(schema.Manifest))
    assert set(manifest["run"]) == set(schema.Identity.__required_keys__)  # chat is optional
    assert set(final) == set(get_type_hints(schema.Final))
    assert set(final["measurement"]) <= set(get_type_hints(schema.Measurement))
    for name, kind in ((schema.ROUNDS, schema.RoundLine), (schema.FROZEN, schema.FrozenLine)):
        for line in (made / name).read_text().splitlines():
            assert set(json.loads(line)) == set(get_type_hints(kind))


def test_all_files_of_a_run_have_the_same_rights(made):
    assert len({path.stat().st_mode for path in made.iterdir() if path.is_file()}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(status="done"), "status is 'done', not Literal"),
        (dict(rounds=True), "rounds is True, not int"),
        (dict(stop={"rule": "x"}), "final.json: stop is damaged: value is missing"),
        (dict(measurement=[]), r"measurement is \[\], not Measurement"),
    ],
)
def test_other_types_are_damage(made, change, message):
    final = {**json.loads((made / schema.FINAL).read_text()), **change}
    with pytest.raises(DataError, match=message):
        schema.check(final, schema.Final, "final.json", "restore it")


def test_a_missing_field_is_damage(made):
    final = json.loads((made / schema.FINAL).read_text())
    del final["in_effect"]
    with pytest.raises(DataError, match="final.json is damaged: in_effect is missing; restore it"):
        schema.check(final, schema.Final, "final.json", "restore it")
