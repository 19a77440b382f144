"""The tables of a ledger against the matrices they are about."""

from __future__ import annotations

import math

import pytest
import torch

from nse_plugin.errors import DataError
from nse_plugin.methods.nse import edit_round
from nse_plugin.session import ledger_files, queries
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.ledger_files import load_rounds, save_round
from nse_plugin.session.norms import ChangeSum
from nse_plugin.session.records import Outcome, RoundRecord, Write
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_hparams, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """Three rounds on layers 1 and 2, a fourth on layer 0, some neurons only; round 2 undone."""
    model, stats = tiny_model("gpt2"), str(tmp_path_factory.mktemp("stats"))
    session = EditSession.of(model, tiny_tokenizer())
    requests = some_requests(6)
    for layers, some in (([1, 2], requests[:2]), ([1, 2], requests[2:3]), ([1, 2], requests[3:5])):
        edit_round(
            session, some, tiny_hparams(layers=layers, neuron_threshold=0.6, stats_dir=stats)
        )
    session.undo(2)
    hparams = tiny_hparams(layers=[0], neuron_threshold=0.6, stats_dir=stats)
    edit_round(session, requests[5:], hparams)
    assert session.ledger.numbers() == [1, 3, 4]
    return session.ledger


@pytest.fixture(scope="module")
def survey(ledger):
    return queries.survey(ledger)


def writes(record, layer):
    return [write for write in record.writes if write.layer == layer]


def test_neurons(ledger):
    table = queries.neurons(ledger, 1)
    change = sum(write.change(48) for record in ledger for write in writes(record, 1))
    mass = torch.cat([r.keys[1] for r in ledger if 1 in r.keys], dim=1).abs().sum(dim=1)
    assert len(table) == 48 and table.index.name == "neuron"
    for neuron, row in table.iterrows():
        times = sum(neuron in w.neurons.tolist() for r in ledger for w in writes(r, 1))
        numbers = tuple(r.number for r in ledger if neuron in r.neurons(1).tolist())
        assert (row["times_written"], row["rounds"]) == (times, numbers)
        assert row["norm"] == pytest.approx(float(change[:, neuron].norm()), abs=1e-6)
        assert row["key_mass"] == pytest.approx(float(mass[neuron] / mass.sum()), rel=1e-5)
    assert table["key_mass"].sum() == pytest.approx(1.0)
    assert 0 < (table["times_written"] == 0).sum() < 48


def test_rounds(ledger, survey):
    table = survey.rounds
    assert list(table.index) == [1, 3, 4] and list(table["edits"]) == [2, 2, 1]
    assert math.isnan(table.loc[4, "norm_1"]) and math.isnan(table.loc[1, "neurons_0"])
    for record in ledger:
        for layer, norm in record.norms().items():
            assert table.loc[record.number, f"norm_{layer}"] == pytest.approx(norm)
            assert table.loc[record.number, f"neurons_{layer}"] == len(record.neurons(layer))
    statuses = table[["converged", "residual_left", "out_of_bounds"]].sum(axis=1)
    assert list(statuses) == list(table["edits"])


def test_requests(ledger):
    table = queries.requests(ledger)
    assert list(table["round"]) == [1, 1, 3, 3, 4] and list(table["case_id"]) == [0, 1, 3, 4, 5]
    outcomes = [outcome for record in ledger for outcome in record.outcomes]
    for name in ("status", "passes", "residual_before", "residual_after", "z_norm", "z_loss"):
        assert list(table[name]) == [getattr(outcome, name) for outcome in outcomes]


def test_overlap(ledger, survey):
    chosen = {r.number: set(r.neurons(1).tolist()) for r in ledger}
    table = survey.overlaps[1]
    for a, first in chosen.items():
        for b, second in chosen.items():
            either = first | second
            expected = 1.0 if a == b else len(first & second) / len(either) if either else 0.0
            assert table.loc[a, b] == pytest.approx(expected)
    assert 0 < table.loc[1, 3] < 1 and table.loc[1, 4] == 0 and table.loc[4, 4] == 1
    whole = {
        r.number: {(layer, n) for layer in (0, 1, 2) for n in r.neurons(layer).tolist()}
        for r in ledger
    }
    both = len(whole[1] & whole[3]) / len(whole[1] | whole[3])
    assert survey.overlaps[None].loc[1, 3] == pytest.approx(both)


