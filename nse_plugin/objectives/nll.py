"""Negative log likelihood: the plain objective of locate-then-edit methods."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nse_plugin.objectives import TokenLoss


class NLL:
    """-log p(target) per token."""

    needs_reference = False

    def __call__(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> TokenLoss:
        """Logits [tokens, vocab] and targets [tokens] give [tokens]; training and stop are one."""
        loss = F.cross_entropy(logits.float(), targets, reduction="none")
        return TokenLoss(loss, loss)


nll = NLL()
"""The one instance; it has no settings."""
