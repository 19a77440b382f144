"""Losses over target tokens: their protocol, cross entropy, and the protocol of traces.

An objective maps the logits that predict target tokens to one loss per token; its callers take
means over tokens and contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F


class TokenLoss(NamedTuple):
    """One number per target token, twice; both [tokens] float32."""

    train: Tensor
    """The training loss."""
    stop: Tensor
    """The loss for the editor's rule for stopping, which is also the reported loss."""


class TokenObjective(Protocol):
    """The signature that all objectives share."""

    @property
    def needs_reference(self) -> bool:
        """Whether a call needs the logits before the edit's first step."""

    def __call__(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> TokenLoss:
        """Losses per target token.

        Args:
            logits: [tokens, vocab], of the current model.
            targets: [tokens], ids.
            reference: [tokens, vocab], logits before the edit's first step, or None.
        """
        ...


@dataclass(frozen=True)
class NLL:
    """-log p(target) per token: the objective of locate-then-edit methods."""

    needs_reference: ClassVar[bool] = False

    def __call__(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> TokenLoss:
        """Losses [tokens], the same for training and stopping."""
        loss = F.cross_entropy(logits.float(), targets, reduction="none")
        return TokenLoss(loss, loss)


nll = NLL()
"""The one instance; it has no settings."""


class TokenTrace(Protocol):
    """Records every evaluation of a method's loss."""

    def record(self, owner: Tensor, place: Tensor, logits: Tensor, targets: Tensor) -> None:
        """One evaluation.

        Args:
            owner: [tokens], index in the round of each target token's request.
            place: [tokens], index of the token in its target.
            logits: [tokens, vocab], which predict it.
            targets: [tokens], its id.

        A token may occur several times in one evaluation (after several contexts): take the mean.
        """
        ...
