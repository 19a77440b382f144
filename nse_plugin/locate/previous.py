"""P, the sum of k k^T over the keys of earlier rounds, without summing it anew every round."""

from __future__ import annotations

import torch

from nse_plugin.ledger.records import Ledger

_SMALL = 4096
"""Up to this d_ff the matrix P is kept; above, only once there are more keys than neurons."""


class PreviousKeys:
    """P by layer, kept up to date with a ledger.

    While there are few keys, P[I, I] is made from them when it is asked for: a matrix [d_ff, d_ff]
    would be larger than they are.  Later, P is kept in main memory and each round is added once, so
    that the cost of a round does not grow with the number of rounds before it.  Rounds are added
    in their order, so a resumed session has the same bits.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sums: dict[int, tuple[int, torch.Tensor]] = {}  # rounds included, P float64

    def drop_from(self, length: int) -> None:
        """Forget what was summed beyond the first ``length`` rounds."""
        self._sums = {layer: kept for layer, kept in self._sums.items() if kept[0] <= length}

    def matrix(self, layer: int, neurons: torch.Tensor) -> torch.Tensor | None:
        """P[I, I] in float64 on the device of ``neurons`` [|I|]; None where there are no keys."""
        keys = [record.keys[layer] for record in self._ledger if layer in record.keys]
        if not keys:
            return None
        d_ff, rows = keys[0].shape[0], neurons.cpu()
        if d_ff > _SMALL and sum(k.shape[1] for k in keys) <= d_ff:
            chosen = torch.cat([k[rows] for k in keys], dim=1).to(neurons.device).double()
            return chosen @ chosen.T
        total = self._up_to_date(layer, d_ff)
        return (total if len(rows) == d_ff else total[rows][:, rows]).to(neurons.device)

    def _up_to_date(self, layer: int, d_ff: int) -> torch.Tensor:
        done, total = self._sums.get(layer, (0, torch.zeros(d_ff, d_ff, dtype=torch.float64)))
        for number in range(done, len(self._ledger)):
            if layer in self._ledger[number].keys:
                keys = self._ledger[number].keys[layer].double()
                total.addmm_(keys, keys.T)
        self._sums[layer] = (len(self._ledger), total)
        return total
