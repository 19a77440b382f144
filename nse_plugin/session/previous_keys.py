"""Keys, P and moments of features of all earlier rounds, updated incrementally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from nse_plugin.session.ledger import Ledger
from nse_plugin.session.moments import Moments

_SMALL = 4096
"""Up to this d_ff, P is kept once it is needed; above, it is formed from few keys each time."""


class PreviousKeys:
    """Keys, P (the sum of their k k^T) and moments by layer, kept up to date with a ledger.

    While the keys are few (at most half as many as neurons) the keys themselves are kept, since
    solves with all neurons need nothing else; later, P replaces them.  Each round is added once, so
    the cost of a round does not grow with the number of rounds before it.  Rounds are added one by
    one and in order, so a resumed session has the same bits.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rounds = 0  # number of the ledger's rounds that have been added
        self._layers: dict[int, _Layer] = {}
        self._moments: dict[int, Moments] = {}
        self._left_out: Mapping[int, torch.Tensor] = {}

    @contextmanager
    def without(self, keys: Mapping[int, torch.Tensor]) -> Iterator[None]:
        """Inside, these keys are left out of P, by layer [d_ff, n]."""
        self._left_out = keys
        try:
            yield
        finally:
            self._left_out = {}

    def drop_from(self, length: int) -> None:
        """Forget all rounds if any beyond the first ``length`` has been added."""
        if self._rounds > length:
            self._rounds, self._layers, self._moments = 0, {}, {}

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

    def few(self, layer: int, like: torch.Tensor) -> torch.Tensor | None:
        """All keys E [d_ff, m] in float64 on the device of the keys ``like`` [d_ff, n].

        None if they are not few, or some are left out; m is 0 if there are none.
        """
        self.catch_up()
        kept = self._layers.get(layer)
        if layer in self._left_out:
            return None
        if kept is None:
            return no_keys(like)
        return kept.few(like.device)

    def solved(
        self, layer: int, factor: torch.Tensor, solve: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """``solve(E)`` [d_ff, m] for the few keys (at least one); earlier results are kept.

        Args:
            factor: what ``solve`` depends on; another one discards the kept results.
        """
        return self._layers[layer].solve(factor, solve)

    def moments(self, layer: int) -> Moments | None:
        """Moments of the editing features of all rounds; None if no round has any."""
        self.catch_up()
        return self._moments.get(layer)

    def catch_up(self) -> None:
        """Add the rounds that are new in the ledger."""
        for index in range(self._rounds, len(self._ledger)):
            record = self._ledger[index]
            for layer, keys in record.keys.items():
                if keys.shape[1]:
                    self._layers.setdefault(layer, _Layer(keys.shape[0])).add(keys)
            for layer, found in record.moments.items():
                before = self._moments.get(layer)
                self._moments[layer] = found if before is None else before.merged(found)
            self._rounds = index + 1


def no_keys(like: torch.Tensor) -> torch.Tensor:
    """float64 [d_ff, 0], on the device of the keys ``like`` [d_ff, n]."""
    return like.new_empty(len(like), 0, dtype=torch.float64)


class _Layer:
    """The keys of one layer while they are few, then their P."""

    def __init__(self, d_ff: int) -> None:
        self.d_ff = d_ff
        self.count = 0  # keys
        self.keys: list[torch.Tensor] = []  # by round [d_ff, n], while they are few
        self.total: torch.Tensor | None = None  # P float64 [d_ff, d_ff], of the first rounds
        self.summed = 0  # number of rounds in P
        self.solved: list[torch.Tensor] = []  # by round [d_ff, n], with `factor`
        self.factor: torch.Tensor | None = None

    @property
    def are_few(self) -> bool:
        return 2 * self.count <= self.d_ff

    def add(self, keys: torch.Tensor) -> None:
        self.keys.append(keys)
        self.count += keys.shape[1]
        if not self.are_few:
            self._sum()
            self.keys, self.summed = [], 0
            self.solved, self.factor = [], None

    def few(self, device: torch.device) -> torch.Tensor | None:
        return torch.cat(self.keys, dim=1).to(device).double() if self.are_few else None

    def solve(
        self, factor: torch.Tensor, solve: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        if self.factor is not factor:
            self.factor, self.solved = factor, []
        for keys in self.keys[len(self.solved) :]:
            self.solved.append(solve(keys.to(factor.device).double()))
        return torch.cat(self.solved, dim=1)

    def matrix(self, neurons: torch.Tensor) -> torch.Tensor:
        rows = neurons.cpu()
        if self.are_few and self.d_ff > _SMALL:
            chosen = torch.cat(self.keys, dim=1)[rows].to(neurons.device).double()
            return chosen @ chosen.T
        total = self._sum()
        whole = len(rows) == self.d_ff
        return (total if whole else total[rows][:, rows]).to(neurons.device)

    def _sum(self) -> torch.Tensor:
        """P of all rounds so far."""
        if self.total is None:
            self.total = torch.zeros(self.d_ff, self.d_ff, dtype=torch.float64)
        for keys in self.keys[self.summed :]:
            new = keys.double()
            self.total.addmm_(new, new.T)
        self.summed = len(self.keys)
        return self.total
