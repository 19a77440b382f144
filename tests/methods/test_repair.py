"""Repair by behaviour: which edits are written again, and what that writes, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nse_plugin.compare.specs import parse_method
from nse_plugin.errors import NotFiniteError, SessionError
from nse_plugin.hparams import AlphaEditHparams, MEMITHparams, NSEHparams
from nse_plugin.methods import nse, repair, spread
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.together import StoredValues
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.objectives import nll
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.ledger_files import RoundFile, load_round, save_round
from nse_plugin.session.records import Outcome
from nse_plugin.session.session import EditSession
from tests.locate.values import values_of
from tests.methods.brute import Brute, hparams_of, three_rounds
from tests.tiny import bits, same_bits, some_requests, tiny_model


def quick(kind, folder, **changes):
    """Hyperparameters that need little time; few edits are learned with them."""
    few = dict(v_num_grad_steps=3, n_contexts=1, context_length=3, stats_dir=str(folder))
    return hparams_of(kind, **{**few, **changes})


def given(monkeypatch, *answers):
    """Have the model give these answers, one list for each time that it is asked."""
    said = iter(answers)
    monkeypatch.setattr(repair, "answered", lambda *_: torch.tensor(next(said), dtype=torch.bool))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_fails_is_optimised_in_the_present_model_and_the_rest_is_spared(
    family, tokenizer, tmp_path, monkeypatch
):
    hparams = quick(MEMITHparams, tmp_path)
    requests, plain = some_requests(5), tiny_model(family)
    session = EditSession.of(plain, tokenizer)
    BASES["MEMIT"].edit_round(session, requests, hparams)
    failed = torch.tensor([1, 4])

    brute = Brute.of(plain, tokenizer, hparams)
    contexts = session.untouched.contexts(hparams)
    covariances = session.untouched.covariances(hparams)
    chosen = [requests[i] for i in failed.tolist()]
    z = values_of(brute.session.layout, tokenizer, chosen, contexts, hparams, nll).z
    lookups, layers = brute.lookups(requests, contexts), hparams.layers
    for i, layer in enumerate(layers):
        K = lookups.keys([layer])[layer].double()
        R = torch.zeros(brute.session.layout.d_model, len(requests), dtype=torch.float64)
        left_of = z - lookups.activations(layers[-1])[failed]
        R[:, failed] = left_of.double().T / (len(layers) - i)
        A = hparams.mom2_update_weight * covariances[layer].double() + K @ K.T
        brute.patch(layer, R @ K.T @ torch.linalg.inv(A))

    hparams.repair_rounds = 1
    given(monkeypatch, [1, 0, 1, 1, 0], [1, 1, 1, 1, 0])
    model = tiny_model(family)
    record = BASES["MEMIT"].edit_round(EditSession.of(model, tokenizer), requests, hparams)
    for layer in layers:
        got, want, unrepaired = (
            EditSession.of(m).layout.down(layer).weight for m in (model, brute.model, plain)
        )
        assert (got - want).norm() < 1e-3 * (want - unrepaired).norm()
    assert [o.repairs for o in record.outcomes] == [0, 1, 0, 0, 1]
    assert [o.passes for o in record.outcomes] == [1, 2, 1, 1, 2]
    assert [o.answered_before_repair for o in record.outcomes] == [True, False, True, True, False]
    assert [o.answered for o in record.outcomes] == [True, True, True, True, False]
    assert record.summary()["repaired"] == 2
    unrepaired_residuals = [o.residual_after for o in session.ledger[0].outcomes]
    assert [o.residual_before_repair for o in record.outcomes] == unrepaired_residuals
    last = record.writes[-1]
    assert last.case_ids == (1, 4) and last.left.shape[1] == last.right.shape[0] == 2


@pytest.mark.parametrize("kind", [NSEHparams, MEMITHparams, AlphaEditHparams])
def test_one_round_of_the_ledger_resumed_and_undone_to_the_bit(kind, tokenizer, tmp_path):
    changes = {"nullspace_threshold": 0.5} if kind is AlphaEditHparams else {}
    hparams = quick(kind, tmp_path, repair_rounds=2, **changes)
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    session = EditSession.of(model, tokenizer)
    ledger = Ledger()
    for requests in three_rounds():
        record = BASES[kind.method].edit_round(session, requests, hparams)
        ledger.append(load_round(save_round(tmp_path, record).path))
    assert {o.repairs for record in ledger for o in record.outcomes} == {2}, "none is ever given"
    assert session.ledger.numbers() == [1, 2, 3]
    other = tiny_model("llama")
    EditSession.of(other, tokenizer).adopt(ledger)
    assert same_bits(model, other)
    assert [r.outcomes for r in ledger] == [r.outcomes for r in session.ledger]
    session.undo_all()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_what_is_given_is_not_written_again(tokenizer, tmp_path, monkeypatch):
    models = [tiny_model("gpt2"), tiny_model("gpt2")]
    given(monkeypatch, [1, 1, 1])
    for model, rounds in zip(models, (0, 1)):
        hparams = quick(NSEHparams, tmp_path, repair_rounds=rounds)
        record = BASES["NSE"].edit_round(
            EditSession.of(model, tokenizer), some_requests(3), hparams
        )
        asked = True if rounds else None
        assert {(o.repairs, o.answered) for o in record.outcomes} == {(0, asked)}
    assert same_bits(models[0], models[1])


def test_an_edit_out_of_bounds_is_reported_and_not_repaired(tokenizer, tmp_path):
    hparams = quick(NSEHparams, tmp_path, repair_rounds=1, upper_bound=1e-6)
    model = tiny_model("gpt2")
    record = BASES["NSE"].edit_round(EditSession.of(model, tokenizer), some_requests(2), hparams)
    assert {(o.status, o.passes, o.answered, o.repairs) for o in record.outcomes} == {
        ("out_of_bounds", 0, False, 0)
    }
    assert record.writes == () and record.summary()["repaired"] == 0


def test_a_repair_value_out_of_bounds_is_not_taken(tokenizer, tmp_path, monkeypatch):
    """The round stays as its first pass left it, and says so."""
    hparams = quick(NSEHparams, tmp_path, max_iterations=1)
    compute, rounds = spread.compute_values, []
    models = [tiny_model("gpt2"), tiny_model("gpt2")]
    for model, changes in zip(models, ({}, {"repair_rounds": 1})):
        session = EditSession.of(model, tokenizer)
        given(monkeypatch, [0, 1])
        if changes:

            def far(layout, rows, *arguments, **named):
                found = compute(layout, rows, *arguments, **named)
                return found if len(rows) == 2 else replace(found, z=found.z + 1e4)

            monkeypatch.setattr(spread, "compute_values", far)
            bound = max(o.residual_before for o in rounds[0].outcomes) + 1
            changes = {**changes, "upper_bound": bound}
        record = BASES["NSE"].edit_round(session, some_requests(2), replace(hparams, **changes))
        rounds.append(record)
    once, tried = rounds
    assert torch.equal(once.z, tried.z) and len(once.writes) == len(tried.writes)
    for before, after in zip(once.outcomes, tried.outcomes):
        assert (after.status, after.residual_after) == (before.status, before.residual_after)
        assert after.repairs == 0


def test_spared_requests_have_no_part_in_the_choice_of_neurons(tokenizer, tmp_path, monkeypatch):
    seen = []
    select = nse.select_by
    monkeypatch.setattr(
        nse, "select_by", lambda score, *rest: seen.append(score) or select(score, *rest)
    )
    given(monkeypatch, [1, 0, 1], [1, 1, 1])
    hparams = quick(NSEHparams, tmp_path, repair_rounds=1, max_iterations=1, neuron_threshold=0.5)
    session = EditSession.of(model := tiny_model("gpt2"), tokenizer)
    record = BASES["NSE"].edit_round(session, some_requests(3), hparams)
    assert model is session.model
    n_layers = len(hparams.layers)
    masses = [record.keys[layer].double().abs() for layer in hparams.layers]
    assert torch.equal(seen[0], masses[0].sum(dim=1)) and len(seen) == 2 * n_layers
    assert all(torch.equal(score, mass[:, 1]) for score, mass in zip(seen[n_layers:], masses))
    assert {len(write.case_ids) for write in record.writes[n_layers:]} == {1}


def test_all_earlier_keys_of_a_lost_fact_are_left_out(tokenizer, tmp_path, monkeypatch):
    hparams = quick(MEMITHparams, tmp_path, repair_every=1)
    session = EditSession.of(model := tiny_model("gpt2"), tokenizer)
    given(monkeypatch, [0], [0, 1], [0, 1, 1])
    for request in some_requests(3):
        BASES["MEMIT"].edit_round(session, [request], hparams)
    lost = repair.lost_edits(session, [], hparams)
    assert [(request.case_id, number) for request, number in lost] == [(0, 3)]
    assert repair.earlier_columns(session, [lost[0][0]]) == {1: [0], 2: [1], 3: [1]}
    assert model is session.model


@pytest.mark.parametrize("kind", [MEMITHparams, NSEHparams])
def test_a_fact_that_is_edited_again_is_not_held_by_its_old_key(kind, tokenizer, tmp_path):
    once = {"max_iterations": 1} if kind is NSEHparams else {}
    hparams = quick(kind, tmp_path, use_previous_keys=True, **once)
    session = EditSession.of(model := tiny_model("llama"), tokenizer)
    edit_round, (again, kept) = BASES[kind.method].edit_round, some_requests(2)
    first = edit_round(session, [again, kept], hparams)
    C = session.untouched.covariances(hparams)[1].double()
    second = edit_round(session, [replace(again, target_new="Garn")], hparams)
    k, K = first.keys[1][:, 1:].double(), second.keys[1].double()  # layer 1 is the first edited
    A = hparams.covariance_weight(len(K)) * C + k @ k.T + K @ K.T
    write, expected = second.writes[0], K.T @ torch.linalg.inv(A)
    assert write.layer == 1 and model is session.model
    torch.testing.assert_close(
        write.right.double(), expected[:, write.neurons], rtol=1e-4, atol=1e-6
    )


def test_a_model_that_computes_nan_is_noticed(tokenizer, tmp_path):
    hparams = quick(NSEHparams, tmp_path)
    session = EditSession.of(model := tiny_model("gpt2"), tokenizer)
    outcome = Outcome(0, "", "converged", 1)
    broken = StoredValues(torch.full((1, model.config.n_embd), float("nan")), [outcome])
    before = bits(model)
    with pytest.raises(NotFiniteError, match=r"requests \[0\]"):
        BASES["NSE"].edit_round(session, some_requests(1), hparams, stored=broken)
    assert not len(session.ledger)
    assert same_bits(model, before)


def test_lost_edits_join_a_later_round_and_their_old_keys_are_left_out(
    tokenizer, tmp_path, monkeypatch
):
    hparams = quick(NSEHparams, tmp_path, repair_every=2, max_iterations=1)
    first, new = some_requests(2), some_requests(4)[2:]
    model, untouched = tiny_model("llama"), tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    BASES["NSE"].edit_round(session, first, hparams)
    kept = session.ledger[0]
    brute, clean = Brute.of(model, tokenizer, hparams), EditSession.of(untouched, tokenizer)
    contexts, C = session.untouched.contexts(hparams), session.untouched.covariances(hparams)
    z = torch.cat(
        [  # the new ones with the original weights, the lost one as the model is now
            values_of(clean.layout, tokenizer, new, contexts, hparams, nll).z,
            values_of(brute.session.layout, tokenizer, first[1:], contexts, hparams, nll).z,
        ]
    )

    def solve(layer, K, R):
        k = kept.keys[layer][:, :1].double()  # of the edit that is not lost
        A = hparams.covariance_weight(len(K)) * C[layer].double() + k @ k.T + K @ K.T
        return R @ K.T @ torch.linalg.inv(A)

    before = brute.session.layout.down(1).weight.clone()
    brute.spread([*new, first[1]], z, contexts, solve)
    given(monkeypatch, [1, 0])
    record = BASES["NSE"].edit_round(session, new, hparams)
    for layer in hparams.layers:
        got, want = (EditSession.of(m).layout.down(layer).weight for m in (model, brute.model))
        assert (got - want).norm() < 1e-3 * (want - before).norm()
    assert [(o.case_id, o.earlier_round) for o in record.outcomes] == [(2, None), (3, None), (1, 1)]
    assert record.edits == 2 and record.summary()["written_again"] == 1
    stored = RoundFile.at(save_round(tmp_path, record).path)
    assert (stored.edits, stored.rewrites) == (2, (1,)) and session.ledger.edits() == 4
    with pytest.raises(SessionError, match="round 2 wrote edits of it again"):
        session.undo(1)
    session.undo_last(2)
    assert same_bits(model, untouched)


def test_a_fact_that_the_round_itself_edits_is_not_asked(tokenizer, tmp_path, monkeypatch):
    hparams = quick(MEMITHparams, tmp_path, repair_every=1)
    session = EditSession.of(model := tiny_model("gpt2"), tokenizer)
    BASES["MEMIT"].edit_round(session, some_requests(1), hparams)
    changed = replace(some_requests(1)[0], case_id=9, target_new="Garn")
    given(monkeypatch)  # asking would fail
    record = BASES["MEMIT"].edit_round(session, [changed], hparams)
    assert [o.case_id for o in record.outcomes] == [9] and model is session.model


CHAT = ("Q: ", " A:", " ")


def says(model, tokenizer, requests, chat=("", "", " ")):
    """The first two tokens that the model generates after each prompt, as text."""
    said = []
    for request in requests:
        ids = tokenizer(f"{chat[0]}{request.text}{chat[1]}", return_tensors="pt")["input_ids"]
        whole = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
        said.append(tokenizer.decode(whole[0, ids.shape[1] :]))
    return said


def with_targets(requests, said):
    """The requests with what was said as their targets."""
    return [replace(r, target_new=text.strip() or "a") for r, text in zip(requests, said)]


def test_asking_is_free_greedy_generation(tokenizer):
    """In plain text and in chat, where the answer is the model's turn."""
    model, requests = tiny_model("gpt2"), some_requests(3)
    chat = ChatTokenizer(tokenizer, CHAT)
    said = {
        tokenizer: says(model, tokenizer, requests),
        chat: says(model, tokenizer, requests, CHAT),
    }
    asked = {tok: with_targets(requests, texts) for tok, texts in said.items()}
    right = {tok: [text.startswith(" ") for text in texts] for tok, texts in said.items()}
    for tok, other in ((tokenizer, chat), (chat, tokenizer)):
        session = EditSession.of(own := copy.deepcopy(model), tok)
        found = repair.answered(session, [*asked[tok], *requests], 4096).tolist()
        assert found == right[tok] + [False] * 3 and any(found)
        found = repair.answered(session, asked[other], 4096).tolist()
        assert found != right[other] and own is session.model  # other answers than in that format


