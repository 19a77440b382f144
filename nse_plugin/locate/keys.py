"""Keys and current activations at the subject's last token.

The key k_l of a request is the input of the down-projection of block l at the subject's last token:
one number per neuron.  It is averaged over the bare prompt, with weight 1/2, and the prompt behind
each context text, 1/2 together (arXiv 2410.04045, section 3; the weights are those of its code).

Nothing right of the subject's last token can change either quantity, so rows end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nse_plugin.model.arch import DecoderLayout
from nse_plugin.model.hooks import quiet, read_rows
from nse_plugin.model.prompts import TokenBatch, encode_request, micro_batches
from nse_plugin.requests import EditRequest


@dataclass(frozen=True)
class Lookups:
    """The rows of a round at which keys and activations are read."""

    layout: DecoderLayout
    bare: tuple[tuple[int, ...], ...]
    """Per request: the bare prompt's tokens up to the subject's last."""
    in_context: tuple[tuple[tuple[int, ...], ...], ...]
    """Per request and context: the same behind a context text."""
    token_budget: int

    @classmethod
    def of(
        cls,
        layout: DecoderLayout,
        tokenizer: object,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        token_budget: int,
    ) -> Lookups:
        """Tokenise the prompts of a round, bare and behind each context."""

        def row(request: EditRequest, context: str) -> tuple[int, ...]:
            encoded = encode_request(
                tokenizer, request, context, max_positions=layout.max_positions
            )
            return encoded.ids[: encoded.subject_last + 1]

        return cls(
            layout,
            tuple(row(request, "") for request in requests),
            tuple(tuple(row(request, text) for text in contexts) for request in requests),
            token_budget,
        )

    def __len__(self) -> int:
        return len(self.bare)

    def select(self, requests: torch.Tensor) -> Lookups:
        """The same for some of the requests."""
        chosen = requests.tolist()
        return Lookups(
            self.layout,
            tuple(self.bare[i] for i in chosen),
            tuple(self.in_context[i] for i in chosen),
            self.token_budget,
        )

    def keys(self, layer: int) -> torch.Tensor:
        """Keys with the weights as they are now: float32 [d_ff, n]."""
        down = self.layout.down(layer)
        bare = self._read(self.bare, inputs_of=down)
        if not self.in_context or not self.in_context[0]:
            return bare.T
        rows = [row for group in self.in_context for row in group]
        contexts = self._read(rows, inputs_of=down).view(len(self), -1, bare.shape[1])
        return (0.5 * bare + 0.5 * contexts.mean(dim=1)).T

    def activations(self, layer: int) -> torch.Tensor:
        """h, the output of a block on the bare prompts as it is now: float32 [n, d_model]."""
        return self._read(self.bare, outputs_of=self.layout.blocks[layer])

    def down_outputs(self, layer: int) -> torch.Tensor:
        """What the down-projection gives on the bare prompts now: float32 [n, d_model]."""
        return self._read(self.bare, outputs_of=self.layout.down(layer))

    def _read(
        self,
        rows: Sequence[Sequence[int]],
        *,
        inputs_of: nn.Module | None = None,
        outputs_of: nn.Module | None = None,
    ) -> torch.Tensor:
        """[rows, features] of one module's input or output at the last token of each row."""
        layout = self.layout
        inputs = {} if inputs_of is None else {"read": inputs_of}
        outputs = {} if outputs_of is None else {"read": outputs_of}
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        parts = []
        with quiet(layout.model):
            for run in micro_batches([len(rows[i]) for i in order], self.token_budget):
                batch = TokenBatch.of([rows[i] for i in order[run]], layout.input_device)
                found = read_rows(
                    layout, batch, batch.lengths - 1, inputs_of=inputs, outputs_of=outputs
                )
                parts.append(found["read"].float())
        return torch.cat(parts)[torch.tensor(order).argsort().to(parts[0].device)]
