"""Tables about a ledger in the making: each takes in round by round, none reads a file.

One pass over a ledger, which reads every round file once, fills any number of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nse_plugin.errors import DataError
from nse_plugin.files import require
from nse_plugin.session.capacity import key_share
from nse_plugin.session.norms import ChangeSum
from nse_plugin.session.records import ActiveRound, Outcome, RoundRecord, Write

if TYPE_CHECKING:
    from pandas import DataFrame

_STATUSES = ("converged", "residual_left", "out_of_bounds")


class Rounds(Protocol):
    """Active rounds, as a :class:`~nse_plugin.session.ledger.Ledger` has them."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RoundRecord]: ...

    def active(self) -> list[ActiveRound]:
        """The rounds, not read."""

    def numbers(self) -> list[int]:
        """Numbers of the rounds, in order."""


class Table(Protocol):
    """A table in the making."""

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""

    def made(self) -> DataFrame:
        """The table of the rounds seen."""


def gather(ledger: Rounds, *tables: Table) -> list[DataFrame]:
    """Show every round of a ledger to some tables, each round read once; returns the tables."""
    import_pandas()  # before anything is read
    for record in ledger:
        for table in tables:
            table.see(record)
    return [table.made() for table in tables]


class RoundRows:
    """One row per round: edits, their outcomes, neurons written, norms."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._rows: list[dict[str, Any]] = []
        self._columns = ["round", "method", "edits", *_STATUSES, "seconds"]
        self._columns += [f"{what}_{layer}" for layer in layers for what in ("neurons", "norm")]

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        summary = record.summary()
        row = {"round": record.number, "method": record.method, "edits": summary["edits"]}
        row |= summary["status"] | {"seconds": sum(record.seconds.values())}
        for layer, entry in summary["layers"].items():
            row |= {f"neurons_{layer}": entry["neurons"], f"norm_{layer}": entry["norm"]}
        self._rows.append(row)

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        return import_pandas().DataFrame(self._rows, columns=self._columns).set_index("round")


class RequestRows:
    """One row per request: its outcome."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        self._rows += [{"round": record.number, **asdict(each)} for each in record.outcomes]

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        columns = ["round", *(field.name for field in fields(Outcome))]
        return import_pandas().DataFrame(self._rows, columns=columns)


class NeuronRows:
    """One row per neuron of a layer: how often, how far and by which rounds it was written."""

    def __init__(self, ledger: Rounds, layer: int) -> None:
        self._layer, d_ff = layer, d_ff_of(ledger, layer)
        self._times = torch.zeros(d_ff, dtype=torch.long)
        self._mass = torch.zeros(d_ff, dtype=torch.float64)
        self._rounds: list[list[int]] = [[] for _ in range(d_ff)]
        self._change = ChangeSum(d_ff)

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        for write in writes_to(record, self._layer):
            self._times[write.neurons] += 1
            self._change.add([(write.neurons, *write.factors())])
        for neuron in record.neurons(self._layer).tolist():
            self._rounds[neuron].append(record.number)
        if self._layer in record.keys:
            self._mass += record.keys[self._layer].double().abs().sum(dim=1)

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        pd, d_ff = import_pandas(), len(self._times)
        return pd.DataFrame(
            {
                "times_written": self._times.numpy(),
                "norm": self._change.column_norms().float().numpy(),
                "key_mass": (self._mass / self._mass.sum().clamp(min=1e-300)).numpy(),
                "rounds": [tuple(numbers) for numbers in self._rounds],
            },
            index=pd.RangeIndex(d_ff, name="neuron"),
        )


class Overlap:
    """Jaccard index of the neurons that each two rounds wrote."""

    def __init__(self, ledger: Rounds, layer: int | None) -> None:
        layers = edited_layers(ledger) if layer is None else [layer]
        self._sizes = {each: d_ff_of(ledger, each) for each in layers}
        self._numbers: list[int] = []
        self._written: list[torch.Tensor] = []  # of each round, [sum of d_ff]

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        flags = [torch.zeros(d_ff, dtype=torch.bool) for d_ff in self._sizes.values()]
        for layer, flag in zip(self._sizes, flags):
            flag[record.neurons(layer)] = True
        self._numbers.append(record.number)
        self._written.append(torch.cat(flags) if flags else torch.zeros(0, dtype=torch.bool))

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        return jaccard(torch.stack(self._written) if self._written else None, self._numbers)


