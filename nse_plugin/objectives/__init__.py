"""Losses over target tokens.

An objective takes the logits that predict target tokens and gives one loss per token; what uses
it takes means over tokens and contexts.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


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
