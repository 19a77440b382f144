"""merge_subjects: edits with one key share one value, within a round and with earlier ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nse_plugin.errors import RequestError, SessionError
from nse_plugin.evaluation.overfitting import table_for
from nse_plugin.hparams import MEMITHparams, NSEHparams
from nse_plugin.marks import fact_mark, mark
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.repair import earlier_columns, lost_edits, same_subject_edits
from nse_plugin.requests import EditRequest
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.session.ledger_files import load_rounds, round_path
from nse_plugin.session.session import EditSession
from tests.methods.brute import hparams_of
from tests.tiny import some_requests, tiny_model

LIVES = EditRequest(10, "{} lives in", "Mara Voss", "Quill")
WORKS = EditRequest(11, "{} works as a", "Mara Voss", "painter")
TRADE = EditRequest(12, "By trade, the woman called {} is a", "Mara Voss", "doctor")


def settings(kind, folder, **changes: Any):
    few = dict(v_num_grad_steps=4, n_contexts=1, context_length=3, stats_dir=str(folder))
    return hparams_of(kind, **{**few, **changes})


def test_a_shared_value_has_the_mean_loss_and_others_keep_theirs(tokenizer, tmp_path):
    requests = [LIVES, some_requests(2)[1], WORKS, TRADE]
    losses, z = [], []
    for merge in (False, True):
        hparams = settings(NSEHparams, tmp_path, v_num_grad_steps=1, merge_subjects=merge)
        session = EditSession.of(model := tiny_model("llama"), tokenizer)
        record = BASES["NSE"].edit_round(session, requests, hparams)
        losses.append([o.z_loss for o in record.outcomes])
        hparams = replace(hparams, v_num_grad_steps=4)
        session.undo_all()
        z.append(BASES["NSE"].edit_round(session, requests, hparams).z)
        assert session.model is model
    (own, shared), mean = losses, (losses[0][0] + losses[0][2]) / 2
    assert shared == pytest.approx([mean, own[1], mean, own[3]], rel=1e-4)
    assert not torch.equal(z[0][0], z[0][2]) and torch.equal(z[1][0], z[1][2])
    torch.testing.assert_close(z[1][[1, 3]], z[0][[1, 3]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [MEMITHparams, NSEHparams])
def test_both_values_are_reached_in_one_round_and_in_two(kind, tokenizer, tmp_path):
    for merge in (False, True):
        hparams = settings(
            kind, tmp_path, mom2_update_weight=1e-3, n_contexts=0, merge_subjects=merge
        )
        model = tiny_model("llama")
        session, edit_round = EditSession.of(model, tokenizer), BASES[kind.method].edit_round
        outcomes = edit_round(session, [LIVES, WORKS], hparams).outcomes
        reached = [o.residual_after < 0.1 * o.residual_before for o in outcomes]
        assert reached == [merge, merge]  # one key cannot have two values
        session.undo_all()
        edit_round(session, [LIVES], hparams)
        record = edit_round(session, [WORKS], hparams)
        assert [(o.case_id, o.earlier_round) for o in record.outcomes] == (
            [(11, None), (10, 1)] if merge else [(11, None)]
        )
    assert record.edits == 1 and torch.equal(record.z[0], record.z[1])
    assert all(o.residual_after < 0.1 * o.residual_before for o in record.outcomes)
    with pytest.raises(SessionError, match="round 2 wrote edits of it again"):
        session.undo(1)


def test_only_rounds_of_the_subject_are_read(tokenizer, tmp_path):
    hparams = settings(MEMITHparams, tmp_path, v_num_grad_steps=1, merge_subjects=True)
    born = EditRequest(13, "{} was born in", "Mara Voss", "Garn")
    model = tiny_model("llama")
    backend = SessionBackend(EditSession.of(model, tokenizer), hparams)
    for number, request in enumerate([LIVES, some_requests(2)[1], TRADE, WORKS], start=1):
        backend.edit([request], number)
        backend.save(tmp_path, number)
    again = EditSession.of(resumed := tiny_model("llama"), tokenizer)
    again.adopt(load_rounds(sorted(tmp_path.glob("round-*"))))
    for number in (2, 3):  # the other subject, and the same one with another key
        round_path(tmp_path, number).unlink()
    for session in (backend.session, again):
        assert session.model in (model, resumed)
        ledger, found = session.ledger, same_subject_edits(session, [born])
        requests, rounds = zip(*found)
        assert [request.case_id for request in requests] == [10, 11]
        assert rounds == (4, 4)  # the fourth round wrote the first fact again
        assert earlier_columns(session, requests) == {1: [0], 4: [0, 1]}
        ledger.truncate(1)
        assert ledger.wrote_last(LIVES) == 1
        assert [record.number for record in ledger.heads_with([mark(WORKS.key_text)])] == [1]
        assert not list(ledger.heads_with([fact_mark(WORKS.fact)]))


def test_a_repair_takes_all_that_share_the_value(tokenizer, tmp_path, monkeypatch):
    said = iter([[False, True, True], [True, True, True]])
    monkeypatch.setattr("nse_plugin.methods.repair.answered", lambda *_: torch.tensor(next(said)))
    hparams = settings(MEMITHparams, tmp_path, merge_subjects=True, repair_rounds=1)
    session = EditSession.of(model := tiny_model("llama"), tokenizer)
    record = BASES["MEMIT"].edit_round(session, [LIVES, TRADE, WORKS], hparams)
    assert [o.repairs for o in record.outcomes] == [1, 0, 1] and session.model is model
    assert torch.equal(record.z[0], record.z[2])


def test_a_lost_edit_brings_all_that_share_its_key(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nse_plugin.methods.repair.answered",
        lambda _, requests, __: torch.tensor([False, True, True]),
    )
    session = EditSession.of(model := tiny_model("llama"), tokenizer)
    hparams = settings(MEMITHparams, tmp_path, merge_subjects=False, repair_every=1)
    for request in (LIVES, WORKS, TRADE):
        BASES["MEMIT"].edit_round(session, [request], replace(hparams, repair_every=0))
    alone = lost_edits(session, [], hparams)
    shared = lost_edits(session, [], replace(hparams, merge_subjects=True))
    assert [request.case_id for request, _ in alone] == [10] and session.model is model
    assert [(request.case_id, number) for request, number in shared] == [(10, 1), (11, 2)]


def test_a_trace_is_refused_where_edits_share_a_value(tokenizer, tmp_path):
    session = EditSession.of(model := tiny_model("llama"), tokenizer)
    hparams = settings(NSEHparams, tmp_path, merge_subjects=True)
    with pytest.raises(RequestError, match="edits of this round share a value"):
        BASES["NSE"].edit_round(session, [LIVES, WORKS], hparams, trace=table_for(hparams))
    assert not len(session.ledger) and session.model is model
    BASES["NSE"].edit_round(session, [LIVES, TRADE], hparams, trace=table_for(hparams))
