"""Consolidation: what it solves, that order does not matter, and that it is undone to the bit."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nse_plugin.errors import HparamsError, SessionError
from nse_plugin.hparams import (
    AlphaEditHparams,
    FTHparams,
    MEMITHparams,
    NSEHparams,
    OvertoneHparams,
)
from nse_plugin.methods import spread, together
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.registry import apply_nse_to_model
from nse_plugin.methods.together import StoredValues
from nse_plugin.session.ledger_files import load_rounds, save_round
from nse_plugin.session.queries import request_writes
from nse_plugin.session.records import Outcome
from nse_plugin.session.session import EditSession
from tests.methods.brute import hparams_of
from tests.tiny import bits, same_bits, some_requests, tiny_model, tiny_tokenizer

N = 6


@pytest.fixture(scope="module")
def hparams(tmp_path_factory):
    stats = str(tmp_path_factory.mktemp("stats"))
    return hparams_of(
        NSEHparams, stats_dir=stats, n_contexts=1, context_length=3, neuron_threshold=0.7,
        max_iterations=2, v_num_grad_steps=2,
    )  # fmt: skip


def some_values(requests) -> StoredValues:
    """A value for every request that depends on the request alone."""
    rows = [torch.Generator().manual_seed(int(r.case_id)) for r in requests]
    z = torch.stack([4 * torch.randn(32, generator=row) for row in rows])
    return StoredValues(z, [Outcome(r.case_id, r.digest(), "converged", 1) for r in requests])


def edited(hparams, rounds, family="llama"):
    model = tiny_model(family)
    session = EditSession.of(model, tiny_tokenizer())
    for requests in rounds:
        stored = some_values(requests)
        BASES[hparams.method].edit_round(session, requests, hparams, stored=stored)
    return model, session


def test_overtone_consolidates_with_its_own_contexts_and_loss(hparams, monkeypatch):
    seen = []
    overtone = OvertoneHparams.wrap(replace(hparams, repair_rounds=1), seed=5)
    base = overtone.for_base()
    model = tiny_model("gpt2")
    session = EditSession.of(model, tiny_tokenizer())
    stored = some_values(some_requests(2))
    BASES["NSE"].edit_round(session, some_requests(2), base, stored=stored)
    contexts = session.untouched.contexts(base)
    compute = spread.compute_values

    def watched(layout, rows, hparams, objective, **named):
        seen.append((type(objective).__name__, hparams.seed))
        return compute(layout, rows, hparams, objective, **named)

    monkeypatch.setattr(spread, "compute_values", watched)
    consolidate(session, overtone)
    assert seen == [("Overtone", 5)]
    assert list(session.untouched._contexts.values()) == [contexts]


def test_edits_are_numbered_on_after_a_superseded_one_is_gone(hparams):
    first, second = some_requests(2)
    changed = replace(first, case_id=2, target_new="Garn")
    _, session = edited(hparams, [[first, second], [changed]])
    consolidate(session, hparams)
    assert (session.ledger.edits(), session.ledger.edits_made()) == (2, 3)


def in_order(requests):
    return sorted(requests, key=lambda request: request.without_probes().digest())


@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(N)), size=st.integers(1, 4))
def test_the_set_of_edits_decides_not_their_order(hparams, order, size):
    requests = [some_requests(N)[i] for i in order]
    model, session = edited(hparams, [requests[i : i + size] for i in range(0, N, size)])
    consolidate(session, hparams)
    at_once, _ = edited(hparams, [in_order(requests)])
    assert same_bits(model, at_once)


def test_precision_that_the_caller_has_switched_on_changes_nothing(hparams):
    records = []
    for under in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        _, session = edited(hparams, [some_requests(3)])
        with under:
            records.append(consolidate(session, hparams))
    plain, mixed = ([o.z_shift for o in record.outcomes] for record in records)
    assert plain == mixed


def test_other_case_ids_differ_by_rounding_alone(hparams):
    models = []
    for ids in (range(N), range(N, 0, -1)):
        model, session = edited(hparams, [])
        for request, case_id in zip(some_requests(N), ids):
            BASES["NSE"].edit_round(
                session, [replace(request, case_id=case_id)], hparams, stored=some_values([request])
            )
        consolidate(session, hparams)
        models.append(bits(model))
    for name, weight in models[0].items():
        assert (models[1][name] - weight).norm() <= 1e-5 * weight.norm()


def test_edits_of_different_rounds_may_have_the_same_case_id(hparams):
    """As those of two files of facts that are both numbered from 0."""
    again = [replace(request, case_id=0) for request in some_requests(3)]
    _, session = edited(hparams, [again[:1], again[1:2]])
    every = replace(hparams, consolidate_every_edits=3, alpha=0.0)
    assert len(BASES["NSE"].edit_round(session, again[2:], every).within) == 2
    record = consolidate(session, every)
    assert [o.case_id for o in record.outcomes] == [0, 0, 0]
    found = request_writes(session.ledger, 0).groupby(["layer", "pass_number"]).size()
    assert set(found) == {3}, "a row for each of them"


@pytest.mark.parametrize("kind", [NSEHparams, MEMITHparams, AlphaEditHparams])
def test_undone_to_the_bit_and_solved_again_without_an_edit(kind, hparams):
    own = {"nullspace_threshold": 0.5} if kind is AlphaEditHparams else {}
    hparams = hparams_of(kind, stats_dir=hparams.stats_dir, n_contexts=1, context_length=3, **own)
    rounds = [[request] for request in some_requests(4)]
    model, session = edited(hparams, rounds)
    before, untouched = bits(model), bits(tiny_model("llama"))
    assert consolidate(session, hparams).number == 5
    assert session.ledger.numbers() == [5] and session.ledger.edits() == 4
    consolidated = bits(model)
    assert not same_bits(model, before)
    with pytest.raises(SessionError, match="round 2 is inside the consolidation that is round 5"):
        session.undo(2)
    assert consolidate(session, hparams).number == 6
    with pytest.raises(SessionError, match="round 6, after which round 5, a consolidation too, is"):
        session.undo(5)
    session.undo(6)
    assert same_bits(model, consolidated)
    session.undo(5)
    assert same_bits(model, before) and session.ledger.numbers() == [1, 2, 3, 4]
    session.undo(2)
    record = consolidate(session, hparams)
    assert record.number == 7 and {o.case_id for o in record.outcomes} == {0, 2, 3}
    assert not same_bits(model, consolidated)
    rest = in_order([request for request in some_requests(4) if request.case_id != 1])
    assert same_bits(model, edited(hparams, [rest])[0])
    session.undo_all()
    assert same_bits(model, untouched) and session.ledger.next_number() == 1


def test_later_rounds_files_and_a_second_consolidation(hparams, tmp_path):
    requests = some_requests(4)
    changed = replace(requests[0], case_id=9, target_new="Garn")
    model, session = edited(hparams, [requests[:2], [changed]])
    files = [save_round(tmp_path, record).path for record in session.ledger]
    files.append(save_round(tmp_path, consolidate(session, hparams)).path)
    assert {o.case_id for o in session.ledger[0].outcomes} == {1, 9}, "0 is superseded by 9"
    P = session.previous_keys.matrix(1, torch.arange(48))
    keys = session.ledger[0].keys[1].double()
    torch.testing.assert_close(P, keys @ keys.T)
    BASES["NSE"].edit_round(session, requests[2:], hparams, stored=some_values(requests[2:]))
    files.append(save_round(tmp_path, session.ledger[-1]).path)
    assert session.ledger.numbers() == [3, 4] and session.ledger.edits() == 4

    other = tiny_model("llama")
    resumed = EditSession.of(other, tiny_tokenizer())
    resumed.adopt(load_rounds(files))
    assert same_bits(other, model) and resumed.ledger.numbers() == [3, 4]
    for each in (session, resumed):  # 1 and 2 are active again, beside 4
        each.undo(3)
        assert each.ledger.numbers() == [1, 2, 4]
    assert same_bits(other, model)
    consolidate(session, hparams)
    at_once, _ = edited(hparams, [in_order([requests[1], changed, *requests[2:]])])
    assert same_bits(model, at_once)
    session.undo_last()
    assert same_bits(other, model)


def test_outcomes_say_what_was_given_before_and_after(hparams, monkeypatch):
    _, session = edited(hparams, [some_requests(3)])
    said = iter([[True, False, False], [True, True, False]])
    monkeypatch.setattr("nse_plugin.methods.together.answered", lambda *_: torch.tensor(next(said)))
    record = consolidate(session, hparams)
    found = [(o.answered_before_consolidation, o.answered) for o in record.outcomes]
    assert found == [(True, True), (False, True), (False, False)]
    counts = {"edits": 3, "in_effect": 2, "earlier": 3, "earlier_before": 1}
    assert record.summary()["consolidated"] == counts


def test_the_number_of_repairs_can_be_given(hparams, monkeypatch):
    _, session = edited(hparams, [some_requests(3)])
    nothing = torch.zeros(3, dtype=torch.bool)
    for module in ("together", "repair"):
        monkeypatch.setattr(f"nse_plugin.methods.{module}.answered", lambda *_: nothing)
    assert [o.repairs for o in consolidate(session, hparams, 1).outcomes] == [1, 1, 1]
    session.undo_last()
    often = replace(hparams, repair_rounds=1)
    assert [o.repairs for o in consolidate(session, often, 0).outcomes] == [0, 0, 0]
    session.undo_last()
    with pytest.raises(HparamsError, match="repair_rounds is -1"):
        consolidate(session, hparams, -1)


@pytest.mark.parametrize("kind", [NSEHparams, MEMITHparams, AlphaEditHparams])
def test_the_round_with_every_nth_edit_is_a_consolidation(kind, hparams, tmp_path):
    own = {"nullspace_threshold": 0.5} if kind is AlphaEditHparams else {}
    plain = hparams_of(
        kind, stats_dir=hparams.stats_dir, n_contexts=1, context_length=3, v_num_grad_steps=2, **own
    )
    every = replace(plain, consolidate_every_edits=4)
    requests = some_requests(6)
    rounds = [requests[:1], requests[1:4], requests[4:]]
    edit_round = BASES[kind.method].edit_round

    model, session = edited(every, [])
    files, states = [], []
    for requests in rounds:
        record = edit_round(session, requests, every)
        files.append(save_round(tmp_path, record).path)
        states.append(bits(model))
        new = len(requests)
        assert (record.edits, record.new_edits) == (4 if record.number == 2 else new, new)
        joint = record.consolidated()
        assert joint is None if record.number != 2 else (joint["edits"], joint["earlier"]) == (4, 1)
    assert session.ledger.numbers() == [2, 3] and session.ledger.edits_made() == 6
    assert [entry.number for entry in session.ledger[0].within] == [1]

    by_hand, other = edited(plain, [])
    for requests in rounds[:2]:
        edit_round(other, requests, plain)
    consolidate(other, plain)
    assert same_bits(by_hand, states[1])

    resumed = EditSession.of(other := tiny_model("llama"), tiny_tokenizer())
    resumed.adopt(load_rounds(files))
    assert same_bits(other, states[2]) and resumed.ledger.edits_made() == 6
    resumed.undo_last(2)
    assert same_bits(other, states[0]) and resumed.ledger.numbers() == [1]


@pytest.mark.parametrize("lost, numbers", [(0, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3])])
def test_a_round_after_which_too_few_edits_hold_is_a_consolidation(
    lost, numbers, hparams, monkeypatch
):
    """Of the four edits after round 2, three quarters have to hold; round 3 is not tested."""
    asked = []

    def answered(session, requests, token_budget):
        asked.append({request.case_id for request in requests})
        failed = lost if len(requests) == 4 else 0
        return torch.arange(len(requests)) >= failed

    monkeypatch.setattr("nse_plugin.methods.together.answered", answered)
    below = replace(hparams, consolidate_below=0.75)
    rounds = [some_requests(6)[i : i + 2] for i in (0, 2, 4)]
    edit_round = BASES["NSE"].edit_round
    model, session = edited(below, [])
    for requests in rounds:
        edit_round(session, requests, below)
    assert session.ledger.numbers() == numbers
    assert asked[0] == {0, 1, 2, 3}

    by_hand, other = edited(hparams, [])
    for number, requests in enumerate(rounds, 1):
        edit_round(other, requests, hparams)
        if number == 2 and lost == 2:
            record = consolidate(other, hparams)
            other.ledger.replace_last(replace(record, number=2))
    assert same_bits(by_hand, model)


@pytest.mark.parametrize("repairs", [0, 1])
def test_a_joint_solve_that_loses_edits_is_put_back(hparams, repairs, monkeypatch, caplog):
    """Three of four edits are in effect before it, and two after it; of two, one is."""
    said = iter([3, 2])
    monkeypatch.setattr(together, "answered", lambda *_: torch.arange(4) < next(said))
    in_effect = "nse_plugin.methods.repair.answered"
    monkeypatch.setattr(in_effect, lambda _, some, *__: torch.arange(len(some)) < len(some) // 2)
    hparams = replace(hparams, repair_rounds=repairs)
    every = replace(hparams, consolidate_every_edits=4)
    rounds = [some_requests(4)[:2], some_requests(4)[2:]]
    model, session = edited(every, [])
    records = [BASES["NSE"].edit_round(session, requests, every) for requests in rounds]
    assert "solved jointly, 2 of 4 edits would be in effect instead of 3" in caplog.text
    assert session.ledger.numbers() == [1, 2] and session.ledger[1] is records[1]
    assert [record.put_back for record in records] == [False, True]
    assert [outcome.repairs for outcome in records[1].outcomes] == [0, repairs]

    plain, other = edited(hparams, [])
    for requests in rounds:
        BASES["NSE"].edit_round(other, requests, hparams)
    assert same_bits(model, plain) and not records[1].within and not session.ledger.undone
    session.undo_last()
    other.undo_last()
    assert same_bits(model, plain)


def test_a_joint_solve_that_was_put_back_is_tried_again_after_n_edits(
    hparams, monkeypatch, tmp_path, caplog
):
    """No edit is in effect whenever a round is tested, and each joint solve loses one."""
    monkeypatch.setattr(together, "answered", lambda _, some, *__: torch.zeros(len(some)) > 0)
    monkeypatch.setattr(together, "solve_together", lose)

    def rounds_that_tried(settings, resumed_after=9):
        caplog.clear()
        model, session = edited(settings, [])  # a session does not keep its model
        files = []
        for number, request in enumerate(some_requests(6), 1):
            record = BASES["NSE"].edit_round(session, [request], settings)
            files.append(save_round(tmp_path, record).path)
            if number == resumed_after:
                session = EditSession.of(model := tiny_model("llama"), tiny_tokenizer())
                session.adopt(load_rounds(files))
        del model
        assert len(caplog.messages) == sum(entry.put_back for entry in session.ledger.active())
        return [entry.number for entry in session.ledger.active() if entry.put_back]

    every = replace(hparams, consolidate_every_edits=3)
    assert rounds_that_tried(every) == [3, 6]
    both = replace(every, consolidate_below=0.5)
    assert rounds_that_tried(both) == rounds_that_tried(both, resumed_after=3) == [2, 5]
    assert rounds_that_tried(replace(hparams, consolidate_below=0.5)) == [2, 3, 4, 5, 6]


def test_tokens_are_traced_once_though_the_round_is_written_twice(hparams, monkeypatch):
    monkeypatch.setattr(together, "solve_together", lose)
    compute, traces, table = spread.compute_values, [], object()

    def watched(*args, trace):
        traces.append(trace)
        return compute(*args)

    monkeypatch.setattr(spread, "compute_values", watched)
    every = replace(hparams, consolidate_every_edits=2, repair_rounds=1)
    _model, session = edited(every, [some_requests(1)])
    traces.clear()
    BASES["NSE"].edit_round(session, some_requests(2)[1:], every, trace=table)
    assert session.ledger[1].put_back and traces.count(table) == 1
    assert len(traces) == 1 + session.ledger[1].outcomes[0].repairs, "the values were kept"


def lose(*_):
    raise together._FewerInEffect("one is lost")


def test_a_sample_is_tested_after_a_round(hparams, monkeypatch):
    tested = []

    def answered(session, requests, token_budget):
        tested.append([request.case_id for request in requests])
        return torch.ones(len(requests), dtype=torch.bool)

    monkeypatch.setattr(together, "answered", answered)
    monkeypatch.setattr(together, "TESTED", 3)
    below = replace(hparams, consolidate_below=1.0)
    for _ in range(2):
        _, session = edited(below, [])
        for i in (0, 2, 4, 4):  # the last round adds no fact
            BASES["NSE"].edit_round(session, some_requests(6)[i : i + 2], below)
        assert session.ledger[-1].seconds["ask"] > 0, "the test is in the round's times"
    assert [len(set(ids)) for ids in tested] == [3, 3, 3] * 2
    assert tested[:3] == tested[3:], "the same edits in every run"
    assert set(tested[1]) != set(tested[2]), "each round tests others, of the same six"


def test_a_host_undoes_the_round_that_was_a_consolidation(hparams):
    """EasyEdit does so after an edit that is not sequential: the rounds before it are active."""
    every = replace(hparams, consolidate_every_edits=2)
    model, requests = tiny_model("llama"), some_requests(6)
    held, numbers = [], []

    def edit(number):
        request = [requests[number].to_dict()]
        _, before = apply_nse_to_model(
            model, tiny_tokenizer(), request, every, return_orig_weights=True
        )
        held.append(before)
        numbers.append(EditSession.of(model).ledger.numbers())

    def put_back():
        with torch.no_grad():
            for name, weight in held[-1].items():
                model.get_parameter(name).copy_(weight)
        session.check()
        return session.ledger.numbers()

    for number in range(2):
        edit(number)
    session = EditSession.of(model)
    assert numbers == [[1], [2]] and put_back() == [1]
    assert [undone.number for undone in session.ledger.undone] == [2]
    assert all(torch.equal(model.get_parameter(n), w) for n, w in held[1].items())
    for number in range(2, 5):
        edit(number)
    assert numbers[2:] == [[3], [3, 4], [5]] and put_back() == [3, 4]
    edit(5)
    assert numbers[5:] == [[6]] and put_back() == [3, 4]
    held.append(held[2])  # the weights before the consolidation that is round 3
    assert put_back() == [1]
    assert [undone.number for undone in session.ledger.undone] == [2, 5, 6, 4, 3]
    P = session.previous_keys.matrix(1, torch.arange(48))
    keys = torch.cat([record.keys[1] for record in session.ledger], dim=1).double()
    torch.testing.assert_close(P, keys @ keys.T)
    held.append(held[0])
    assert put_back() == [] and session.ledger.next_number() == 1


def test_a_host_puts_back_what_was_before_two_consolidations(hparams):
    model, session = edited(hparams, [[request] for request in some_requests(3)])
    states = []
    for requests in ([some_requests(4)[3]], [some_requests(5)[4]]):
        states.append(bits(model))
        consolidate(session, hparams)
        BASES["NSE"].edit_round(session, requests, hparams, stored=some_values(requests))
    consolidate(session, hparams)
    assert session.ledger.numbers() == [8]
    with torch.no_grad():
        for name, weight in states[0].items():
            model.get_parameter(name).copy_(weight)
    session.check()
    assert session.ledger.numbers() == [1, 2, 3] and same_bits(model, states[0])
    assert [undone.number for undone in session.ledger.undone] == [8, 7, 6, 5, 4]


def test_a_round_that_consolidates_repairs_once_at_its_end(hparams, monkeypatch):
    every = replace(hparams, consolidate_every_edits=2, repair_rounds=1, repair_every=1)
    asked = []

    def none(_session, requests, _token_budget):
        asked.append(len(requests))
        return torch.zeros(len(requests), dtype=torch.bool)

    monkeypatch.setattr("nse_plugin.methods.repair.answered", none)
    model, session = edited(every, [])
    before = bits(model)
    BASES["NSE"].edit_round(session, some_requests(1), every)
    record = BASES["NSE"].edit_round(session, some_requests(2)[1:], every)
    passes = {write.pass_number for write in record.writes}
    assert [o.repairs for o in record.outcomes] == [1, 1] and max(passes) == 3
    assert asked == [1, 1, 2, 2]  # before and after each repair
    assert sorted(o.is_new for o in record.outcomes) == [False, True]
    session.undo_all()
    assert same_bits(model, before)


@pytest.mark.parametrize("change", [{}, {"mom2_update_weight_relative": 0.5}])
def test_lambda_of_a_consolidation_that_repairs_is_a_multiple(hparams, change, monkeypatch):
    given = torch.ones(3, dtype=torch.bool)
    for module in ("together", "repair"):
        monkeypatch.setattr(f"nse_plugin.methods.{module}.answered", lambda *_: given)
    if change:
        change["mom2_update_weight"] = None
    hparams = replace(hparams, **change)
    model, session = edited(hparams, [some_requests(3)])
    consolidate(session, replace(hparams, consolidation_weight=3.0, repair_rounds=1))
    weight = 3 * hparams.covariance_weight(48)
    more = replace(hparams, mom2_update_weight=weight, mom2_update_weight_relative=None)
    at_once, _ = edited(more, [in_order(some_requests(3))])
    assert same_bits(model, at_once)


def give(monkeypatch, answers):
    """What the edits are found to give, ask by ask."""
    said = iter(answers)
    for module in ("together", "repair"):
        monkeypatch.setattr(
            f"nse_plugin.methods.{module}.answered",
            lambda *_: torch.tensor(next(said), dtype=torch.bool),
        )
    return said


def test_what_is_missing_after_a_repair_is_repaired_again(hparams, monkeypatch):
    requests = in_order(some_requests(3))
    model, session = edited(hparams, [requests])
    asked = give(monkeypatch, [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])  # the first is before
    record = consolidate(session, hparams, repair_rounds=5)
    assert next(asked, None) is None
    assert [o.repairs for o in record.outcomes] == [0, 1, 2]
    assert [o.answered_before_repair for o in record.outcomes] == [True, False, False]
    assert all(o.answered and o.answered_before_consolidation for o in record.outcomes)
    written = {write.pass_number: write.case_ids for write in record.writes}
    assert list(map(len, written.values())) == [3, 3, 2, 1]  # two passes, then repairs
    session.check()
    session.undo_last()
    assert same_bits(model, edited(hparams, [requests])[0])


def test_an_error_half_way_leaves_all_as_it_was(hparams, monkeypatch):
    model, session = edited(hparams, [some_requests(2), some_requests(4)[2:]])
    before, P = bits(model), session.previous_keys.matrix(2, torch.arange(48))
    real, calls = session.write, []

    def failing(write):
        calls.append(write.layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(write)

    monkeypatch.setattr(session, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        consolidate(session, hparams)
    assert same_bits(model, before) and session.ledger.numbers() == [1, 2]
    assert torch.equal(session.previous_keys.matrix(2, torch.arange(48)), P)
    session.check()


def test_what_cannot_be_consolidated_is_refused(hparams):
    model, session = edited(hparams, [])
    with pytest.raises(SessionError, match="no round is active"):
        consolidate(session, hparams)
    ft = hparams_of(FTHparams, num_steps=1, kl_factor=0.0)
    BASES["FT"].edit_round(session, some_requests(1), ft)
    before = bits(model)
    with pytest.raises(SessionError, match="round 1 was written by FT, which keeps no values"):
        consolidate(session, hparams)
    with pytest.raises(HparamsError, match="alg_name is 'FT'"):
        consolidate(session, ft)
    assert same_bits(model, before)
    model, session = edited(hparams, [some_requests(1)])
    with pytest.raises(SessionError, match=r"round 1 edited layers \[1, 2\], and layers is \[2\]"):
        consolidate(session, replace(hparams, layers=[2]))


@pytest.mark.parametrize("when", [{"consolidate_every_edits": 2}, {"consolidate_below": 0.5}])
def test_a_stream_that_cannot_be_consolidated_is_refused_before_it_is_computed(
    hparams, when, monkeypatch
):
    ft = hparams_of(FTHparams, num_steps=1, kl_factor=0.0)
    first, second = some_requests(2)
    monkeypatch.setattr(spread, "compute_values", None)
    _model, session = edited(hparams, [])
    BASES["FT"].edit_round(session, [first], ft)
    with pytest.raises(SessionError, match=r"by FT, .* consolidate_every_edits: 0 and consolidate"):
        BASES["NSE"].edit_round(session, [second], replace(hparams, **when))
    _model, session = edited(hparams, [[first]])
    with pytest.raises(SessionError, match=r"edited layers \[1, 2\], .* consolidate_below: 0"):
        BASES["NSE"].edit_round(session, [second], replace(hparams, layers=[2], **when))
