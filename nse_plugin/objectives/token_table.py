"""A trace as a table: how each token of each target was learnt, and how unevenly.

The spread of the losses over a target's tokens at the last step is what arXiv 2502.00602, section
3, calls heterogeneous token overfitting: tokens that were known early are trained on while the last
one is still being learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nse_plugin.objectives.overtone import Overtone


class Spread(NamedTuple):
    """How far apart the losses of a target's tokens are."""

    range: float
    """Largest minus smallest."""
    std: float
    """Standard deviation over the tokens (of all, not of a sample)."""

    @classmethod
    def of(cls, losses: Sequence[float]) -> Spread:
        """The spread of the losses of one target."""
        return cls(max(losses) - min(losses), pstdev(losses))


class TokenStep(NamedTuple):
    """One target token at one step; means over the contexts."""

    loss: float
    """-log p(token), whatever the training loss."""
    probability: float
    """p(token)."""
    entropy: float
    """Entropy of the model's next-token distribution, in nats."""
    smoothed: float
    """Share of contexts in which OVERTONE's filter keeps another token than the target."""
    disagrees: float
    """Share in which the mixture prefers another token, so the target is one-hot."""
    settled: float
    """Share in which OVERTONE's loss is at most epsilon."""


@dataclass(frozen=True)
class TokenCourse:
    """One target token over the steps."""

    place: int
    """Index in its target."""
    token: int
    """Its id."""
    steps: tuple[TokenStep, ...]
    """One for each evaluation of the loss."""

    @property
    def losses(self) -> list[float]:
        """-log p(token) per step."""
        return [step.loss for step in self.steps]


class TokenTable:
    """A :class:`nse_plugin.objectives.TokenTrace` that keeps everything of one round.

    Args:
        overtone: the objective whose decisions are recorded; without OVERTONE in the edit, they
            are what it would decide.
    """

    def __init__(self, overtone: Overtone | None = None) -> None:
        self._overtone = overtone or Overtone()
        self._rows: dict[tuple[int, int], list[TokenStep]] = {}
        self._ids: dict[tuple[int, int], int] = {}

    @torch.no_grad()
    def record(self, owner: Tensor, place: Tensor, logits: Tensor, targets: Tensor) -> None:
        """One evaluation; see :class:`nse_plugin.objectives.TokenTrace`."""
        targets = targets.to(logits.device)
        log_p = F.log_softmax(logits.float(), dim=1)
        at_target = log_p[torch.arange(len(targets)), targets]
        entropy = torch.special.entr(log_p.exp()).sum(dim=1)
        decided = (column.float() for column in self._overtone.decisions(logits, targets))
        columns = torch.stack([-at_target, at_target.exp(), entropy, *decided], dim=1).cpu()
        names = torch.stack([owner.cpu(), place.cpu()], dim=1)
        tokens, index = names.unique(dim=0, return_inverse=True)
        sums = torch.zeros(len(tokens), columns.shape[1]).index_add(0, index, columns)
        means = sums / torch.bincount(index)[:, None]
        ids = torch.zeros(len(tokens), dtype=torch.long).index_put((index,), targets.cpu())
        for (request, at), token, values in zip(tokens.tolist(), ids.tolist(), means.tolist()):
            self._ids[request, at] = token
            self._rows.setdefault((request, at), []).append(TokenStep(*values))

    def courses(self, request: int) -> list[TokenCourse]:
        """The tokens of a request's target, in order."""
        return [
            TokenCourse(place, self._ids[owner, place], tuple(steps))
            for (owner, place), steps in sorted(self._rows.items())
            if owner == request
        ]
