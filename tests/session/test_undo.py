"""Any round can be undone: weights, previous keys, ledger, fingerprints and run directories."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nse_plugin.cli import main
from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import DataError, SessionError
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.nse import edit_round
from nse_plugin.runs.directory import run_directory
from nse_plugin.runs.reading import RunFiles, undone_rounds
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.undo import undo_round
from nse_plugin.session import ledger_files, previous_keys, records
from nse_plugin.session.blame import blame
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.previous_keys import PreviousKeys
from nse_plugin.session.records import Undone
from nse_plugin.session.session import EditSession
from tests.runs import runs
from tests.tiny import (
    atlas_model,
    bits,
    same_bits,
    some_requests,
    tiny_hparams,
    tiny_model,
    tiny_tokenizer,
)

N = 10


def hparams():
    return tiny_hparams(
        layers=[1, 2], v_num_grad_steps=3, mom2_adjustment=False, n_contexts=1, context_length=3,
        max_iterations=2, neuron_threshold=0.7,
    )  # fmt: skip


def ten_rounds(family: str):
    """A model with ten rounds of one request, its session, and the weights before them."""
    model = tiny_model(family)
    originals = bits(model)
    session = EditSession.of(model, tiny_tokenizer())
    for number in range(N):
        edit_round(session, [some_requests(6)[number % 6]], hparams())
    return model, session, originals


@functools.cache
def ten_records(family: str):
    return tuple(ten_rounds(family)[1].ledger)


def adopted(family: str, records):
    """A fresh model with these rounds."""
    ledger = Ledger()
    for record in records:
        ledger.append(record)
    model = tiny_model(family)
    session = EditSession.of(model, tiny_tokenizer())
    session.adopt(ledger)
    return model, session


def changes_of(records, session, layer):
    """Brute force in float64: left x right of every write, put on its columns one by one."""
    total = torch.zeros(32, 48, dtype=torch.float64)
    for record in records:
        for write in record.writes:
            if write.layer == layer:
                total[:, write.neurons] += write.left.double() @ write.right.double()
    return session.layout.to_weight(total)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(1, N + 1)))
def test_ten_rounds_in_any_order(family, order):
    records = ten_records(family)
    model, session = adopted(family, records)
    originals = bits(tiny_model(family))
    every = torch.arange(48)
    for layer in (1, 2):  # P is summed up, so that it has to be taken apart again
        session.previous_keys.matrix(layer, every)
    active = list(records)
    for number in order:
        session.undo(number, "test")
        active = [record for record in active if record.number != number]
        assert session.ledger.numbers() == [record.number for record in active]
        session.check()
        for layer in (1, 2):
            name = session.layout.down_name(layer)
            expected = originals[name].double() + changes_of(active, session, layer)
            torch.testing.assert_close(
                model.get_parameter(name).double(), expected, rtol=1e-5, atol=1e-5
            )
            kept = session.previous_keys.matrix(layer, every)
            if not active:
                assert kept is None
                continue
            keys = torch.cat([record.keys[layer] for record in active], dim=1).double()
            torch.testing.assert_close(kept, keys @ keys.T)
    assert same_bits(model, originals)
    assert [undone.number for undone in session.ledger.undone] == list(order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_as_a_session_that_never_had_the_round(dtype):
    records = ten_records("gpt2")
    models, sessions = [], []
    for some in (records, [r for r in records if r.number not in (3, 7)]):
        ledger = Ledger()
        for record in some:
            ledger.append(record)
        models.append(tiny_model("gpt2", dtype=dtype))
        sessions.append(EditSession.of(models[-1], tiny_tokenizer()))
        sessions[-1].adopt(ledger)
    every = torch.arange(48)
    sessions[0].previous_keys.matrix(1, every)
    sessions[0].undo(7)
    sessions[0].undo(3)
    for layer in (1, 2):
        ours, theirs = (s.previous_keys.matrix(layer, every) for s in sessions)
        assert torch.equal(ours, theirs)
    assert same_bits(models[0], models[1])
    assert sessions[0]._states == sessions[1]._states
    new = [edit_round(s, some_requests(1), hparams()) for s in sessions]
    assert [record.number for record in new] == [11, 11]
    assert same_bits(models[0], models[1])


def test_a_new_round_gets_a_new_number_and_the_last_can_still_be_undone(model, tokenizer, device):
    before = bits(model)
    session = EditSession.of(model, tokenizer)
    for request in some_requests(3):
        edit_round(session, [request], hparams())
    session.undo(3)
    session.undo(1, "wrong source")
    assert edit_round(session, some_requests(4)[3:], hparams()).number == 4
    assert session.ledger.numbers() == [2, 4]
    session.undo_last()
    assert session.ledger.numbers() == [2]
    found = [(undone.number, undone.reason) for undone in session.ledger.undone]
    assert found == [(3, ""), (1, "wrong source"), (4, "")]
    session.undo_all()
    assert same_bits(model, before)
    assert edit_round(session, some_requests(1), hparams()).number == 1


def test_weights_put_back_after_an_undo(model, tokenizer, device):
    """The states of the active rounds are known again, the one with the undone round is not."""
    session = EditSession.of(model, tokenizer)
    names = [session.layout.down_name(layer) for layer in (1, 2)]
    held = []
    for request in some_requests(4):
        edit_round(session, [request], hparams())
        held.append({n: model.get_parameter(n).detach().clone() for n in names})
    session.undo(2)
    now = {n: model.get_parameter(n).detach().clone() for n in names}

    def put(state):
        with torch.no_grad():
            for name, value in state.items():
                model.get_parameter(name).copy_(value)

    put(held[2])
    with pytest.raises(SessionError, match="not by this session"):
        session.check()
    put(now)
    session.undo(4)
    put(held[0])
    session.check()
    assert session.ledger.numbers() == [1]
    assert [undone.number for undone in session.ledger.undone] == [2, 4, 3]


def test_unknown_and_undone_rounds_are_named(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    with pytest.raises(SessionError, match="no round 1; no round is active"):
        session.undo(1)
    for request in some_requests(3):
        edit_round(session, [request], hparams())
    session.undo(2)
    held = bits(model)
    with pytest.raises(SessionError, match=r"round 2 was undone already.*active rounds: 1, 3$"):
        session.undo(2)
    with pytest.raises(SessionError, match=r"there is no round 7; active rounds: 1, 3$"):
        session.undo(7)
    assert same_bits(model, held)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_undo_that_fails_leaves_everything(model, tokenizer, monkeypatch, fails_at):
    session = EditSession.of(model, tokenizer)
    for request in some_requests(4):
        edit_round(session, [request], hparams())
    held = bits(model)
    real, calls = session._replay, []

    def fail(active, record):
        calls.append(record)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        real(active, record)

    monkeypatch.setattr(session, "_replay", fail)
    with pytest.raises(KeyboardInterrupt):
        session.undo(2)
    assert same_bits(model, held)
    assert session.ledger.numbers() == [1, 2, 3, 4] and not session.ledger.undone
    session.check()
    monkeypatch.undo()
    session.undo(2)
    every = torch.arange(48)
    fresh = PreviousKeys(session.ledger).matrix(1, every)
    assert torch.equal(session.previous_keys.matrix(1, every), fresh)


def test_an_undo_of_a_consolidation_that_fails_leaves_it(model, tokenizer, monkeypatch):
    """Round 1 takes its place while round 4 is written again."""
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(2), hparams())
    consolidate(session, hparams())
    for request in some_requests(4)[2:]:
        edit_round(session, [request], hparams())
    held, real = bits(model), session._replay

    def fail(active, record):
        return cut_off() if record.number == 4 else real(active, record)

    monkeypatch.setattr(session, "_replay", fail)
    with pytest.raises(KeyboardInterrupt):
        session.undo(2)
    assert session.ledger.numbers() == [2, 3, 4] and session.ledger.edits() == 4
    assert same_bits(model, held)


def cut_off(*_given):
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [3, 2])
def test_an_interrupt_while_a_round_is_dropped_leaves_the_ledger_whole(
    model, tokenizer, monkeypatch, number
):
    session = EditSession.of(model, tokenizer)
    for request in some_requests(3):
        edit_round(session, [request], hparams())
    ledger, real, asked = session.ledger, records.marks_of, []

    def marks_of(requests):
        asked.append(requests)
        return cut_off() if len(asked) == 4 - number else real(requests)

    monkeypatch.setattr(records, "marks_of", marks_of)
    with pytest.raises(KeyboardInterrupt):
        session.undo(number)
    monkeypatch.undo()
    assert ledger.numbers() == [1, 2, 3] and ledger.undone == []
    session.undo(3)
    assert [r.number for r in ledger.heads_with(m for r in ledger for m in r.marks)] == [1, 2]
    assert not list(ledger.heads_with(records.marks_of(some_requests(3)[2:])))


def test_an_interrupt_between_two_layers_adds_no_previous_keys_twice(model, tokenizer, monkeypatch):
    session = EditSession.of(model, tokenizer)
    for request in some_requests(2):
        edit_round(session, [request], hparams())
    adds = [previous_keys._Layer.add, cut_off]
    monkeypatch.setattr(previous_keys._Layer, "add", lambda *given: adds.pop(0)(*given))
    with pytest.raises(KeyboardInterrupt):
        edit_round(session, some_requests(3)[2:], hparams())
    assert not adds
    monkeypatch.undo()
    fresh, every = PreviousKeys(session.ledger), torch.arange(48)
    for layer in hparams().layers:
        assert torch.equal(session.previous_keys.matrix(layer, every), fresh.matrix(layer, every))


def test_an_interrupt_while_an_undo_is_noted_takes_it_back(model, tokenizer, monkeypatch):
    session = EditSession.of(model, tokenizer)
    for request in some_requests(2):
        edit_round(session, [request], hparams())
    held = bits(model)
    monkeypatch.setattr(Undone, "now", cut_off)
    with pytest.raises(KeyboardInterrupt):
        session.undo(1)
    assert session.ledger.numbers() == [1, 2] and session.ledger.undone == []
    assert same_bits(model, held)


# --- run directories ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The directory of a run of four rounds of one edit, and its weights."""
    folder = tmp_path_factory.mktemp("run") / "four"
    made = runs.scheduler(folder, runs.requests(4), round_size=1)
    made.run()
    return folder


