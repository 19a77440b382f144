"""Consolidating a run: stored, resumed, undone, and whole whatever happens."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.errors import DataError
from nse_plugin.files import JsonLines
from nse_plugin.hparams import FTHparams, NSEHparams, OvertoneHparams
from nse_plugin.report.run import Run
from nse_plugin.report.run_tables import facts_table, overview, rounds_table
from nse_plugin.runs.consolidate import consolidate_run, would_help
from nse_plugin.runs.facts import facts_of
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.undo import undo_round
from nse_plugin.session.ledger_files import round_path
from tests.methods.brute import hparams_of
from tests.runs import runs
from tests.tiny import same_bits


@pytest.fixture
def finished(tmp_path):
    """A run of three rounds, and the scheduler that made it."""
    made = runs.scheduler(tmp_path / "run")
    made.run()
    return made


def reopened(folder):
    subject = runs.session()
    subject.adopt(RunFiles(folder).ledger)
    return subject, dict(subject.model.named_parameters())


def test_a_lost_file_before_a_consolidation_costs_no_line(finished):
    folder = finished.run_dir
    consolidate_run(folder, finished.backend)
    lost, lines = round_path(folder, 3), (folder / "rounds.jsonl").read_bytes()
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DataError, match=r"round-0003.* is gone, and round-0004"):
        runs.scheduler(folder).run()
    assert (folder / "rounds.jsonl").read_bytes() == lines
    lost.write_bytes(content)
    assert runs.scheduler(folder).run().status == "complete"


def test_stored_resumed_and_undone(finished):
    folder, rounds = finished.run_dir, runs.weights(finished)
    line = consolidate_run(folder, finished.backend)
    consolidated = runs.weights(finished)
    assert (line["file"], line["after"], line["edits"]) == (4, 3, 6)
    assert not same_bits(rounds, consolidated)
    assert "round 4: all edits in effect then" in rounds_table(Run(folder)).note
    head = dict(overview(Run(folder)).rows)["consolidated"]
    assert head.startswith("6 edits solved jointly as round 4, after 3 rounds: ")
    assert head.endswith("afterwards; all edits were last measured before it")
    subject, weights = reopened(folder)
    assert same_bits(consolidated, weights)
    assert subject.ledger.numbers() == [4] and subject.ledger.numbers_in_effect() == [1, 2, 3, 4]

    left = round_path(folder, 5)  # a process was killed between the file and its line
    left.write_bytes(round_path(folder, 4).read_bytes())
    again = runs.scheduler(folder)
    assert again.run().status == "complete" and not left.exists()
    assert same_bits(consolidated, runs.weights(again))

    with pytest.raises(DataError, match="round 2 is inside the consolidation that is round 4"):
        undo_round(folder, 2)
    assert undo_round(folder, 4) == [1, 2, 3]
    assert "consolidated" not in dict(overview(Run(folder)).rows)
    # the model is the measured one again
    assert RunFiles(folder).undone_since(3) == []
    assert same_bits(rounds, reopened(folder)[1])
    assert undo_round(folder, 2) == [1, 3]
    assert RunFiles(folder).undone_since(3) == [2]


def test_a_round_is_left_out_of_the_next_consolidation(finished):
    folder = finished.run_dir
    consolidate_run(folder, finished.backend)
    line = consolidate_run(folder, finished.backend, without=[2])
    assert (line["file"], line["edits"], line["edit"]["left_out"]) == (5, 4, [2])
    subject, weights = reopened(folder)
    assert same_bits(runs.weights(finished), weights)
    assert set(subject.ledger.numbers_in_effect()) == {1, 3, 4, 5}
    outcomes = {fact.file: fact.outcome for fact in facts_of(RunFiles(folder))}
    assert outcomes[2] == "undone" and "undone" not in (outcomes[1], outcomes[3])
    assert ("left out", "round 2, by a consolidation") in overview(Run(folder)).rows
    with pytest.raises(DataError, match="leaves out round 2; a run is resumed only from all"):
        runs.scheduler(folder).run()
    with pytest.raises(DataError, match="round 2 is left out of the consolidation that is round 5"):
        undo_round(folder, 2)
    undo_round(folder, 5)
    assert "undone" not in {fact.outcome for fact in facts_of(RunFiles(folder))}
    assert set(RunFiles(folder).ledger.numbers_in_effect()) == {1, 2, 3, 4}


def test_the_facts_are_as_the_consolidation_left_them(finished, monkeypatch):
    folder = finished.run_dir
    measured = [fact.outcome for fact in facts_of(RunFiles(folder))]
    opposite = torch.tensor([False, True] * 3)
    monkeypatch.setattr("nse_plugin.methods.together.answered", lambda *_: opposite)
    monkeypatch.setattr("nse_plugin.methods.repair.answered", lambda *_: opposite)
    line = consolidate_run(folder, finished.backend)
    found = facts_of(RunFiles(folder))
    assert sorted(fact.outcome for fact in found) == ["in effect"] * 3 + ["not in effect"] * 3
    assert {fact.answer for fact in found} == {None}
    assert "After the consolidation" in facts_table(Run(folder)).note
    undo_round(folder, line["file"])
    assert [fact.outcome for fact in facts_of(RunFiles(folder))] == measured


def test_a_run_that_consolidates_by_itself_resumes_to_the_bit(tmp_path):
    every = dict(hparams=runs.hparams(tmp_path, consolidate_every_edits=4, repair_rounds=1))
    whole = runs.scheduler(tmp_path / "whole", **every)
    result = whole.run()
    for cut in (1, 2):
        folder = tmp_path / f"cut{cut}"
        runs.interrupt(runs.scheduler(folder, **every), after=cut)
        resumed = runs.scheduler(folder, **every)
        assert resumed.run().final["measurement"] == result.final["measurement"]
        assert same_bits(runs.weights(whole), runs.weights(resumed))
    subject, _ = reopened(whole.run_dir)
    assert subject.ledger.numbers() == [3]
    assert sorted(subject.ledger.numbers_in_effect()) == [1, 2, 3]
    assert undo_round(whole.run_dir, 3) == [2] and undo_round(whole.run_dir, 2) == [1]


def test_what_cannot_be_stored_is_not_done(finished, monkeypatch):
    before, ledger = runs.weights(finished), finished.backend.session.ledger

    def full(self, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonLines, "append", full)
    with pytest.raises(OSError, match="No space"):
        consolidate_run(finished.run_dir, finished.backend)
    assert same_bits(before, runs.weights(finished))
    assert ledger.numbers() == [1, 2, 3] and ledger.undone == []


def test_a_damaged_consolidation_is_named(finished):
    consolidate_run(finished.run_dir, finished.backend)
    path = round_path(finished.run_dir, 4)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"checksum is not that in consolidations\.jsonl"):
        runs.scheduler(finished.run_dir).run()


def test_where_a_consolidation_would_help(finished, tmp_path):
    def helps(folder, efficacy, rounds=3):
        return would_help(
            RunFiles(folder), {"rounds": rounds, "measurement": {"all": {"efficacy": efficacy}}}
        )

    assert helps(finished.run_dir, 0.75)
    assert not any(helps(finished.run_dir, *said) for said in ((0.99,), (0.75, 1), (None,)))
    ft = hparams_of(FTHparams, layers=[1], num_steps=1, kl_factor=0.0)
    assert not helps(runs.scheduler(tmp_path / "ft", hparams=ft).run().files.folder, 0.1)


def test_the_last_round_of_a_run_is_a_consolidation(tmp_path):
    hparams = runs.hparams(tmp_path, consolidate_every_edits=4)
    made = runs.scheduler(tmp_path / "run", hparams=hparams)
    made.run()
    joint = [line["edit"].get("consolidated") for line in made._log]
    assert [each and each["edits"] for each in joint] == [None, 4, 6]


@pytest.mark.parametrize(
    "settings, last",
    [({"consolidate_every_edits": 4}, 1), ({"consolidate_below": 0.9}, 1), ({}, 0)],
)
def test_the_settings_of_a_last_round(settings, last):
    hparams = hparams_of(NSEHparams, **settings)
    assert hparams.of_last_round().consolidate_every_edits == last
    assert OvertoneHparams.wrap(hparams).of_last_round().base.consolidate_every_edits == last
