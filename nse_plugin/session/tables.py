"""The parts of the tables about a ledger: one layer over all rounds, and the use of the key space.

Each part is fed round by round, so one pass over a ledger, which reads every round file once, fills
all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from nse_plugin.errors import DataError
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.norms import ChangeSum
from nse_plugin.session.records import RoundRecord

if TYPE_CHECKING:
    from pandas import DataFrame


class LayerTable:
    """One layer over the rounds: which neurons each round wrote, and how much they changed."""

    def __init__(self, ledger: Ledger, layer: int) -> None:
        self._layer, self._numbers, d_ff = layer, ledger.numbers(), d_ff_of(ledger, layer)
        self._times = torch.zeros(d_ff, dtype=torch.long)
        self._mass = torch.zeros(d_ff, dtype=torch.float64)
        self._norms = torch.full((len(self._numbers), d_ff), float("nan"))
        self._change = ChangeSum(d_ff)
        self.growth: list[float] = []
        """Norm of the sum of all changes after each round added."""

    def add(self, record: RoundRecord) -> None:
        """Add the next round."""
        written, writes = record.neurons(self._layer), record.writes_to(self._layer)
        for write in writes:
            self._times[write.neurons] += 1
        if writes:
            row = self._norms[len(self.growth)]
            row[written] = record.column_norms(self._layer)[written].float()
        if self._layer in record.keys:
            self._mass += record.keys[self._layer].double().abs().sum(dim=1)
        self._change.add([(write.neurons, write.left, write.right) for write in writes])
        self.growth.append(self._change.norm())

    def written(self) -> torch.Tensor:
        """[rounds, d_ff] bool, whether a round wrote a neuron."""
        return ~self._norms.isnan()

    def columns(self) -> DataFrame:
        """See :attr:`nse_plugin.session.queries.Survey.columns`."""
        import pandas as pd

        table = pd.DataFrame(self._norms.numpy(), index=self._numbers)
        return table.rename_axis("round").rename_axis("neuron", axis="columns")

    def neurons(self) -> DataFrame:
        """See :func:`nse_plugin.session.queries.neurons`."""
        import pandas as pd

        rounds: list[list[int]] = [[] for _ in self._times]
        for index, neuron in self.written().nonzero().tolist():
            rounds[neuron].append(self._numbers[index])
        table = pd.DataFrame(
            {
                "times_written": self._times.numpy(),
                "norm": self._change.column_norms().float().numpy(),
                "key_mass": (self._mass / self._mass.sum().clamp(min=1e-300)).numpy(),
                "rounds": list(map(tuple, rounds)),
            }
        )
        return table.rename_axis("neuron")


class Capacity:
    """Share of the key space in use after each round, by layer.

    Args:
        after: only after these rounds; None for all.
    """

    def __init__(self, ledger: Ledger, after: Collection[int] | None) -> None:
        self._wanted = [n for n in ledger.numbers() if after is None or n in after]
        self._keys: dict[int, list[torch.Tensor]] = {n: [] for n in edited_layers(ledger)}
        self._shares: dict[int, list[float]] = {layer: [] for layer in self._keys}

    def add(self, record: RoundRecord) -> None:
        """Add the next round."""
        for layer, so_far in self._keys.items():
            if layer in record.keys:
                so_far.append(record.keys[layer])
            if record.number in self._wanted:
                share = key_share(torch.cat(so_far, dim=1)) if so_far else None
                self._shares[layer].append(float("nan") if share is None else share)

    def table(self) -> DataFrame:
        """See :attr:`nse_plugin.session.queries.Survey.capacity`."""
        return by_layer(self._shares, self._wanted)


def key_share(keys: torch.Tensor, max_keys: int = 2048) -> float | None:
    """Share of the key space in use: effective dimension of keys [d_ff, n] over d_ff.

    The effective dimension is exp of the entropy of the normalised eigenvalues of K K^T.  Of more
    than ``max_keys`` keys, ``max_keys`` evenly spaced ones are used.
    """
    d_ff, n = keys.shape
    if n > max_keys:
        keys = keys[:, torch.linspace(0, n - 1, max_keys, dtype=torch.float64).round().long()]
    k = keys.double()
    gram = k.T @ k if k.shape[1] < d_ff else k @ k.T  # both have the same eigenvalues above 0
    if not bool(torch.isfinite(gram).all()):
        return None
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = eigenvalues.sum()
    if float(total) == 0:
        return 0.0
    shares = eigenvalues / total
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(entropy.exp()) / d_ff


def by_layer(columns: Mapping[int, list[float]], numbers: Sequence[int]) -> DataFrame:
    """A row per round, a column per layer."""
    import pandas as pd

    table = pd.DataFrame(columns, index=pd.Index(numbers, name="round"))
    return table.rename_axis("layer", axis="columns")


def jaccard(layers: Collection[LayerTable], numbers: Sequence[int]) -> DataFrame:
    """Jaccard index of the neurons that each two rounds wrote in some layers."""
    import pandas as pd

    written = [layer.written() for layer in layers] or [torch.zeros(len(numbers), 0)]
    flags = torch.cat(written, dim=1).double()
    both, sizes = flags @ flags.T, flags.sum(dim=1)
    overlap = both / (sizes[:, None] + sizes - both).clamp(min=1)
    overlap.fill_diagonal_(1.0)
    rounds = pd.Index(numbers, name="round")
    return pd.DataFrame(overlap.numpy(), index=rounds, columns=rounds)


def d_ff_of(ledger: Ledger, layer: int) -> int:
    """Number of neurons of an edited layer.

    Raises:
        DataError: no round edited the layer.
    """
    for entry in ledger.active():
        if layer in entry.key_counts and entry.d_ff is not None:
            return entry.d_ff
    known = ", ".join(map(str, edited_layers(ledger))) or "none, for no round is active"
    raise DataError(f"layer is {layer}, and no round edited it; edited layers: {known}")


def edited_layers(ledger: Ledger) -> list[int]:
    """Layers that any round edited, rising."""
    return sorted({layer for entry in ledger.active() for layer in entry.key_counts})
