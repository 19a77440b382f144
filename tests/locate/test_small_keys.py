"""Edits whose keys are small: which token is edited, and what they weigh."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nse_plugin.errors import HparamsError
from nse_plugin.locate import small_keys, values
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.small_keys import edited_at_the_end, for_small_keys, with_other_subjects
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.bookkeeping import with_texts_about
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.model.layout import first_tensor
from nse_plugin.model.prompts import encode_request
from nse_plugin.session.session import EditSession
from tests.methods.brute import hparams_of
from tests.tiny import some_requests, tiny_model

LAYER = 1
CONTEXTS = ("The river is closed. ", "Garn. ")


@pytest.fixture
def session(tokenizer):
    model = tiny_model("llama")  # a session holds its model weakly
    yield EditSession.of(model, tokenizer)


@pytest.fixture
def rows(session):
    return encode_round(session.layout, session.tokenizer, some_requests(6), CONTEXTS)


def keys_of(session, prompt):
    """The key of every token of a prompt, in one plain pass."""
    read = []
    down = session.layout.down(LAYER)
    hook = down.register_forward_pre_hook(lambda _, args: read.append(args[0][0]))
    session.model(torch.tensor([prompt.ids[: prompt.n_prompt]]))
    hook.remove()
    return read[0].detach().double()


def energies(session, prompt):
    """||k||^2 of every token of a prompt."""
    return keys_of(session, prompt).square().sum(dim=1)


def shares(session, one):
    """||k||^2 of every token of the bare prompt, as a multiple of the subject's after contexts."""
    bare, *others = ((energies(session, prompt), prompt) for prompt in one.rewriting)
    usual = sum(each[prompt.subject_last] for each, prompt in others) / len(others)
    return (bare[0] / usual).tolist()


def placed(session, rows, avoid_sinks=True, most_weight=1.0):
    return for_small_keys(
        session.layout, rows, LAYER, 100, avoid_sinks=avoid_sinks, most_weight=most_weight
    )


def test_subjects_that_end_at_a_sink_are_edited_at_the_last_token_that_is_none(
    session, rows, monkeypatch
):
    of_tokens = [shares(session, one) for one in rows]
    subjects = [each[one.rewriting[0].subject_last] for each, one in zip(of_tokens, rows)]
    bound = sorted(subjects)[2] * 1.0001  # the three smallest are below
    monkeypatch.setattr(small_keys, "SINK", bound)
    moved = []
    for one, new, each, subject in zip(rows, placed(session, rows), of_tokens, subjects):
        prompt = one.rewriting[0]
        later = [i for i in range(prompt.subject_last + 1, prompt.n_prompt) if each[i] >= bound]
        if subject >= bound or not later:
            assert new == one
            continue
        moved.append(later[-1])
        assert new.past_sink and new.up_to_subject == prompt.ids[: later[-1] + 1]
        for before, after in zip(one.rewriting, new.rewriting):  # as far from the end everywhere
            assert after.ids == before.ids
            assert after.n_prompt - after.subject_last == prompt.n_prompt - later[-1]
    assert moved


def test_nothing_is_moved_where_every_token_is_a_sink_or_sinks_may_be_edited(
    session, rows, monkeypatch
):
    assert placed(session, rows) == rows  # none of this model's tokens is a sink
    monkeypatch.setattr(small_keys, "SINK", 1e9)
    assert placed(session, rows) == rows
    assert placed(session, rows, avoid_sinks=False) == rows


@pytest.fixture
def massive(session, rows):
    """The hidden states of the first tokens of every text are 1,000 times as long as usual; yields
    the last position of these tokens, at which a subject ends."""
    last = min(one.rewriting[0].subject_last for one in rows)

    def grow(_block, _args, output):
        hidden = first_tensor(output)
        scale = torch.ones(hidden.shape[1], 1)
        scale[: last + 1] = 1000.0
        grown = hidden * scale
        return (grown, *output[1:]) if isinstance(output, tuple) else grown

    hook = session.layout.blocks[0].register_forward_hook(grow)
    yield last
    hook.remove()


def test_subjects_with_massive_hidden_states_are_edited_at_another_token(session, rows, massive):
    for one, new in zip(rows, placed(session, rows)):
        prompt = one.rewriting[0]
        is_massive = prompt.subject_last <= massive < prompt.n_prompt - 1
        assert new.past_sink is is_massive
        assert not is_massive or len(new.up_to_subject) == prompt.n_prompt  # at the last token
    assert placed(session, rows, avoid_sinks=False) == rows