def test_capacity_against_a_direct_computation(ledger, survey):
    table = survey.capacity
    assert list(table.index) == [1, 3, 4] and list(table.columns) == [0, 1, 2]
    assert table[0].isna().tolist() == [True, True, False]
    for layer in (0, 1, 2):
        for at, number in enumerate(table.index):
            keys = [r.keys[layer] for r in list(ledger)[: at + 1] if layer in r.keys]
            if keys:
                singular = torch.linalg.svdvals(torch.cat(keys, dim=1).double())
                p = singular**2 / (singular**2).sum()
                expected = float(torch.exp(-(p * p.log()).sum())) / 48
                assert table.loc[number, layer] == pytest.approx(expected, rel=1e-6)


def test_capacity_of_keys_with_known_dimensions():
    """n orthogonal keys of one length use n dimensions; the same keys again add none."""
    ledger = Ledger()
    axes = torch.eye(8)
    for number, keys in enumerate((axes[:, :2], axes[:, 2:4], axes[:, :4], axes), start=1):
        ledger.append(RoundRecord(number, "NSE", (), (), {0: keys * 3}, d_ff=8))
    assert queries.survey(ledger).capacity[0].tolist()[:3] == pytest.approx([2 / 8, 4 / 8, 4 / 8])


def test_capacity_after_some_rounds(ledger, survey):
    some = queries.survey(ledger, after=[4, 1]).capacity
    assert some.equals(survey.capacity.loc[[1, 4]])


def test_column_norms(ledger, survey):
    for layer in (0, 1, 2):
        table = survey.columns[layer]
        assert table.shape == (3, 48) and list(table.index) == [1, 3, 4]
        for record in ledger:
            change = sum(
                (w.change(48).double() for w in writes(record, layer)), torch.zeros(32, 48)
            )
            written = {n for w in writes(record, layer) for n in w.neurons.tolist()}
            for neuron, norm in table.loc[record.number].items():
                assert math.isnan(norm) == (neuron not in written)
                if neuron in written:
                    assert norm == pytest.approx(float(change[:, neuron].norm()), rel=1e-5)


def test_norm_growth(ledger, survey):
    table = survey.growth
    assert list(table.columns) == [0, 1, 2]
    for layer in table.columns:
        total = torch.zeros(32, 48, dtype=torch.float64)
        for record in ledger:
            for write in writes(record, layer):
                total += write.change(48).double()
            assert table.loc[record.number, layer] == pytest.approx(float(total.norm()), rel=1e-5)
    assert table.loc[3, 0] == 0 < table.loc[4, 0]


def test_request_writes(ledger):
    table = queries.request_writes(ledger, "3", most=2)
    assert set(table["round"]) == {3} and set(table["layer"]) == {1, 2}
    for _, row in table.iterrows():
        (write,) = (
            w for w in writes(ledger[1], row["layer"]) if w.pass_number == row["pass_number"]
        )
        norms = [float(torch.outer(a, b).norm()) for a, b in zip(write.left.T, write.right)]
        at = write.case_ids.index(3)
        assert row["norm"] == pytest.approx(norms[at], rel=1e-5)
        assert row["share"] == pytest.approx(norms[at] / sum(norms), rel=1e-5)
        change = torch.outer(write.left[:, at], write.right[at]).norm(dim=0)
        strongest = change.topk(2).indices
        assert row["neurons"] == tuple(write.neurons[strongest].tolist())
    assert queries.request_writes(ledger, "nobody").empty


def test_a_request_with_a_column_per_token_has_one_row_for_each_write():
    """As UltraEdit's requests have."""
    torch.manual_seed(0)
    left, right, ledger = torch.randn(4, 3), torch.randn(3, 6), Ledger()
    write = Write(0, 1, torch.arange(6), left, right, (7, 8, 7), None)
    outcomes = tuple(Outcome(i, "", "converged", 1) for i in (7, 8))
    ledger.append(RoundRecord(1, "UltraEdit", outcomes, (write,), {0: torch.zeros(6, 0)}, d_ff=6))
    table = queries.request_writes(ledger, 7)
    change = left[:, [0, 2]] @ right[[0, 2]]
    norms = left.norm(dim=0) * right.norm(dim=1)
    assert list(table["norm"]) == pytest.approx([float(change.norm())])
    assert list(table["share"]) == pytest.approx([float(1 - norms[1] / norms.sum())])
    assert table["neurons"][0] == tuple(change.norm(dim=0).topk(5).indices.tolist())


