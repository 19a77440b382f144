"""P, the sum of k k^T over the keys of earlier rounds, updated incrementally."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from nse_plugin.session.ledger import Ledger

_SMALL = 4096
"""Up to this d_ff the matrix P is kept; above, only once there are more keys than neurons."""


class PreviousKeys:
    """P by layer, kept up to date with a ledger.

    While there are few keys, P[I, I] is made from them when it is asked for: a matrix [d_ff, d_ff]
    would be larger than they are.  Later, P is kept.  Each round is looked at once, so that the
    cost of a round does not grow with the number of rounds before it.  Rounds are added in their
    order, so a resumed session has the same bits.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rounds = 0  # of the ledger, looked at
        self._layers: dict[int, _Layer] = {}
        self._left_out: Mapping[int, torch.Tensor] = {}

    @contextmanager
    def without(self, keys: Mapping[int, torch.Tensor]) -> Iterator[None]:
        """Inside, P is that without these of its keys, by layer [d_ff, n]."""
        self._left_out = keys
        try:
            yield
        finally:
            self._left_out = {}

    def drop_from(self, length: int) -> None:
        """Forget what was summed beyond the first ``length`` rounds."""
        if self._rounds > length:
            self._rounds, self._layers = 0, {}

    def matrix(self, layer: int, neurons: torch.Tensor) -> torch.Tensor | None:
        """P[I, I] in float64 on the device of ``neurons`` [|I|]; None if there are no keys."""
        self.catch_up()
        kept = self._layers.get(layer)
        if kept is None:
            return None
        P, out = kept.matrix(neurons), self._left_out.get(layer)
        if out is None:
            return P
        chosen = out[neurons.cpu()].to(neurons.device).double()
        return P - chosen @ chosen.T

    def catch_up(self) -> None:
        """Look at the rounds that are new in the ledger."""
        for index in range(self._rounds, len(self._ledger)):
            for layer, keys in self._ledger[index].keys.items():
                if keys.shape[1]:
                    self._layers.setdefault(layer, _Layer(keys.shape[0])).add(keys)
            self._rounds = index + 1


class _Layer:
    def __init__(self, d_ff: int) -> None:
        self.keys = torch.empty(d_ff, 0)  # while they are few, in one piece
        self.total: torch.Tensor | None = None  # P float64 [d_ff, d_ff], once they are many

    def add(self, keys: torch.Tensor) -> None:
        self.keys = torch.cat([self.keys, keys], dim=1)
        d_ff, n_keys = self.keys.shape
        if self.total is None and d_ff > _SMALL and n_keys <= d_ff:
            return
        if self.total is None:
            self.total = torch.zeros(d_ff, d_ff, dtype=torch.float64)
        new = self.keys.double()
        self.total.addmm_(new, new.T)
        self.keys = self.keys[:, :0].clone()

    def matrix(self, neurons: torch.Tensor) -> torch.Tensor:
        rows = neurons.cpu()
        if self.total is None:
            chosen = self.keys[rows].to(neurons.device).double()
            return chosen @ chosen.T
        whole = len(rows) == self.total.shape[0]
        return (self.total if whole else self.total[rows][:, rows]).to(neurons.device)
