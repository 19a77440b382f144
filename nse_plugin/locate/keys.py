"""Keys and current activations at the subject's last token.

The key k_l of a request is the input of the down-projection of block l at the subject's last token:
one number per neuron.  It is averaged over the bare prompt and the prompt after each context
text.  The bare prompt has half of the weight (arXiv 2410.04045 and 2210.07229, in their code), or
as much as each of the others (ROME, arXiv 2202.05262, equation 3).

Nothing right of the subject's last token can change either quantity, so rows end there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nse_plugin.locate.rows import Rows
from nse_plugin.model.hooks import quiet, read_rows
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch, micro_batches


@dataclass(frozen=True)
class Lookups:
    """The rows of a round at which keys and activations are read."""

    layout: DecoderLayout
    bare: tuple[tuple[int, ...], ...]
    """Per request: the bare prompt's tokens up to the subject's last."""
    in_context: tuple[tuple[tuple[int, ...], ...], ...]
    """Per request and context: the same after a context text."""
    token_budget: int
    bare_weight: float = 0.5
    """Weight of the bare prompt's key in the mean, where there are contexts."""

    @classmethod
    def of(
        cls,
        layout: DecoderLayout,
        rows: Sequence[Rows],
        token_budget: int,
    ) -> Lookups:
        """The places to read in the rows of a round, see :func:`encode_round`."""
        read = [
            tuple(prompt.ids[: prompt.subject_last + 1] for prompt in one.rewriting) for one in rows
        ]
        bare = tuple(prompts[0] for prompts in read)
        return cls(layout, bare, tuple(prompts[1:] for prompts in read), token_budget)

    def __len__(self) -> int:
        return len(self.bare)

    def select(self, requests: torch.Tensor) -> Lookups:
        """The same for some of the requests."""
        chosen = requests.tolist()
        return replace(
            self,
            bare=tuple(self.bare[i] for i in chosen),
            in_context=tuple(self.in_context[i] for i in chosen),
        )

    def evenly(self) -> Lookups:
        """The same, with the bare prompt weighing as much as the prompt after each context."""
        return replace(self, bare_weight=1 / (1 + len(self.in_context[0])))

    def bare_only(self) -> Lookups:
        """The same without contexts."""
        return replace(self, in_context=tuple(() for _ in self.bare))

    def keys(self, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Keys with the weights as they are now, by layer: float32 [d_ff, n]."""
        return self.read(layers)[0]

    def activations(self, layer: int) -> torch.Tensor:
        """h, the output of a block on the bare prompts as it is now: float32 [n, d_model]."""
        return self._pass(self.bare, {}, {"read": self.layout.blocks[layer]})["read"]

    def read(
        self, key_layers: Sequence[int], outputs_of: Mapping[str, nn.Module] | None = None
    ) -> tuple[dict[int, torch.Tensor], dict[str, torch.Tensor]]:
        """Keys, and outputs of some modules on the bare prompts, in as few passes as possible.

        Returns:
            Keys by layer, float32 [d_ff, n], and outputs by name, float32 [n, features].
        """
        downs = {layer: self.layout.down(layer) for layer in key_layers}
        bare = self._pass(self.bare, downs, outputs_of or {})
        keys = {layer: bare.pop(layer) for layer in key_layers}  # [n, d_ff]
        if self.in_context and self.in_context[0]:
            rows = [row for group in self.in_context for row in group]
            for layer, found in self._pass(rows, downs, {}).items():
                contexts = found.view(len(self), -1, found.shape[1])
                weight = self.bare_weight
                keys[layer] = weight * keys[layer] + (1 - weight) * contexts.mean(dim=1)
        return {layer: key.T for layer, key in keys.items()}, bare

    def _pass(
        self,
        rows: Sequence[Sequence[int]],
        inputs_of: Mapping[Any, nn.Module],
        outputs_of: Mapping[Any, nn.Module],
    ) -> dict[Any, torch.Tensor]:
        """By name: [rows, features], read at the last token of each row."""
        layout = self.layout
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        parts = []
        with quiet(layout.model):
            for run in micro_batches([len(rows[i]) for i in order], self.token_budget):
                batch = TokenBatch.of([rows[i] for i in order[run]], layout.input_device)
                at = batch.lengths - 1
                parts.append(
                    read_rows(layout, batch, at, inputs_of=inputs_of, outputs_of=outputs_of)
                )
        back = torch.tensor(order).argsort()
        return {
            name: torch.cat([part[name].float() for part in parts])[back.to(first.device)]
            for name, first in parts[0].items()
        }