def test_outcomes_are_read_without_tensors(ledger, tmp_path, monkeypatch):
    files = load_rounds([save_round(tmp_path, record).path for record in ledger])
    read, real = [], ledger_files.load_round
    monkeypatch.setattr(
        ledger_files, "load_round", lambda path, *rest: read.append(path) or real(path, *rest)
    )
    assert queries.requests(files).equals(queries.requests(ledger)) and not read
    found = queries.request_writes(files, 3)
    assert found.equals(queries.request_writes(ledger, 3)) and len(read) == 1


def test_who_wrote(ledger):
    neuron = int(ledger[0].writes[0].neurons[0])
    layer = ledger[0].writes[0].layer
    table = queries.who_wrote(ledger, layer, neuron)
    for record in ledger:
        rows = table[table["round"] == record.number]
        column = sum((w.change(48)[:, neuron] for w in writes(record, layer)), torch.zeros(32))
        if neuron not in record.neurons(layer).tolist():
            assert rows.empty
            continue
        assert list(rows["round_norm"]) == pytest.approx([float(column.norm())] * len(rows))
        assert set(rows["case_id"]) <= {outcome.case_id for outcome in record.outcomes}
        for _, row in rows.iterrows():
            share = torch.zeros(32)
            for w in writes(record, layer):
                if neuron in w.neurons.tolist() and row["case_id"] in w.case_ids:
                    n, i = w.case_ids.index(row["case_id"]), w.neurons.tolist().index(neuron)
                    share += w.left[:, n] * w.right[n, i]
            assert row["norm"] == pytest.approx(float(share.norm()), rel=1e-5)
    assert set(queries.neurons(ledger, layer).loc[neuron, "rounds"]) == set(table["round"])
    left = queries.neurons(ledger, 1).query("times_written == 0").index[0]
    assert queries.who_wrote(ledger, 1, left).empty


def test_who_wrote_names_the_request_that_did():
    left, right = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0], [0.0]])
    ledger = Ledger()
    write = Write(0, 1, torch.tensor([4]), left, right, ("a", "b"), 1.0)
    ledger.append(RoundRecord(1, "NSE", (), (write,), {0: torch.ones(6, 2)}, d_ff=6))
    table = queries.who_wrote(ledger, 0, 4)
    assert table.to_dict("list") == {
        "round": [1, 1], "case_id": ["a", "b"], "norm": [3.0, 0.0], "round_norm": [3.0, 3.0],
    }  # fmt: skip


def test_wrong_arguments_and_empty_ledgers(ledger):
    with pytest.raises(DataError, match="layer is 3, and no round edited it; .* 0, 1, 2"):
        queries.neurons(ledger, 3)
    with pytest.raises(DataError, match="neuron is 48; layer 1 has 0 to 47"):
        queries.who_wrote(ledger, 1, 48)
    empty = Ledger()
    found = queries.survey(empty)
    for table in (found.rounds, found.requests, found.overlaps[None], found.capacity, found.growth):
        assert table.empty
    with pytest.raises(DataError, match="no round is active"):
        queries.neurons(empty, 1)


def test_one_pass_gives_the_tables_that_can_be_asked_for_alone(ledger, survey):
    assert survey.requests.equals(queries.requests(ledger))
    for layer in (0, 1, 2):
        assert survey.neurons[layer].equals(queries.neurons(ledger, layer))


@pytest.mark.parametrize(
    "counts", [(2, 3, 1), (5, 9), (2, 12, 3), (16,), (None, 2), (2, None, None), (9, None, 1)]
)
def test_norms_of_a_sum_with_few_and_many_factors(counts):
    """Once there are more factors than rows (8), or a change without any, the sum is kept."""
    torch.manual_seed(0)
    total, whole = ChangeSum(20), torch.zeros(8, 20, dtype=torch.float64)
    for n in counts:
        neurons = torch.randperm(20)[:11].sort().values
        left, right = torch.randn(8, n or 8), torch.randn(n or 8, 11)
        total.add([(neurons, None if n is None else left, right)])
        whole[:, neurons] += right.double() if n is None else left.double() @ right.double()
        assert total.norm() == pytest.approx(float(whole.norm()), rel=1e-5)
        assert torch.allclose(total.column_norms(), whole.norm(dim=0), rtol=1e-4, atol=1e-6)
