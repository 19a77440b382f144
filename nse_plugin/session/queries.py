"""Small tables about a ledger: what an engineer asks when an edited model misbehaves.

All of them are made from the records alone, in main memory; no model is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from nse_plugin.errors import DataError
from nse_plugin.files import require
from nse_plugin.session.capacity import key_share
from nse_plugin.session.records import Ledger, RoundRecord, Write

if TYPE_CHECKING:
    from pandas import DataFrame

_STATUSES = ("converged", "residual_left", "out_of_bounds")


def neurons(ledger: Ledger, layer: int) -> DataFrame:
    """One row per neuron of a layer, indexed by it.

    Columns: ``times_written`` (writes, several passes of a round included), ``norm`` (of the
    neuron's column in the sum of all changes), ``key_mass`` (its share of sum |k| over the keys of
    all rounds), ``rounds`` (tuple of the numbers of the rounds that wrote it).

    Raises:
        DataError: no round knows the layer.
    """
    pd, d_ff = import_pandas(), _d_ff(ledger, layer)
    times = torch.zeros(d_ff, dtype=torch.long)
    mass = torch.zeros(d_ff, dtype=torch.float64)
    wrote: list[list[int]] = [[] for _ in range(d_ff)]
    for record in ledger:
        for write in _writes_to(record, layer):
            times[write.neurons] += 1
        for neuron in record.neurons(layer).tolist():
            wrote[neuron].append(record.number)
        if layer in record.keys:
            mass += record.keys[layer].double().abs().sum(dim=1)
    change = ledger.change(layer, d_ff)
    norm = torch.zeros(d_ff) if change is None else change.norm(dim=0)
    return pd.DataFrame(
        {
            "times_written": times.numpy(),
            "norm": norm.numpy(),
            "key_mass": (mass / mass.sum().clamp(min=1e-300)).numpy(),
            "rounds": [tuple(numbers) for numbers in wrote],
        },
        index=pd.RangeIndex(d_ff, name="neuron"),
    )


def rounds(ledger: Ledger) -> DataFrame:
    """One row per round that stands, indexed by its number.

    Columns: ``method``, ``edits``, how many requests ended in each status, ``seconds``, and per
    layer L ``neurons_L`` (how many were written) and ``norm_L`` (of what the round changed); NaN
    where a round did not edit the layer.
    """
    pd = import_pandas()
    rows = [_round_row(record) for record in ledger]
    columns = ["round", "method", "edits", *_STATUSES, "seconds"]
    columns += [
        f"{what}_{layer}" for layer in edited_layers(ledger) for what in ("neurons", "norm")
    ]
    return pd.DataFrame(rows, columns=columns).set_index("round")


def requests(ledger: Ledger) -> DataFrame:
    """One row per request of every round: ``round``, then the fields of its outcome."""
    from nse_plugin.session.records import Outcome

    rows = [{"round": r.number, **asdict(outcome)} for r in ledger for outcome in r.outcomes]
    return import_pandas().DataFrame(rows, columns=["round", *Outcome.__dataclass_fields__])


def overlap(ledger: Ledger, layer: int | None = None) -> DataFrame:
    """Jaccard index of the neurons that each two rounds wrote, indexed by their numbers.

    Rounds that wrote nothing have 0 with all others, and 1 with themselves.

    Args:
        layer: of this layer; None is over all layers together.

    Raises:
        DataError: no round knows the layer.
    """
    pd = import_pandas()
    if layer is not None:
        _d_ff(ledger, layer)
    layers = edited_layers(ledger) if layer is None else [layer]
    chosen = [_written(record, ledger, layers) for record in ledger]
    written = torch.stack(chosen).double() if chosen else torch.zeros(0, 0, dtype=torch.float64)
    both = written @ written.T
    sizes = written.sum(dim=1)
    jaccard = both / (sizes[:, None] + sizes - both).clamp(min=1)
    jaccard.fill_diagonal_(1.0)
    numbers = pd.Index(ledger.numbers(), name="round")
    return pd.DataFrame(jaccard.numpy(), index=numbers, columns=numbers)


def capacity(
    ledger: Ledger, max_keys: int = 2048, after: Collection[int] | None = None
) -> DataFrame:
    """Share of each layer's key space that previous keys use: a row per round, a column per layer.

    The value after a round is the effective dimension of all keys up to it over d_ff, where the
    effective dimension is exp of the entropy of the normalised eigenvalues of K K^T.  NaN before
    the layer's first keys.

    Args:
        max_keys: of more keys, as many are taken at even distances.
        after: only the values after these rounds; all where None.
    """
    pd = import_pandas()
    wanted = [number for number in ledger.numbers() if after is None or number in after]
    shares: dict[int, list[float]] = {}
    for layer in edited_layers(ledger):
        so_far: list[torch.Tensor] = []
        column: list[float] = []
        for record in ledger:
            if layer in record.keys:
                so_far.append(record.keys[layer])
            if record.number in wanted:
                share = key_share(torch.cat(so_far, dim=1), max_keys) if so_far else None
                column.append(float("nan") if share is None else share)
        shares[layer] = column
    table = pd.DataFrame(shares, index=pd.Index(wanted, name="round"))
    return table.rename_axis(columns="layer")


def column_norms(ledger: Ledger, layer: int) -> DataFrame:
    """What each round changed in each neuron: a row per round, a column per neuron of the layer.

    The value is the norm of the round's change of the neuron's column, all passes together; NaN
    where the round did not write it.

    Raises:
        DataError: no round knows the layer.
    """
    pd, d_ff = import_pandas(), _d_ff(ledger, layer)
    norms = torch.full((len(ledger), d_ff), float("nan"))
    for row, record in zip(norms, ledger):
        written = record.neurons(layer)
        if len(written):
            row[written] = _column_norms(_writes_to(record, layer), d_ff)[written].float()
    return pd.DataFrame(
        norms.numpy(),
        index=pd.Index(ledger.numbers(), name="round"),
        columns=pd.RangeIndex(d_ff, name="neuron"),
    )


def norm_growth(ledger: Ledger) -> DataFrame:
    """Norm of the sum of all changes up to a round: a row per round, a column per layer."""
    pd = import_pandas()
    growth: dict[int, list[float]] = {}
    for layer in edited_layers(ledger):
        total, growth[layer] = torch.zeros(()), []
        for record in ledger:
            for write in _writes_to(record, layer):
                total = total + write.change(_d_ff(ledger, layer))
            growth[layer].append(float(total.norm()))
    table = pd.DataFrame(growth, index=pd.Index(ledger.numbers(), name="round"))
    return table.rename_axis(columns="layer")


def request_writes(ledger: Ledger, case_id: int | str, most: int = 5) -> DataFrame:
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
            parts = write.left.norm(dim=0) * write.right.norm(dim=1)  # [n]
            for at, found in enumerate(write.case_ids):
                if str(found) != str(case_id):
                    continue
                strongest = write.right[at].abs().argsort(descending=True)[:most]
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


def who_wrote(ledger: Ledger, layer: int, neuron: int) -> DataFrame:
    """Rounds and requests that wrote a neuron: a row for each request of each such round.

    A write of a round as a whole (FT trains on all requests together) has one row, with the
    round's request where it is the only one, and None otherwise.

    Columns: ``round``, ``case_id``, ``norm`` (of the request's share in the change of the neuron's
    column, all passes together) and ``round_norm`` (of the round's change of the column).  Sorted
    by round, then by ``norm``, largest first.

    Raises:
        DataError: no round knows the layer, or there is no such neuron.
    """
    d_ff = _d_ff(ledger, layer)
    if not 0 <= neuron < d_ff:
        raise DataError(f"neuron is {neuron}; layer {layer} has 0 to {d_ff - 1}")
    rows = []
    for record in ledger:
        # each request's share of the column [d_model]
        parts: dict[int | str | None, torch.Tensor] = {}
        for write in _writes_to(record, layer):
            column = (write.neurons == neuron).nonzero().flatten()
            if not len(column):
                continue
            shares = write.left * write.right[:, column[0]]  # [d_model, n]
            owners: tuple[int | str | None, ...] = write.case_ids
            if not owners:
                owners, shares = (_only_case(record),), shares.sum(dim=1, keepdim=True)
            for case_id, share in zip(owners, shares.T):
                parts[case_id] = parts[case_id] + share if case_id in parts else share
        if parts:
            total = float(torch.stack(list(parts.values())).sum(dim=0).norm())
            found = [
                (record.number, case_id, float(p.norm()), total) for case_id, p in parts.items()
            ]
            rows += sorted(found, key=lambda row: -row[2])
    return import_pandas().DataFrame(rows, columns=["round", "case_id", "norm", "round_norm"])


def _round_row(record: RoundRecord) -> dict[str, Any]:
    summary = record.summary()
    row = {"round": record.number, "method": record.method, "edits": summary["edits"]}
    row |= summary["status"] | {"seconds": sum(record.seconds.values())}
    for layer, entry in summary["layers"].items():
        row |= {f"neurons_{layer}": entry["neurons"], f"norm_{layer}": entry["norm"]}
    return row


def _written(record: RoundRecord, ledger: Ledger, layers: list[int]) -> torch.Tensor:
    """[sum of d_ff], whether the round wrote each neuron of the layers."""
    flags = []
    for layer in layers:
        flag = torch.zeros(_d_ff(ledger, layer), dtype=torch.bool)
        flag[record.neurons(layer)] = True
        flags.append(flag)
    return torch.cat(flags) if flags else torch.zeros(0, dtype=torch.bool)


def _column_norms(writes: list[Write], d_ff: int) -> torch.Tensor:
    """[d_ff] float64, norms of the columns of sum L R, without the [d_model, d_ff] matrix."""
    left = torch.cat([write.left for write in writes], dim=1).double()  # [d_model, n]
    right = torch.zeros(left.shape[1], d_ff, dtype=torch.float64)  # [n, d_ff]
    first = 0
    for write in writes:
        right[first : first + len(write.right), write.neurons] = write.right.double()
        first += len(write.right)
    return (right * (left.T @ left @ right)).sum(dim=0).clamp(min=0).sqrt()


def _writes_to(record: RoundRecord, layer: int) -> list[Write]:
    return [write for write in record.writes if write.layer == layer]


def _only_case(record: RoundRecord) -> int | str | None:
    return record.outcomes[0].case_id if len(record.outcomes) == 1 else None


def edited_layers(ledger: Ledger) -> list[int]:
    """Layers that any round edited, rising."""
    return sorted({layer for record in ledger for layer in record.keys})


def _d_ff(ledger: Ledger, layer: int) -> int:
    sizes = (record.keys[layer].shape[0] for record in ledger if layer in record.keys)
    d_ff = next(sizes, None)
    if d_ff is None:
        known = ", ".join(map(str, edited_layers(ledger))) or "none, for no round stands"
        raise DataError(f"layer is {layer}, and no round edited it; edited layers: {known}")
    return d_ff


def import_pandas() -> ModuleType:
    """pandas, which makes the tables.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    return require("pandas", "tables of a ledger")