@pytest.fixture
def folder(four, tmp_path):
    return shutil.copytree(four, tmp_path / "run")


def loaded(ledger):
    """A fresh model with the rounds of a ledger."""
    session = runs.session()
    session.adopt(ledger)
    return session


def test_the_command_on_a_directory(folder, four, capsys):
    assert main(["undo", str(folder), "--round", "2", "--reason", "wrong source"]) == 0
    assert "round 2 of" in (said := capsys.readouterr().out) and "active rounds: 1, 3, 4" in said
    ledger = RunFiles(folder).ledger
    assert ledger.numbers() == [1, 3, 4] and ledger.next_number() == 5
    assert [(u.number, u.reason) for u in ledger.undone] == [(2, "wrong source")]
    assert (folder / "round-0002.safetensors").exists()
    session, all_four = loaded(ledger), loaded(RunFiles(four).ledger)
    assert session.ledger.undone == ledger.undone
    all_four.undo(2)
    assert same_bits(session.model, all_four.model)
    for number, text in ((2, "round 2 was undone already"), (7, "there is no round 7")):
        assert main(["undo", str(folder), "--round", str(number)]) == 1
        said = capsys.readouterr().err
        assert text in said and "active rounds: 1, 3, 4" in said
    for number in (4, 1, 3):
        main(["undo", str(folder), "--round", str(number)])
    assert "no round is active" in capsys.readouterr().out and len(RunFiles(folder).ledger) == 0


