"""Negative log likelihood: the plain objective of locate-then-edit methods."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) per token: logits [tokens, vocab] and targets [tokens] give [tokens]."""
    return F.cross_entropy(logits, targets, reduction="none")
