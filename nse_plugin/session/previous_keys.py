"""Keys, P and moments of features of all earlier rounds, updated incrementally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from nse_plugin.session.ledger import Ledger
from nse_plugin.session.moments import Moments

_SMALL = 4096
"""Up to this d_ff, P is kept once it is needed; above, it is formed from few keys each time."""


class PreviousKeys:
    """Keys, P (the sum of their k k^T) and moments by layer, kept up to date with a ledger.

    While the keys are few (at most half as many as neurons) the keys themselves are kept, since
    solves with all neurons need nothing else; later, P replaces them.  Each round is added once.
    Rounds are added one by one and in order, so a resumed session has the same bits.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rounds = 0  # number of the ledger's rounds that have been added
        self._layers: dict[int, _Layer] = {}
        self._moments: dict[int, Moments] = {}
        self._left_out: Mapping[int, Sequence[int]] = {}  # columns of keys, by number of a round
        self._read: list[dict[int, torch.Tensor]] | None = None  # those keys, once they are needed

    @contextmanager
    def without(self, columns: Mapping[int, Sequence[int]]) -> Iterator[None]:
        """Inside, these columns of the keys of rounds are left out, by the round's number."""
        self._left_out = columns
        try:
            yield
        finally:
            self._left_out, self._read = {}, None

    def drop_from(self, length: int) -> None:
        """Forget all rounds if any beyond the first ``length`` has been added."""
        if self._rounds > length:
            self.forget()

    def forget(self) -> None:
        """Forget all rounds; they are added anew from the ledger."""
        self._rounds, self._layers, self._moments = 0, {}, {}

    def matrix(self, layer: int, neurons: torch.Tensor) -> torch.Tensor | None:
        """P[I, I] in float64 on the device of ``neurons`` [|I|]; None if there are no keys."""
        self.catch_up()
        kept = self._layers.get(layer)
        if kept is None:
            return None
        P = kept.matrix(neurons)
        for keys in self._keys_left_out():
            if layer in keys:
                chosen = keys[layer][neurons.cpu()].to(neurons.device).double()
                P = P - chosen @ chosen.T
        return P

    def few(self, layer: int, like: torch.Tensor) -> torch.Tensor | None:
        """All keys E [d_ff, m] in float64 on the device of the keys ``like`` [d_ff, n].

        None if they are not few; m is 0 if there are none.
        """
        self.catch_up()
        kept = self._layers.get(layer)
        if kept is None:
            return no_keys(like)
        return kept.few(like.device, self._left_out)

    def solved(
        self, layer: int, factor: torch.Tensor, solve: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """``solve(E)`` [d_ff, m] for the few keys (at least one); earlier results are kept.

        Args:
            factor: what ``solve`` depends on; another one discards the kept results.
        """
        return self._layers[layer].solve(factor, solve, self._left_out)

    def moments(self, layer: int) -> Moments | None:
        """Moments of the editing features of all rounds; None if no round has any."""
        self.catch_up()
        return self._moments.get(layer)

    def _keys_left_out(self) -> list[dict[int, torch.Tensor]]:
        """Of each round with keys that are left out: these keys by layer [d_ff, n]."""
        if self._read is None:
            numbers = self._ledger.numbers()
            rounds = [(self._ledger[numbers.index(n)], some) for n, some in self._left_out.items()]
            self._read = [  # FT has no keys
                {layer: keys[:, some] for layer, keys in each.keys.items() if keys.shape[1]}
                for each, some in rounds
            ]
        return self._read

    def catch_up(self) -> None:
        """Add the rounds that are new in the ledger."""
        for index in range(self._rounds, len(self._ledger)):
            record = self._ledger[index]
            for layer, keys in record.keys.items():
                if keys.shape[1]:
                    kept = self._layers.setdefault(layer, _Layer(keys.shape[0]))
                    kept.add(record.number, keys)
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
        self.numbers: list[int] = []  # of the rounds, while the keys are few
        self.keys: list[torch.Tensor] = []  # theirs [d_ff, n]
        self.total: torch.Tensor | None = None  # P float64 [d_ff, d_ff], of the first rounds
        self.summed = 0  # number of rounds in P
        self.solved: list[torch.Tensor] = []  # by round [d_ff, n], with `factor`
        self.factor: torch.Tensor | None = None

    @property
    def are_few(self) -> bool:
        return 2 * self.count <= self.d_ff

    def add(self, number: int, keys: torch.Tensor) -> None:
        self.numbers.append(number)
        self.keys.append(keys)
        self.count += keys.shape[1]
        if not self.are_few:
            self._sum()
            self.numbers, self.keys, self.summed = [], [], 0
            self.solved, self.factor = [], None

    def few(
        self, device: torch.device, left_out: Mapping[int, Sequence[int]]
    ) -> torch.Tensor | None:
        return self._joined(self.keys, left_out).to(device).double() if self.are_few else None

    def solve(
        self,
        factor: torch.Tensor,
        solve: Callable[[torch.Tensor], torch.Tensor],
        left_out: Mapping[int, Sequence[int]],
    ) -> torch.Tensor:
        if self.factor is not factor:
            self.factor, self.solved = factor, []
        for keys in self.keys[len(self.solved) :]:
            self.solved.append(solve(keys.to(factor.device).double()))
        return self._joined(self.solved, left_out)

    def _joined(
        self, parts: Sequence[torch.Tensor], left_out: Mapping[int, Sequence[int]]
    ) -> torch.Tensor:
        """Columns [d_ff, n] of each round, without those that are left out."""
        some = []
        for number, part in zip(self.numbers, parts):
            kept = [i for i in range(part.shape[1]) if i not in left_out.get(number, ())]
            some.append(part if len(kept) == part.shape[1] else part[:, kept])
        return torch.cat(some, dim=1)

    def matrix(self, neurons: torch.Tensor) -> torch.Tensor:
        rows = neurons.cpu()
        if self.are_few and self.d_ff > _SMALL:
            chosen = torch.cat(self.keys, dim=1)[rows].to(neurons.device).double()
            return chosen @ chosen.T
        total = self._sum()
        whole = len(rows) == self.d_ff
        return (total if whole else total[rows[:, None], rows]).to(neurons.device)

    def _sum(self) -> torch.Tensor:
        """P of all rounds so far."""
        if self.total is None:
            self.total = torch.zeros(self.d_ff, self.d_ff, dtype=torch.float64)
        for keys in self.keys[self.summed :]:
            new = keys.double()
            self.total.addmm_(new, new.T)
        self.summed = len(self.keys)
        return self.total
