"""Small tables about a ledger: what an engineer asks when an edited model misbehaves.

All of them are made from the records alone, in main memory; no model is needed.  Each table is
gathered round by round, so that one pass over the ledger, which reads every round file once, fills
as many tables as are wanted (:func:`survey`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nse_plugin.errors import DataError
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.tables import (
    Capacity,
    ColumnNorms,
    NeuronRows,
    NormGrowth,
    Overlap,
    RequestRows,
    RoundRows,
    Rounds,
    d_ff_of,
    edited_layers,
    gather,
    import_pandas,
    jaccard,
    writes_to,
)

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Survey:
    """The tables about a whole ledger."""

    rounds: DataFrame
    """See :func:`rounds`."""
    requests: DataFrame
    """See :func:`requests`."""
    neurons: dict[int, DataFrame]
    """By layer: :func:`neurons`."""
    columns: dict[int, DataFrame]
    """By layer: :func:`column_norms`."""
    growth: DataFrame
    """Norm of the sum of all changes up to a round: a row per round, a column per layer."""
    capacity: DataFrame
    """See :func:`capacity`."""

    def overlap(self, layer: int | None = None) -> DataFrame:
        """See :func:`overlap`."""
        chosen = list(self.columns.values()) if layer is None else [self.columns[layer]]
        written = [torch.tensor(table.notna().to_numpy()) for table in chosen]
        numbers = list(self.rounds.index)
        return jaccard(torch.cat(written, dim=1) if written else None, numbers)


def survey(ledger: Rounds, after: Collection[int] | None = None) -> Survey:
    """All tables about a ledger, in one pass.

    Args:
        after: the capacity only after these rounds, since it takes a second each in large models.
    """
    layers = edited_layers(ledger)
    tables = RoundRows(layers), RequestRows(), NormGrowth(ledger), Capacity(ledger, after=after)
    columns = {layer: ColumnNorms(ledger, layer) for layer in layers}
    touched = {layer: NeuronRows(ledger, layer) for layer in layers}
    made = iter(gather(ledger, *tables, *columns.values(), *touched.values()))
    rows, asked, growth, used = (next(made) for _ in tables)
    by_layer = dict(zip(layers, made))
    return Survey(rows, asked, dict(zip(layers, made)), by_layer, growth, used)


def neurons(ledger: Rounds, layer: int) -> DataFrame:
    """One row per neuron of a layer, indexed by it.

    Columns: ``times_written`` (writes, several passes of a round included), ``norm`` (of the
    neuron's column in the sum of all changes), ``key_mass`` (its share of sum |k| over the keys of
    all rounds), ``rounds`` (tuple of the numbers of the rounds that wrote it).

    Raises:
        DataError: no round knows the layer.
    """
    return gather(ledger, NeuronRows(ledger, layer))[0]


def rounds(ledger: Rounds) -> DataFrame:
    """One row per active round, indexed by its number.

    Columns: ``method``, ``edits``, how many requests ended in each status, ``seconds``, and per
    layer L ``neurons_L`` (how many were written) and ``norm_L`` (of what the round changed); NaN
    where a round did not edit the layer.
    """
    return gather(ledger, RoundRows(edited_layers(ledger)))[0]


def requests(ledger: Rounds) -> DataFrame:
    """One row per request of every round: ``round``, then the fields of its outcome."""
    return gather(ledger, RequestRows())[0]


def overlap(ledger: Rounds, layer: int | None = None) -> DataFrame:
    """Jaccard index of the neurons that each two rounds wrote, indexed by their numbers.

    Rounds that wrote nothing have 0 with all others, and 1 with themselves.

    Args:
        layer: of this layer; None is over all layers together.

    Raises:
        DataError: no round knows the layer.
    """
    return gather(ledger, Overlap(ledger, layer))[0]


def capacity(
    ledger: Rounds, max_keys: int = 2048, after: Collection[int] | None = None
) -> DataFrame:
    """Share of each layer's key space that previous keys use: a row per round, a column per layer.

    The value after a round is the effective dimension of all keys up to it over d_ff, where the
    effective dimension is exp of the entropy of the normalised eigenvalues of K K^T.  NaN before
    the layer's first keys.

    Args:
        max_keys: of more keys, as many are taken at even distances.
        after: only the values after these rounds; all where None.
    """
    return gather(ledger, Capacity(ledger, max_keys, after))[0]


def column_norms(ledger: Rounds, layer: int) -> DataFrame:
    """What each round changed in each neuron: a row per round, a column per neuron of the layer.

    The value is the norm of the round's change of the neuron's column, all passes together; NaN
    where the round did not write it.

    Raises:
        DataError: no round knows the layer.
    """
    return gather(ledger, ColumnNorms(ledger, layer))[0]


def request_writes(ledger: Rounds, case_id: int | str, most: int = 5) -> DataFrame:
    """What one request wrote: a row for each write that it took part in.

    Columns: ``round``, ``layer``, ``pass_number``, ``norm`` (of the request's part of the write, an
    outer product), ``share`` (of it in the sum of all requests' norms) and ``neurons`` (tuple of
    those that it changed most).

    Args:
        case_id: compared as text, so that ``7`` finds ``"7"``.
        most: how many neurons are named.
    """
    rows = []
    for record in ledger:
        for write in record.writes:
            if not any(str(found) == str(case_id) for found in write.case_ids):
                continue
            left, right = write.factors()
            parts = left.norm(dim=0) * right.norm(dim=1)  # [n]
            for at, found in enumerate(write.case_ids):
                if str(found) != str(case_id):
                    continue
                strongest = right[at].abs().argsort(descending=True)[:most]
                rows.append(
                    {
                        "round": record.number,
                        "layer": write.layer,
                        "pass_number": write.pass_number,
                        "norm": float(parts[at]),
                        "share": float(parts[at] / parts.sum().clamp(min=1e-30)),
                        "neurons": tuple(write.neurons[strongest].tolist()),
                    }
                )
    columns = ["round", "layer", "pass_number", "norm", "share", "neurons"]
    return import_pandas().DataFrame(rows, columns=columns)


def who_wrote(ledger: Rounds, layer: int, neuron: int) -> DataFrame:
    """Rounds and requests that wrote a neuron: a row for each request of each such round.

    A write of a round as a whole (FT trains on all requests together) has one row, with the
    round's request where it is the only one, and None otherwise.

    Columns: ``round``, ``case_id``, ``norm`` (of the request's share in the change of the neuron's
    column, all passes together) and ``round_norm`` (of the round's change of the column).  Sorted
    by round, then by ``norm``, largest first.

    Raises:
        DataError: no round knows the layer, or there is no such neuron.
    """
    d_ff = d_ff_of(ledger, layer)
    if not 0 <= neuron < d_ff:
        raise DataError(f"neuron is {neuron}; layer {layer} has 0 to {d_ff - 1}")
    rows = []
    for record in ledger:
        parts = _shares(record, layer, neuron)
        if parts:
            total = float(torch.stack(list(parts.values())).sum(dim=0).norm())
            found = [
                (record.number, case_id, float(p.norm()), total) for case_id, p in parts.items()
            ]
            rows += sorted(found, key=lambda row: -row[2])
    return import_pandas().DataFrame(rows, columns=["round", "case_id", "norm", "round_norm"])


def _shares(record: RoundRecord, layer: int, neuron: int) -> dict[int | str | None, torch.Tensor]:
    """By request: its share of a round's change of a neuron's column, [d_model]."""
    parts: dict[int | str | None, torch.Tensor] = {}
    for write in writes_to(record, layer):
        column = (write.neurons == neuron).nonzero().flatten()
        if not len(column):
            continue
        left, right = write.factors()
        shares = left * right[:, column[0]]  # [d_model, n]
        owners: tuple[int | str | None, ...] = write.case_ids
        if not owners:
            owners, shares = (_only_case(record),), shares.sum(dim=1, keepdim=True)
        for case_id, share in zip(owners, shares.T):
            parts[case_id] = parts[case_id] + share if case_id in parts else share
    return parts


def _only_case(record: RoundRecord) -> int | str | None:
    return record.outcomes[0].case_id if len(record.outcomes) == 1 else None
