"""Tables about a ledger, for finding out why an edited model misbehaves.

They are made from the records, in main memory; no model is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from nse_plugin.errors import DataError
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.norms import column_norms
from nse_plugin.session.records import STATUSES, Outcome, RoundRecord
from nse_plugin.session.tables import (
    Capacity,
    LayerTable,
    by_layer,
    d_ff_of,
    edited_layers,
    jaccard,
)

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Survey:
    """All tables about a ledger, for which every round file is read once."""

    rounds: DataFrame
    """One row per active round, indexed by its number: ``method``, ``edits``, number of requests in
    each status, ``seconds``, and per layer L ``neurons_L`` (number of neurons written) and
    ``norm_L`` (of the round's change); NaN if the round did not edit the layer."""
    requests: DataFrame
    """See :func:`requests`."""
    neurons: dict[int, DataFrame]
    """By layer: see :func:`neurons`."""
    columns: dict[int, DataFrame]
    """By layer, a row per round and a column per neuron: norm of the round's change of the neuron's
    column, over all passes; NaN if the round did not write it."""
    growth: DataFrame
    """Norm of the sum of all changes up to a round: a row per round, a column per layer."""
    capacity: DataFrame
    """Share of each layer's key space that the keys up to a round use (:func:`.tables.key_share`):
    a row per round and a column per layer; NaN before the layer's first keys."""
    overlaps: dict[int | None, DataFrame]
    """By layer, and under None of all layers together: Jaccard index of the neurons that each two
    rounds wrote, indexed by their numbers.  Rounds that wrote nothing have 0 with all others, and 1
    with themselves."""


def survey(ledger: Ledger, after: Collection[int] | None = None) -> Survey:
    """All tables about a ledger, in one pass.

    Args:
        after: compute the capacity only after these rounds; in large models it takes a second per
            round.
    """
    import pandas as pd

    numbers = ledger.numbers()
    layers = {layer: LayerTable(ledger, layer) for layer in edited_layers(ledger)}
    capacity = Capacity(ledger, after)
    rows, outcomes = [], []
    for record in ledger:
        rows.append(_round_row(record))
        outcomes += _request_rows(record)
        for layer in layers.values():
            layer.add(record)
        capacity.add(record)
    of_layers = [f"{what}_{layer}" for layer in layers for what in ("neurons", "norm")]
    columns = ["round", "method", "edits", *STATUSES, "seconds", *of_layers]
    overlaps: dict[int | None, DataFrame] = {None: jaccard(layers.values(), numbers)}
    overlaps |= {layer: jaccard([found], numbers) for layer, found in layers.items()}
    return Survey(
        rounds=pd.DataFrame(rows, columns=columns).set_index("round"),
        requests=_requests(outcomes),
        neurons={layer: found.neurons() for layer, found in layers.items()},
        columns={layer: found.columns() for layer, found in layers.items()},
        growth=by_layer({n: found.growth for n, found in layers.items()}, numbers),
        capacity=capacity.table(),
        overlaps=overlaps,
    )


def neurons(ledger: Ledger, layer: int) -> DataFrame:
    """One row per neuron of a layer, indexed by it.

    Columns: ``times_written`` (number of writes, each pass counted), ``norm`` (of the neuron's
    column in the sum of all changes), ``key_mass`` (its share of sum |k| over the keys of all
    rounds), ``rounds`` (tuple of the numbers of the rounds that wrote it).

    Raises:
        DataError: no round edited the layer.
    """
    table = LayerTable(ledger, layer)
    for record in ledger:
        table.add(record)
    return table.neurons()


def requests(ledger: Ledger) -> DataFrame:
    """One row per request of every round: ``round``, then the fields of its outcome."""
    return _requests([row for record in ledger.heads() for row in _request_rows(record)])


def request_writes(ledger: Ledger, case_id: int | str, most: int = 5) -> DataFrame:
    """One row for each write that a request took part in.

    Columns: ``round``, ``layer``, ``pass_number``, ``norm`` (of the request's part of the write, an
    outer product, or with UltraEdit the sum of one for each target token), ``share`` (of its outer
    products in the sum of all norms of such) and ``neurons`` (tuple of those that it changed most).

    Args:
        case_id: compared as text, so that ``7`` finds ``"7"``.
        most: number of neurons to list.
    """
    import pandas as pd

    rows = []
    for entry in ledger.active():
        same = sum(str(each.case_id) == str(case_id) for each in entry.head().outcomes)
        for write in entry.read().writes if same else ():
            found = [i for i, each in enumerate(write.case_ids) if str(each) == str(case_id)]
            if not found:
                continue
            _, left, right = write.factors()
            norms = left.norm(dim=0) * right.norm(dim=1)  # [n]
            shares = norms / norms.sum().clamp(min=1e-30)
            # a consolidation may have several requests of this case_id, each with one column
            for own in [found] if same == 1 else [[i] for i in found]:
                per_neuron = column_norms(left[:, own], right[own])
                strongest = per_neuron.argsort(descending=True)[:most]
                neurons = tuple(write.neurons[strongest].tolist())
                place = (entry.number, write.layer, write.pass_number)
                rows.append((*place, float(per_neuron.norm()), float(shares[own].sum()), neurons))
    columns = ["round", "layer", "pass_number", "norm", "share", "neurons"]
    return pd.DataFrame(rows, columns=columns)


def who_wrote(ledger: Ledger, layer: int, neuron: int) -> DataFrame:
    """Rounds and requests that wrote a neuron: a row for each request of each such round.

    A write without a factor per request (FT trains on all requests together) has one row, with the
    round's request if it is the only one, and None otherwise.

    Columns: ``round``, ``case_id``, ``norm`` (of the request's share in the change of the neuron's
    column, over all passes) and ``round_norm`` (of the round's change of the column).  Sorted by
    round, then by ``norm``, largest first.

    Raises:
        DataError: no round edited the layer, or there is no such neuron.
    """
    import pandas as pd

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
    return pd.DataFrame(rows, columns=["round", "case_id", "norm", "round_norm"])


def _shares(record: RoundRecord, layer: int, neuron: int) -> dict[int | str | None, torch.Tensor]:
    """By request: its share of a round's change of a neuron's column, [d_model]."""
    parts: dict[int | str | None, torch.Tensor] = {}
    for write in record.writes_to(layer):
        column = (write.neurons == neuron).nonzero().flatten()
        if not len(column):
            continue
        _, left, right = write.factors()
        shares = left * right[:, column[0]]  # [d_model, n]
        owners: tuple[int | str | None, ...] = write.case_ids
        if not owners:
            only = record.outcomes[0].case_id if len(record.outcomes) == 1 else None
            owners, shares = (only,), shares.sum(dim=1, keepdim=True)
        for case_id, share in zip(owners, shares.T):
            parts[case_id] = parts[case_id] + share if case_id in parts else share
    return parts


def _round_row(record: RoundRecord) -> dict[str, Any]:
    summary = record.summary()
    row = {"round": record.number, "method": record.method, "edits": summary["edits"]}
    row |= summary["status"] | {"seconds": sum(record.seconds.values())}
    for layer, entry in summary["layers"].items():
        row |= {f"neurons_{layer}": entry["neurons"], f"norm_{layer}": entry["norm"]}
    return row


def _request_rows(record: RoundRecord) -> list[dict[str, Any]]:
    return [{"round": record.number, **asdict(each)} for each in record.outcomes]


def _requests(rows: list[dict[str, Any]]) -> DataFrame:
    import pandas as pd

    columns = ["round", *(field.name for field in fields(Outcome))]
    return pd.DataFrame(rows, columns=columns)
