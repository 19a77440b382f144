"""Norms of changes that are kept as factors, without forming the matrices.

The norm of L R follows from the Gram matrices of its factors: ||L R||^2 = sum((L^T L) * (R R^T)).
This takes n^2 (d_model + d_ff) operations and n^2 numbers instead of a matrix [d_model, d_ff].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Factors(NamedTuple):
    """A change of one layer: left x right in the columns of some neurons."""

    neurons: torch.Tensor
    """[|I|], rising."""
    left: torch.Tensor
    """[d_model, n] float32."""
    right: torch.Tensor
    """[n, |I|] float32."""


def column_norms(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[d_ff] float64, norms of the columns of left [d_model, n] x right [n, d_ff]."""
    left, right = left.to(right.device).double(), right.double()
    return (right * (left.T @ left @ right)).sum(dim=0).clamp(min=0).sqrt()


class ChangeSum:
    """The norms of a sum of writes to one layer, after each of them.

    ||S + C||^2 = ||S||^2 + 2 <S, C> + ||C||^2, where <L R, L' R'> = sum((L^T L') * (R R'^T)).  From
    d_model factors on, S itself is smaller than its factors and is kept instead.
    """

    def __init__(self, d_ff: int) -> None:
        self._d_ff = d_ff
        self._left: torch.Tensor | None = torch.zeros(0, 0)  # [d_model, N]; None: the identity
        self._right = torch.zeros(0, d_ff)  # [N, d_ff]
        self._square = 0.0

    def add(self, writes: Sequence[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]) -> None:
        """Add writes to the sum.

        Args:
            writes: neurons [|I|], left and right of each; without left, right is the change itself.
        """
        thin = [Factors(each, left, right) for each, left, right in writes if left is not None]
        if thin:
            self._add(*stacked(thin, self._d_ff))
        for neurons, left, change in writes:
            if left is None:
                self._add_whole(neurons, change)

    def _add_whole(self, neurons: torch.Tensor, change: torch.Tensor) -> None:
        if self._left is not None:
            some = len(self._right) > 0
            self._right = self._left @ self._right if some else torch.zeros(len(change), self._d_ff)
            self._left = None
        new = change.double()
        before = self._right[:, neurons].double()
        self._square += 2 * float((before * new).sum()) + float(new.square().sum())
        self._right[:, neurons] += change

    def _add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self._square += 2 * self._product(left, right) + _product(left, right, left, right)
        if self._left is None:
            self._right += left @ right
            return
        left = torch.cat([self._left, left], dim=1) if len(self._right) else left
        right = torch.cat([self._right, right])
        many = left.shape[1] >= left.shape[0]
        self._left, self._right = (None, left @ right) if many else (left, right)

    def norm(self) -> float:
        """The Frobenius norm of the sum so far."""
        return max(self._square, 0.0) ** 0.5

    def column_norms(self) -> torch.Tensor:
        """[d_ff] float64, norms of the columns of the sum so far; 0 where no write was."""
        right = self._right.double()
        if self._left is None:
            return right.norm(dim=0)
        return column_norms(self._left, right)

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> float:
        if not len(self._right):
            return 0.0
        if self._left is None:  # S R^T [d_model, n]
            return float((left.double() * (self._right.double() @ right.double().T)).sum())
        return _product(self._left, self._right, left, right)


def stacked(writes: Sequence[Factors], d_ff: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of some writes concatenated: left [d_model, N], right [N, d_ff], float32."""
    left = torch.cat([part for _, part, _ in writes], dim=1)
    right = torch.zeros(left.shape[1], d_ff)
    first = 0
    for neurons, _, part in writes:
        right[first : first + len(part), neurons] = part
        first += len(part)
    return left, right


def _product(
    left: torch.Tensor, right: torch.Tensor, other_left: torch.Tensor, other_right: torch.Tensor
) -> float:
    """<L R, L' R'>, the sum over all entries of the product of two matrices."""
    lefts = left.double().T @ other_left.double()  # [N, n]
    return float((lefts * (right.double() @ other_right.double().T)).sum())
