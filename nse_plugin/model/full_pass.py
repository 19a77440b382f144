"""Continue rows of tokens by whole forward passes in which one layer's output is replaced.

This gives the same as :mod:`nse_plugin.model.replay`, more slowly, for any decoder whose blocks
return hidden states.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from nse_plugin.model.hooks import StopPass, take_positions
from nse_plugin.model.layout import DecoderLayout, first_tensor
from nse_plugin.model.prompts import TokenBatch


@dataclass(frozen=True)
class FullPass:
    """Continues by whole forward passes in which the layer's output is replaced."""

    hidden: torch.Tensor
    """[rows, tail, d_model], output of the layer from each row's start on; padded on the right."""
    lengths: torch.Tensor
    """[rows], tokens of each row's tail."""
    _layout: DecoderLayout
    _batch: TokenBatch
    _starts: torch.Tensor
    _layer: int
    _last: int

    @classmethod
    @torch.no_grad()
    def capture(
        cls,
        layout: DecoderLayout,
        batch: TokenBatch,
        starts: torch.Tensor,
        *,
        layer: int,
        last: int,
    ) -> FullPass:
        """Run the decoder up to the layer; see :func:`nse_plugin.model.continuation.capture`."""
        lengths = batch.lengths - starts
        empty = cls(torch.empty(0), lengths, layout, batch, starts, layer, layer)
        hidden = empty._forward(None)
        return replace(empty, hidden=hidden, _last=last)

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Blocks layer+1..last on hidden states [rows, tail, d_model]; differentiable."""
        return hidden if self._last == self._layer else self._forward(hidden)

    def select(self, rows: torch.Tensor) -> FullPass:
        """The same for some rows, cut to their width; rows: [kept], indices."""
        lengths = self.lengths[rows.to(self.lengths.device)]
        return replace(
            self,
            hidden=self.hidden[rows.to(self.hidden.device)][:, : int(lengths.max())],
            lengths=lengths,
            _batch=self._batch.select(rows),
            _starts=self._starts[rows.to(self._starts.device)],
        )

    def up_to(self, n_blocks: int) -> FullPass:
        """The same through the first blocks only."""
        return replace(self, _last=self._layer + n_blocks)

    def _forward(self, hidden: torch.Tensor | None) -> torch.Tensor:
        """Tails [rows, tail, d_model] of the last block's output."""
        steps = torch.arange(int(self.lengths.max()), device=self._starts.device)
        index = (self._starts[:, None] + steps).clamp(max=self._batch.input_ids.shape[1] - 1)
        real = steps < self.lengths[:, None]  # [rows, tail]
        blocks = self._layout.blocks
        found: list[torch.Tensor] = []

        def put_in(_module: Any, _args: Any, output: Any) -> Any:
            whole = first_tensor(output)
            row, step = real.nonzero(as_tuple=True)
            place = (row.to(whole.device), index[row, step].to(whole.device))
            tails = hidden[row.to(hidden.device), step.to(hidden.device)]  # type: ignore[index,union-attr]
            whole = whole.index_put(place, tails.to(whole.device, whole.dtype))
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        def read(_module: Any, _args: Any, output: Any) -> None:
            found.append(take_positions(first_tensor(output), index))
            raise StopPass

        with ExitStack() as hooks:
            if hidden is not None:
                hooks.enter_context(blocks[self._layer].register_forward_hook(put_in))
            hooks.enter_context(blocks[self._last].register_forward_hook(read))
            with suppress(StopPass):
                self._layout.body(**self._batch.model_inputs(), use_cache=False)
        return found[0]
