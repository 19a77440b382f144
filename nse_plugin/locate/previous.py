"""P, the sum of k k^T over the keys of earlier rounds, without summing it anew every round."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from nse_plugin.ledger.records import Ledger

_SMALL = 4096
"""Up to this d_ff the matrix P is kept; above, only once there are more keys than neurons."""


@dataclass
class _Layer:
    rounds: int = 0  # of the ledger, looked at
    n_keys: int = 0
    keys: list[torch.Tensor] = field(default_factory=list)  # [d_ff, n] each, not yet in the sum
    total: torch.Tensor | None = None  # P float64 [d_ff, d_ff]


class PreviousKeys:
    """P by layer, kept up to date with a ledger.

    While there are few keys, P[I, I] is made from them when it is asked for: a matrix [d_ff, d_ff]
    would be larger than they are.  Later, P is kept in main memory and each round is looked at and
    added once, so that the cost of a round does not grow with the number of rounds before it.
    Rounds are added in their order, so a resumed session has the same bits.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._layers: dict[int, _Layer] = {}

    def drop_from(self, length: int) -> None:
        """Forget what was summed beyond the first ``length`` rounds."""
        self._layers = {k: kept for k, kept in self._layers.items() if kept.rounds <= length}

    def matrix(self, layer: int, neurons: torch.Tensor) -> torch.Tensor | None:
        """P[I, I] in float64 on the device of ``neurons`` [|I|]; None where there are no keys."""
        kept = self._up_to_date(layer)
        if not kept.n_keys:
            return None
        d_ff = (kept.keys[0] if kept.total is None else kept.total).shape[0]
        rows = neurons.cpu()
        if kept.total is None and d_ff > _SMALL and kept.n_keys <= d_ff:
            chosen = torch.cat([k[rows] for k in kept.keys], dim=1).to(neurons.device).double()
            return chosen @ chosen.T
        if kept.total is None:
            kept.total = torch.zeros(d_ff, d_ff, dtype=torch.float64)
        for keys in kept.keys:
            kept.total.addmm_(keys.double(), keys.double().T)
        kept.keys.clear()
        total = kept.total
        return (total if len(rows) == d_ff else total[rows][:, rows]).to(neurons.device)

    def _up_to_date(self, layer: int) -> _Layer:
        kept = self._layers.setdefault(layer, _Layer())
        for number in range(kept.rounds, len(self._ledger)):
            keys = self._ledger[number].keys.get(layer)
            if keys is not None:
                kept.keys.append(keys)
                kept.n_keys += keys.shape[1]
        kept.rounds = len(self._ledger)
        return kept