def test_edits_of_massive_hidden_states_are_warned_of(session, rows, hparams, caplog, monkeypatch):
    usual = [1.0, 2.0, 3.0]  # of a bare prompt and of the same after two contexts
    values._warn_of_massive(rows[:3], usual * 3)
    assert not caplog.text
    values._warn_of_massive(rows[:3], [*usual, 26.0, 2.0, 3.0, 24.0, 2.0, 3.0])
    (record,) = caplog.records
    assert f"of requests [{rows[1].case_id}] end at massive" in record.message
    assert "set avoid_sinks: true" in record.message
    caplog.clear()
    monkeypatch.setattr(values, "MASSIVE", 0.0)  # each of them is one
    BASES["NSE"].edit_round(session, some_requests(3), hparams())
    assert "of requests [" in caplog.text and "end at massive" in caplog.text


def test_weights_grow_as_keys_get_smaller_up_to_their_bound(session, rows):
    subjects = [shares(session, one)[one.rewriting[0].subject_last] for one in rows]
    bound = 1 / sorted(subjects)[1]
    weights = [one.weight for one in placed(session, rows, most_weight=bound)]
    assert weights == pytest.approx([min(max(1 / x, 1.0), bound) for x in subjects], rel=1e-5)
    assert 1.0 in weights and max(weights) > 1.0


@pytest.fixture
def hparams(tmp_path):
    return lambda **changes: hparams_of(
        BASES["NSE"].hparams, stats_dir=str(tmp_path), layers=[1, 2], **{"n_contexts": 1, **changes}
    )


def test_where_an_edit_was_made_is_recorded_and_kept_in_a_consolidation(
    session, hparams, monkeypatch
):
    settings, edit_round = hparams(avoid_sinks=True), BASES["NSE"].edit_round
    plain = edit_round(session, some_requests(3), settings)
    assert not any(outcome.past_sink for outcome in plain.outcomes)
    session.undo_last()
    contexts = session.untouched.contexts(settings)
    rows = encode_round(session.layout, session.tokenizer, some_requests(3), contexts)
    subjects = [shares(session, one)[one.rewriting[0].subject_last] for one in rows]
    monkeypatch.setattr(small_keys, "SINK", sorted(subjects)[1] * 0.9999)
    record = edit_round(session, some_requests(3), settings)
    moved = [outcome.past_sink for outcome in record.outcomes]
    assert sum(moved) == 1 and record.summary()["past_sinks"] == 1
    together = consolidate(session, settings)
    of = {outcome.case_id: outcome for outcome in together.outcomes}
    assert [of[outcome.case_id].past_sink for outcome in record.outcomes] == moved
    for outcome in record.outcomes:  # the same value, of the same token
        assert of[outcome.case_id].z_shift == pytest.approx(outcome.z_shift, rel=1e-4)


def test_the_prompt_with_other_subjects_is_spared_where_its_end_is_edited(
    session, hparams, monkeypatch
):
    names = ("Paris", "Maria Dupont", "the piano")
    requests = some_requests(3)
    monkeypatch.setattr(small_keys, "OTHER_SUBJECTS", (*names, requests[1].subject))
    monkeypatch.setattr(
        "nse_plugin.methods.bookkeeping.for_small_keys",
        lambda _layout, rows, *_numbers, **_settings: [
            edited_at_the_end(one) if one.case_id == requests[1].case_id else one for one in rows
        ],
    )
    settings = hparams(avoid_sinks=True)
    layer, contexts = settings.layers[0], session.untouched.contexts(settings)
    rows = encode_round(session.layout, session.tokenizer, requests, contexts)
    rows[1] = edited_at_the_end(rows[1])
    K = Lookups.of(session.layout, rows, 1000).keys([layer])[layer].double()
    others = [replace(requests[1], subject=name) for name in names]
    ends = [encode_request(session.tokenizer, request) for request in others]
    S = torch.stack([keys_of(session, prompt)[-1] for prompt in ends], dim=1)
    C = session.untouched.covariances(settings)[layer].double()
    first = BASES["NSE"].edit_round(session, requests, settings)
    together = consolidate(session, settings)
    at = [first.requests.index(request) for request in together.requests]
    for record, keys, weight in ((first, K, 1.0), (together, K[:, at], 1 / len(names))):
        write = record.writes[0]
        assert write.layer == layer
        system = settings.covariance_weight(len(C)) * C + keys @ keys.T + weight * S @ S.T
        expected = keys.T @ torch.linalg.inv(system)[:, write.neurons]
        assert (write.right - expected).norm() < 1e-4 * expected.norm()
    change = (first.writes[0].left @ first.writes[0].right).double()
    assert (change @ S).norm(dim=0).max() < 0.1 * (change @ K[:, 1]).norm()