class Capacity:
    """Share of the key space in use after each round, by layer."""

    def __init__(
        self, ledger: Rounds, max_keys: int = 2048, after: Collection[int] | None = None
    ) -> None:
        numbers = ledger.numbers()
        self._wanted = [number for number in numbers if after is None or number in after]
        self._max_keys = max_keys
        self._keys: dict[int, list[torch.Tensor]] = {n: [] for n in edited_layers(ledger)}
        self._shares: dict[int, list[float]] = {layer: [] for layer in self._keys}

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        for layer, so_far in self._keys.items():
            if layer in record.keys:
                so_far.append(record.keys[layer])
            if record.number in self._wanted:
                share = key_share(torch.cat(so_far, dim=1), self._max_keys) if so_far else None
                self._shares[layer].append(float("nan") if share is None else share)

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        pd = import_pandas()
        table = pd.DataFrame(self._shares, index=pd.Index(self._wanted, name="round"))
        return table.rename_axis(columns="layer")


class ColumnNorms:
    """A row per round, a column per neuron of a layer: norm of what the round changed."""

    def __init__(self, ledger: Rounds, layer: int) -> None:
        self._layer, self._numbers = layer, ledger.numbers()
        self._norms = torch.full((len(self._numbers), d_ff_of(ledger, layer)), float("nan"))

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        written = record.neurons(self._layer)
        if len(written):
            row = self._norms[self._numbers.index(record.number)]
            row[written] = record.column_norms(self._layer)[written].float()

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        pd = import_pandas()
        return pd.DataFrame(
            self._norms.numpy(),
            index=pd.Index(self._numbers, name="round"),
            columns=pd.RangeIndex(self._norms.shape[1], name="neuron"),
        )


class NormGrowth:
    """Norm of the sum of all changes after each round, by layer."""

    def __init__(self, ledger: Rounds) -> None:
        self._numbers: list[int] = []
        self._sums = {n: ChangeSum(d_ff_of(ledger, n)) for n in edited_layers(ledger)}
        self._norms: dict[int, list[float]] = {layer: [] for layer in self._sums}

    def see(self, record: RoundRecord) -> None:
        """Take in the next round."""
        self._numbers.append(record.number)
        for layer, total in self._sums.items():
            total.add([(w.neurons, *w.factors()) for w in writes_to(record, layer)])
            self._norms[layer].append(total.norm())

    def made(self) -> DataFrame:
        """The table of the rounds seen."""
        pd = import_pandas()
        table = pd.DataFrame(self._norms, index=pd.Index(self._numbers, name="round"))
        return table.rename_axis(columns="layer")


def jaccard(written: torch.Tensor | None, numbers: Sequence[int]) -> DataFrame:
    """Of each two rounds, from whether each wrote each neuron: [rounds, neurons] bool."""
    pd = import_pandas()
    flags = torch.zeros(len(numbers), 0) if written is None else written
    flags = flags.double()
    both = flags @ flags.T
    sizes = flags.sum(dim=1)
    jaccard = both / (sizes[:, None] + sizes - both).clamp(min=1)
    jaccard.fill_diagonal_(1.0)
    index = pd.Index(numbers, name="round")
    return pd.DataFrame(jaccard.numpy(), index=index, columns=index)


def writes_to(record: RoundRecord, layer: int) -> list[Write]:
    """The writes of a round to one layer."""
    return [write for write in record.writes if write.layer == layer]


def d_ff_of(ledger: Rounds, layer: int) -> int:
    """How many neurons an edited layer has.

    Raises:
        DataError: no round edited the layer.
    """
    for entry in ledger.active():
        if layer in entry.key_counts and entry.d_ff is not None:
            return entry.d_ff
    known = ", ".join(map(str, edited_layers(ledger))) or "none, for no round is active"
    raise DataError(f"layer is {layer}, and no round edited it; edited layers: {known}")


def edited_layers(ledger: Rounds) -> list[int]:
    """Layers that any round edited, rising."""
    return sorted({layer for entry in ledger.active() for layer in entry.key_counts})


def import_pandas() -> ModuleType:
    """pandas, which makes the tables.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    return require("pandas", "tables of a ledger")
