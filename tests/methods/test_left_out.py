"""A consolidation without some rounds: as if these had never been."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nse_plugin.errors import SessionError
from nse_plugin.methods import together
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.requests import EditRequest
from nse_plugin.session.ledger_files import load_rounds, save_round
from nse_plugin.session.session import EditSession
from tests.methods.test_consolidate import edited, hparams, some_values
from tests.tiny import bits, same_bits, some_requests, tiny_model, tiny_tokenizer

__all__ = ["hparams"]  # the fixture
A, B, C, D = ([request] for request in some_requests(4))


def consolidated(hparams, rounds):
    model, session = edited(hparams, rounds)
    consolidate(session, hparams)
    return model


@pytest.mark.parametrize("number", [1, 3])
def test_it_equals_a_session_without_the_round(hparams, number, monkeypatch):
    """Also if the round is the consolidation itself, which has edits of its own."""
    monkeypatch.setattr(together, "answered", lambda _session, some, _: torch.ones(len(some)) > 0)
    model, session = edited(hparams, [A, B])
    BASES["NSE"].edit_round(session, C, replace(hparams, consolidate_every_edits=3))
    before = bits(model)
    assert session.ledger.numbers() == [3]
    record = consolidate(session, hparams, without=[number])
    assert record.left_out == (number,) and record.number == 4
    expected, other = edited(hparams, [B] if number == 1 else [A, B])
    if number == 1:
        BASES["NSE"].edit_round(other, C, hparams)
    consolidate(other, hparams)
    assert same_bits(model, expected)
    assert set(session.ledger.numbers_in_effect()) == {1, 2, 3, 4} - {number}
    session.undo(4)
    assert same_bits(model, before) and set(session.ledger.numbers_in_effect()) == {1, 2, 3}


def test_an_earlier_edit_of_the_same_fact_is_in_effect_again(hparams):
    changed = [replace(A[0], case_id=9, target_new="Garn")]
    model, session = edited(hparams, [A, B, changed])
    consolidate(session, hparams)
    consolidate(session, hparams, without=[3])
    assert same_bits(model, consolidated(hparams, [A, B]))


def test_an_edit_that_another_round_made_too_stays(hparams):
    model, session = edited(hparams, [A, B, A])
    consolidate(session, hparams, without=[1])
    assert same_bits(model, consolidated(hparams, [B, A]))


def test_a_value_that_was_shared_with_an_edit_left_out_is_not_used(hparams):
    """Two facts of one subject have one value for both answers (``merge_subjects``)."""
    hparams = replace(hparams, merge_subjects=True)
    rounds = [
        [EditRequest(0, "{} lives in", "Ann Lee", "Garn")],
        [EditRequest(1, "{} works as", "Ann Lee", "a baker")],
    ]
    model, expected = tiny_model("llama"), tiny_model("llama")
    session, alone = (EditSession.of(each, tiny_tokenizer()) for each in (model, expected))
    for requests in rounds:
        BASES["NSE"].edit_round(session, requests, hparams)
    BASES["NSE"].edit_round(alone, rounds[0], hparams)
    consolidate(session, hparams)
    before = bits(model)
    with pytest.raises(SessionError, match=r"an edit of round 2 \(case 1\) shares its value"):
        consolidate(session, hparams, without=[1])
    assert same_bits(model, before)
    consolidate(session, hparams, without=[2])
    consolidate(alone, hparams)
    assert same_bits(model, expected)


def test_files_and_later_consolidations_leave_it_out_too(hparams, tmp_path):
    model, session = edited(hparams, [A, B, C])
    paths = [save_round(tmp_path, record).path for record in session.ledger]
    paths.append(save_round(tmp_path, consolidate(session, hparams, without=[2])).path)
    reopened = tiny_model("llama")
    again = EditSession.of(reopened, tiny_tokenizer())
    again.adopt(load_rounds(paths))
    assert same_bits(reopened, model)
    BASES["NSE"].edit_round(again, D, hparams, stored=some_values(D))
    record = consolidate(again, hparams, without=[1])
    assert record.left_out == (1, 2) and record.summary()["left_out"] == [1, 2]
    assert set(again.ledger.numbers_in_effect()) == {3, 4, 5, 6}
    assert same_bits(reopened, consolidated(hparams, [C, D]))


def test_what_cannot_be_left_out_is_refused_and_all_is_as_before(hparams, monkeypatch):
    model, session = edited(hparams, [A, B])
    before = bits(model)
    with pytest.raises(SessionError, match="round 7 cannot .* these rounds are: 1, 2$"):
        consolidate(session, hparams, without=[1, 7])
    with pytest.raises(SessionError, match="no edit left; undo the rounds instead"):
        consolidate(session, hparams, without=[1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(together, "answered", None)
        with pytest.raises(TypeError):
            consolidate(session, hparams, without=[1])
    assert same_bits(model, before) and session.ledger.numbers() == [1, 2]
    consolidate(session, hparams, without=[1])
    with pytest.raises(SessionError, match="round 1 cannot be left out, since it is not in effect"):
        consolidate(session, hparams, without=[1])
    with pytest.raises(SessionError, match="no edit came with round 3; to take it back, undo it"):
        consolidate(session, hparams, without=[3])
    with pytest.raises(SessionError, match=r"without=\[2\], or, for a folder, nse consolidate FOL"):
        session.undo(2)