def test_a_round_in_chat_repairs_what_chat_does_not_answer(tokenizer, tmp_path):
    """What it answers before the edit it still answers after it, and the rest it never does."""
    model, requests = tiny_model("gpt2"), some_requests(6)
    known = with_targets(requests[:3], said := says(model, tokenizer, requests[:3], CHAT))
    right = [text.startswith(" ") for text in said] + [False] * 3
    assert any(right)
    hparams = quick(MEMITHparams, tmp_path, repair_rounds=1)
    session = EditSession.of(model, ChatTokenizer(tokenizer, CHAT))
    record = BASES["MEMIT"].edit_round(session, [*known, *requests[3:]], hparams)
    assert [o.answered_before_repair for o in record.outcomes] == right
    assert [o.repairs for o in record.outcomes] == [int(not yes) for yes in right]


def test_memit_with_previous_keys_is_nse_without_its_parts(tokenizer, tmp_path):
    changes = parse_method("MEMIT:previous-keys").changes
    memit = quick(MEMITHparams, tmp_path, **changes)
    nse = quick(NSEHparams, tmp_path, rewind=False, max_iterations=1, neuron_threshold=1.0)
    models = [tiny_model("gpt2"), tiny_model("gpt2")]
    for model, hparams in zip(models, (memit, nse)):
        session = EditSession.of(model, tokenizer)
        for requests in three_rounds():
            BASES[hparams.method].edit_round(session, requests, hparams)
    assert same_bits(models[0], models[1])