def test_the_command_names_later_rounds_of_the_same_facts(tmp_path, capsys):
    first, second = runs.requests(2)
    again = dataclasses.replace(first, case_id=9, target_new=second.target_new)
    made = SequentialScheduler(
        runs.session(), [first, second, again], 1, runs.protocol(), tmp_path / "run",
        hparams=runs.hparams(tmp_path),
    )  # fmt: skip
    made.run()
    for number, said in ((2, False), (1, True)):
        assert main(["undo", str(tmp_path / "run"), "--round", str(number)]) == 0
        assert (
            "edit some of its facts too (3) were solved on top of it" in capsys.readouterr().out
        ) is said


def test_damage_and_other_files(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for place in (empty, empty / "not-there"):
        assert main(["undo", str(place), "--round", "1"]) == 1
    assert not list(empty.iterdir())
    undo_round(folder, 2)
    kept = (folder / "undone.json").read_text()
    (folder / "undone.json").write_text(kept[:-9])
    with pytest.raises(DataError, match="is damaged"):
        _ = RunFiles(folder).ledger
    (folder / "undone.json").write_text(kept.replace('"number": 2', '"number": "2"'))
    with pytest.raises(DataError, match="entry 1 is damaged: number is '2', not int"):
        _ = RunFiles(folder).ledger
    (folder / "undone.json").write_text(kept.replace('"schema": 5', '"schema": 9'))
    with pytest.raises(DataError, match="schema 9, and this version reads 5"):
        _ = RunFiles(folder).ledger
    (folder / "undone.json").write_text(kept)
    (folder / "round-0002.safetensors").unlink()  # an undone round is not needed
    assert RunFiles(folder).ledger.numbers() == [1, 3, 4]
    (folder / "round-0003.safetensors").unlink()
    with pytest.raises(DataError, match="round-0003.safetensors is gone"):
        _ = RunFiles(folder).ledger


def test_entries_of_another_round_of_that_number_do_not_count(folder):
    undo_round(folder, 2)
    other = ledger_files.load_round(folder / "round-0003.safetensors")
    ledger_files.save_round(folder, dataclasses.replace(other, number=2))
    assert RunFiles(folder).ledger.numbers() == [1, 2, 3, 4] and undone_rounds(folder) == []
    undo_round(folder, 3)
    assert [entry["number"] for entry in undone_rounds(folder)] == [3]
    assert len(json.loads((folder / "undone.json").read_text())["undone"]) == 1


@pytest.mark.parametrize(("number", "n"), [(1, 3), (3, 3), (4, 3), (None, 1)])
def test_an_undo_reads_each_round_file_at_most_once(four, monkeypatch, number, n):
    """None is of the last three rounds."""
    session = loaded(RunFiles(four).ledger)
    reads, real = [], ledger_files.load_round
    monkeypatch.setattr(
        ledger_files, "load_round", lambda path, *rest: reads.append(path) or real(path, *rest)
    )
    session.undo(number) if number else session.undo_last(3)
    assert len(reads) == len(set(reads)) == n
    reads.clear()
    loaded(RunFiles(four).ledger)
    assert len(reads) == len(set(reads)) == 4


def test_a_run_does_not_go_on_after_an_undo(tmp_path, capsys):
    def scheduler(session):
        return SequentialScheduler(
            session, runs.requests(6), 2, runs.protocol(), tmp_path / "run",
            hparams=runs.hparams(tmp_path),
        )  # fmt: skip

    session = runs.session()
    runs.interrupt(scheduler(session), after=2)
    run = tmp_path / "run"
    with run_directory(run):
        assert main(["undo", str(run), "--round", "1"]) == 1
    assert "is in use by another process" in capsys.readouterr().err
    assert main(["undo", str(run), "--round", "1"]) == 0
    assert RunFiles(run).ledger.numbers() == [2]
    with pytest.raises(
        DataError, match=r"undone rounds \(1\); a run is resumed only from all of its"
    ):
        scheduler(runs.session()).run()
    (run / "undone.json").unlink()
    assert scheduler(runs.session()).run().status == "complete"


# --- blame ----------------------------------------------------------------------------------------


def test_blame_finds_the_round_that_wrote_a_planted_fact(tmp_path):
    model, tokenizer = atlas_model("gpt2")
    session = EditSession.of(model, tokenizer)
    settings = NSEHparams.from_hparams("NSE/atlas-gpt2").to_dict()
    hparams = NSEHparams(**{**settings, "mom2_n_samples": 300, "stats_dir": str(tmp_path)})
    planted = parse_records(atlas.edit_set(6, seed=1))
    for fact in planted:
        edit_round(session, [fact], hparams)
    held = bits(model)
    for number, fact in enumerate(planted, 1):
        table = blame(session, fact.text)
        assert sorted(table["round"]) == [1, 2, 3, 4, 5, 6]
        assert table["kl"].is_monotonic_decreasing and table["kl"].min() >= -1e-9
        assert table.loc[0, "round"] == number
    assert same_bits(model, held)
    session.check()


def test_blame_against_models_without_the_round(tokenizer):
    records = ten_records("llama")[:3]
    model, session = adopted("llama", records)
    text = "Mara Voss lives in"
    table = blame(session, text).set_index("round")
    ids = torch.tensor([tokenizer(text)["input_ids"]])

    @torch.no_grad()
    def chances(some):
        return some(ids).logits[0, -1].double().log_softmax(-1)

    now = chances(model)
    for gone in records:
        other, _ = adopted("llama", [r for r in records if r is not gone])
        without = chances(other)
        expected = float((now.exp() * (now - without)).sum())
        assert table.loc[gone.number, "kl"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        change = float((now - without)[now.argmax()])
        assert table.loc[gone.number, "top_change"] == pytest.approx(change, rel=1e-3, abs=1e-5)


def test_blame_puts_the_weights_back_on_errors(tokenizer, monkeypatch):
    model, session = adopted("gpt2", ten_records("gpt2")[:3])
    held = bits(model)
    real, calls = model.forward, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        blame(session, "Mara Voss lives in")
    assert same_bits(model, held)
    session.check()
    with pytest.raises(Exception, match="has no tokens"):
        blame(session, "")
