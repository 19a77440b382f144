"""Watching an edit token by token, while it is optimised."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
