"""Forward passes whose head runs only where target tokens are predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse_plugin.model.hooks import head_at
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import EncodedPrompt, TokenBatch


@dataclass(frozen=True)
class TargetTokens:
    """The k target tokens of n requests."""

    n: int
    owner: torch.Tensor
    """[k], request of each token."""
    place: torch.Tensor
    """[k], its index in its target."""
    target: torch.Tensor
    """[k], its id."""
    weight: torch.Tensor
    """[k], 1 / (tokens of the target * texts with the target)."""

    def means(self, per_token: torch.Tensor) -> torch.Tensor:
        """Means over each request's tokens [n], of values per token [k]."""
        zeros = torch.zeros(self.n, device=self.weight.device)
        return zeros.index_add(0, self.owner, per_token.to(zeros.device) * self.weight)

    def all_first(self, logits: torch.Tensor) -> torch.Tensor:
        """[n] bool: whether all target tokens are the first choice of logits [k, vocab]."""
        wrong = logits.argmax(dim=1) != self.target.to(logits.device)
        return self.means(wrong.float()) == 0


@dataclass(frozen=True)
class Targets(TargetTokens):
    """Texts of some requests, one each, and the positions that predict their target tokens."""

    position: torch.Tensor
    """[k], the position in the row whose logits predict the token."""
    batch: TokenBatch
    """[n, width], without tokens that are only predicted."""

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
        tokens = [
            (row, j, token, 1.0 / prompt.n_target, prompt.n_prompt - 1 + (0 if from_prompt else j))
            for row, prompt in enumerate(prompts)
            for j, token in enumerate(prompt.target_ids)
        ]
        ids = [prompt.ids[: prompt.n_prompt if from_prompt else -1] for prompt in prompts]
        batch = TokenBatch.of(ids, device)
        columns = (torch.tensor(column, device=device) for column in zip(*tokens))
        owner, place, target, weight, position = columns
        return cls(len(prompts), owner, place, target, weight, position, batch)

    def logits(self, layout: DecoderLayout, forward: Callable[..., Any] | None = None) -> Any:
        """Logits that predict the target tokens: float32 [k, vocab].

        Args:
            forward: called with the model's keyword arguments; default the model.
        """
        with head_at(layout.model, self.owner, self.position):
            output = (forward or layout.model)(**self.batch.model_inputs(), use_cache=False)
        return output.logits[0].float()
