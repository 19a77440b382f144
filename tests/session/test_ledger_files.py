"""Round files: what is read is what was written; damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nse_plugin.errors import DataError
from nse_plugin.methods.nse import edit_round
from nse_plugin.session.ledger_files import RoundFile, load_round, load_rounds, save_round
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_hparams


@pytest.fixture
def session(model, tokenizer, tmp_path):
    session = EditSession.of(model, tokenizer)
    for i in (0, 2):
        edit_round(
            session,
            some_requests(4)[i : i + 2],
            tiny_hparams(neuron_threshold=0.6, stats_dir=str(tmp_path / "stats")),
        )
    return session


def test_round_trip_and_rebuilding_the_weights(session, tmp_path):
    ledger = load_rounds([save_round(tmp_path, record).path for record in session.ledger])
    assert len(ledger) == 2 and ledger.edits() == 4
    for layer in (1, 2):
        name = session.layout.down_name(layer)
        changes = (
            write.change(session.layout.d_ff) for r in ledger for write in r.writes_to(layer)
        )
        change = session.layout.to_weight(sum(changes))
        assert torch.equal(change, session.weights.change(name))
        assert torch.equal(
            session.weights.original(name) + change, session.model.get_parameter(name)
        )
    for read, kept in zip(ledger, session.ledger):
        assert read.outcomes == kept.outcomes and read.summary() == kept.summary()
        assert all(torch.equal(read.keys[layer], kept.keys[layer]) for layer in (1, 2))


def test_what_a_record_says_of_its_writes(session):
    record = session.ledger[0]
    d_ff = session.layout.d_ff
    for layer in record.layers():
        total = sum(w.change(d_ff).double() for w in record.writes if w.layer == layer)
        assert record.norms()[layer] == pytest.approx(float(total.norm()), rel=1e-5)
    for write in record.writes:
        change = write.change(d_ff)
        _, left, right = write.factors()
        assert torch.equal(left @ right, change[:, write.neurons])
        assert 0.6 <= write.key_mass < 1.0 and write.case_ids == (0, 1)


def test_damage_is_named(session, tmp_path):
    path, sha256 = save_round(tmp_path, session.ledger[1])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="round-0002.safetensors is not a whole round file"):
        load_round(path)
    path.write_bytes(whole.replace(b'\\"schema\\": 4', b'\\"schema\\": 9'))
    for call in (load_round, RoundFile.at):
        with pytest.raises(DataError, match="has schema 9, and this version reads 4"):
            call(path)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    (entry,) = load_rounds([path], {path: sha256}).active()
    with pytest.raises(DataError, match=r"round-0002.*is damaged: its checksum"):
        entry.read()
    path.write_bytes(whole)
    assert entry.read().number == 2


def test_a_file_that_holds_nan_is_blamed_itself(session, tmp_path):
    record = session.ledger[0]
    record.writes[0].right[0, 0] = float("nan")
    path, _ = save_round(tmp_path, record)
    with pytest.raises(DataError, match=r"round-0001.*is damaged: write.0.right holds NaN"):
        load_round(path)


def test_every_field_of_a_file_is_documented(session, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text(encoding="utf-8")
    with safe_open(save_round(tmp_path, session.ledger[0]).path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
        tensors = {name.split(".")[-1] for name in file.keys() if name.startswith("write")}  # noqa: SIM118
    assert f"of schema {record['schema']}:" in page and "`keys.L`" in page
    for name in tensors:
        assert f"`write.I.{name}`" in page
    for name in [*record, *record["outcomes"][0], *record["writes"][0]]:
        assert f"`{name}`" in page


def test_a_loaded_ledger_reads_its_files_when_asked(session, tmp_path):
    paths = [save_round(tmp_path, record).path for record in session.ledger]
    ledger = load_rounds(paths)
    for limit in (1, 3, 9):
        expected = session.ledger.some_keys([1, 2], limit)
        for layer, keys in ledger.some_keys([1, 2], limit).items():
            every = torch.cat([record.keys[layer] for record in session.ledger], dim=1)
            picked = torch.linspace(0, every.shape[1] - 1, limit).round().long()
            assert torch.equal(keys, every[:, picked] if limit < every.shape[1] else every)
            assert torch.equal(keys, expected[layer])
    paths[1].unlink()
    assert ledger.numbers() == [1, 2] and ledger[0].number == 1
    with pytest.raises(DataError, match="round-0002"):
        ledger[1]
