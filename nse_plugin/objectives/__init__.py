"""Losses over target tokens: their protocol, the plain one, and how they are watched.

An objective takes the logits that predict target tokens and gives one loss per token; what uses
it takes means over tokens and contexts.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F


class TokenLoss(NamedTuple):
    """One number per target token, twice; both [tokens] float32."""

    train: Tensor
    """What gradients follow."""
    stop: Tensor
    """What an editor's own rule for stopping looks at, and what is reported as the loss."""


class TokenObjective(Protocol):
    """The signature that all objectives share."""

    @property
    def needs_reference(self) -> bool:
        """Whether a call needs the logits of the model as it was before the edit's first step."""

    def __call__(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> TokenLoss:
        """Losses per target token.

        Args:
            logits: [tokens, vocab], of the model as it is now.
            targets: [tokens], ids.
            reference: [tokens, vocab], logits before the edit's first step, or None.
        """
        ...


class NLL:
    """-log p(target) per token: the objective of locate-then-edit methods."""

    needs_reference = False

    def __call__(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> TokenLoss:
        """Logits [tokens, vocab] and targets [tokens] give [tokens]; training and stop are one."""
        loss = F.cross_entropy(logits.float(), targets, reduction="none")
        return TokenLoss(loss, loss)


nll = NLL()
"""The one instance; it has no settings."""


class TokenTrace(Protocol):
    """What methods tell of every evaluation of their loss, if somebody asks."""

    def record(
        self, step: int, owner: Tensor, place: Tensor, logits: Tensor, targets: Tensor
    ) -> None:
        """One evaluation.

        Args:
            step: from 0, counted per round.
            owner: [tokens], request of each target token, as its index in the round.
            place: [tokens], place of the token in its target, from 0.
            logits: [tokens, vocab], what predicts it.
            targets: [tokens], its id.

        A token may come several times in one step (after several contexts): take the mean.
        """
        ...
