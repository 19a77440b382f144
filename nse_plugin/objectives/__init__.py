"""Losses over target tokens.

An objective takes the logits that predict target tokens and gives one loss per token; what uses
it takes means over tokens and contexts.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenObjective(Protocol):
    """The signature that all objectives share."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss per target token.

        Args:
            logits: [tokens, vocab], float32.
            targets: [tokens], ids.

        Returns:
            [tokens].
        """
        ...
