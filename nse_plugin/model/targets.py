"""Logits that predict target tokens, and nothing else of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse_plugin.model.hooks import head_at
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import EncodedPrompt, TokenBatch


@dataclass(frozen=True)
class Targets:
    """Texts of some requests, and where their target tokens are predicted.

    Rows and requests are the same here.  Sizes: n requests, k target tokens in all of them.
    """

    batch: TokenBatch
    """[n, width], without the tokens that only have to be predicted."""
    owner: torch.Tensor
    """[k], row of each target token."""
    place: torch.Tensor
    """[k], its place in its target, from 0."""
    position: torch.Tensor
    """[k], the position in the row whose logits predict it."""
    target: torch.Tensor
    """[k], its id."""
    weight: torch.Tensor
    """[k], 1 / (tokens of its target)."""

    @classmethod
    def of(
        cls,
        prompts: Sequence[EncodedPrompt],
        device: torch.device | str,
        *,
        from_prompt: bool = False,
    ) -> Targets:
        """Lay out prompts with their targets.

        Args:
            from_prompt: predict every token of a target from the prompt's last token, as FT-L
                does; otherwise each from the token before it.
        """
        columns: list[tuple[int, int, int, int, float]] = []
        for row, prompt in enumerate(prompts):
            for place, token in enumerate(prompt.target_ids):
                position = prompt.n_prompt - 1 + (0 if from_prompt else place)
                columns.append((row, place, position, token, 1.0 / prompt.n_target))
        ids = [prompt.ids[: prompt.n_prompt if from_prompt else -1] for prompt in prompts]
        batch = TokenBatch.of(ids, device)
        return cls(batch, *(torch.tensor(column, device=device) for column in zip(*columns)))

    def __len__(self) -> int:
        return len(self.batch.lengths)

    def logits(self, layout: DecoderLayout, forward: Callable[..., Any] | None = None) -> Any:
        """What predicts the target tokens: float32 [k, vocab].

        The model's own head runs, at these places only.

        Args:
            forward: called with the model's keyword arguments; default the model.
        """
        with head_at(layout.model, self.owner, self.position):
            output = (forward or layout.model)(**self.batch.model_inputs(), use_cache=False)
        return output.logits[0].float()

    def means(self, per_token: torch.Tensor) -> torch.Tensor:
        """[n], means over each target's tokens of something [k]."""
        zeros = torch.zeros(len(self), device=per_token.device)
        owner, weight = self.owner.to(per_token.device), self.weight.to(per_token.device)
        return zeros.index_add(0, owner, per_token * weight)

    def all_first(self, logits: torch.Tensor) -> torch.Tensor:
        """[n] bool: whether every token of the target is the first choice of logits [k, vocab]."""
        wrong = (logits.argmax(dim=1) != self.target.to(logits.device)).float()
        return self.means(wrong) == 0