def test_an_edit_of_the_round_is_not_spared_for_another(session, hparams, monkeypatch):
    monkeypatch.setattr(small_keys, "OTHER_SUBJECTS", ("Paris", "Ann"))
    monkeypatch.setattr(
        "nse_plugin.methods.bookkeeping.for_small_keys",
        lambda _layout, rows, *_numbers, **_settings: [edited_at_the_end(one) for one in rows],
    )
    requests = [replace(some_requests(1)[0], case_id=name, subject=name) for name in ("Ann", "Lio")]
    settings = hparams(avoid_sinks=True)
    layer, contexts = settings.layers[0], session.untouched.contexts(settings)
    rows = map(
        edited_at_the_end, encode_round(session.layout, session.tokenizer, requests, contexts)
    )
    K = Lookups.of(session.layout, list(rows), 1000).keys([layer])[layer].double()
    paris = encode_request(session.tokenizer, replace(requests[0], subject="Paris"))
    s = keys_of(session, paris)[-1:].T
    C = session.untouched.covariances(settings)[layer].double()
    write = BASES["NSE"].edit_round(session, requests, settings).writes[0]
    system = settings.covariance_weight(len(C)) * C + K @ K.T + s @ s.T
    expected = K.T @ torch.linalg.inv(system)[:, write.neurons]
    assert (write.right - expected).norm() < 1e-4 * expected.norm()


def test_a_consolidation_says_so_where_it_chooses_other_tokens(
    session, hparams, monkeypatch, caplog
):
    BASES["NSE"].edit_round(session, some_requests(3), hparams())
    consolidate(session, hparams())
    assert not caplog.records
    session.undo_last()
    monkeypatch.setattr(
        "nse_plugin.methods.bookkeeping.for_small_keys",
        lambda _layout, rows, *_numbers, **_settings: [edited_at_the_end(rows[0]), *rows[1:]],
    )
    consolidate(session, hparams(avoid_sinks=True))
    assert "1 edits were made at another token than avoid_sinks: true chooses" in caplog.text


def test_texts_about_a_subject_are_left_out_where_another_token_is_edited(session, rows, hparams):
    moved = [edited_at_the_end(rows[0]), rows[1]]
    found = with_texts_about(session, some_requests(2), moved, hparams(kl_texts=2))
    assert [len(one.about) for one in found] == [1, 3]


def test_other_subjects_are_read_at_the_same_distance_from_the_end(session, rows, monkeypatch):
    request, one = some_requests(6)[3], edited_at_the_end(rows[3], back=1)
    names = ["Ann", "Maria Dupont of Ostrell", request.subject]
    monkeypatch.setattr(small_keys, "OTHER_SUBJECTS", names)
    tokenizer = session.tokenizer
    whole = [tokenizer(request.prompt.format(name))["input_ids"] for name in names[:2]]
    found = with_other_subjects(tokenizer, request, one, None).other_subjects
    assert [list(ids) for ids in found] == [ids[:-1] for ids in whole]
    short = with_other_subjects(tokenizer, request, one, len(whole[0])).other_subjects
    assert short == found[:1] and len(whole[1]) > len(whole[0])  # the context is too short for it


def test_values_of_another_token_are_not_taken_from_the_cache(session, hparams, monkeypatch):
    session.untouched.keep_values()
    first = BASES["NSE"].edit_round(session, some_requests(3), hparams())
    session.undo_last()
    monkeypatch.setattr(
        "nse_plugin.methods.bookkeeping.for_small_keys",
        lambda _layout, rows, *_numbers, **_settings: [edited_at_the_end(one) for one in rows],
    )
    moved = BASES["NSE"].edit_round(session, some_requests(3), hparams(avoid_sinks=True))
    assert not any(torch.equal(one, other) for one, other in zip(first.z, moved.z))


@pytest.mark.parametrize("change", [{"avoid_sinks": True}, {"repair_weight": 4.0}])
def test_settings_that_need_a_context_say_so(change, hparams):
    ((name, value),) = change.items()
    with pytest.raises(HparamsError, match=f"{name} is {value}.*n_contexts is 0"):
        hparams(n_contexts=0, **change)
