"""A trace kept as a table: how each token of each target was learnt, and how unevenly.

The spread, over the tokens of a target, of their losses at the step where the edit stopped is what
arXiv 2502.00602, section 3, calls heterogeneous token overfitting: tokens known long ago were
pushed on while the last one was still being learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Spread(NamedTuple):
    """How far apart the losses of a target's tokens are."""

    range: float
    """Largest less smallest."""
    std: float
    """Standard deviation over the tokens (of all, not of a sample)."""

    @classmethod
    def of(cls, losses: Sequence[float]) -> Spread:
        """The spread of the losses of one target."""
        return cls(max(losses) - min(losses), pstdev(losses))


@dataclass(frozen=True)
class TokenCourse:
    """One target token over the steps; means over the contexts that came before it."""

    place: int
    """In its target, from 0."""
    token: int
    """Its id."""
    losses: tuple[float, ...]
    """-log p(token) per step, whatever loss was trained."""
    probabilities: tuple[float, ...]
    """p(token) per step."""


class TokenTable:
    """A :class:`nse_plugin.objectives.trace.TokenTrace` that keeps everything, for one round."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], list[tuple[int, float, float]]] = {}

    @torch.no_grad()
    def record(
        self, step: int, owner: Tensor, place: Tensor, logits: Tensor, targets: Tensor
    ) -> None:
        """One evaluation; see :class:`nse_plugin.objectives.trace.TokenTrace`."""
        targets = targets.to(logits.device)
        log_p = F.log_softmax(logits.float(), dim=1)[torch.arange(len(targets)), targets].cpu()
        names = torch.stack([owner.cpu(), place.cpu()], dim=1)
        tokens, index = names.unique(dim=0, return_inverse=True)
        count = torch.bincount(index).float()
        loss = torch.zeros(len(tokens)).index_add(0, index, -log_p) / count
        probability = torch.zeros(len(tokens)).index_add(0, index, log_p.exp()) / count
        ids = torch.zeros(len(tokens), dtype=torch.long).index_put((index,), targets.cpu())
        columns = zip(tokens.tolist(), ids.tolist(), loss.tolist(), probability.tolist())
        for (request, at), *values in columns:
            self._rows.setdefault((request, at), []).append(tuple(values))

    def requests(self) -> list[int]:
        """Requests that were told of, as their index in the round."""
        return sorted({request for request, _ in self._rows})

    def courses(self, request: int) -> list[TokenCourse]:
        """The tokens of a request's target, in order."""
        found = []
        for (owner, place), rows in sorted(self._rows.items()):
            if owner == request:
                ids, losses, probabilities = zip(*rows)
                found.append(TokenCourse(place, ids[0], losses, probabilities))
        return found

    def at_stop(self, request: int) -> list[float]:
        """Losses of a request's tokens at the step where it stopped."""
        return [course.losses[-1] for course in self.courses(request)]

    def spread(self, request: int) -> Spread:
        """How unevenly a request's tokens were learnt when it stopped."""
        return Spread.of(self.at_stop(request))

    def mean_spread(self) -> Spread | None:
        """The mean over requests whose target has more than one token; None if none has."""
        losses = [self.at_stop(request) for request in self.requests()]
        spreads = [Spread.of(tokens) for tokens in losses if len(tokens) > 1]
        if not spreads:
            return None
        return Spread(fmean(s.range for s in spreads), fmean(s.std for s in spreads))
