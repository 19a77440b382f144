"""Keys and current activations at the subject's last token.

The key k_l of a request is the input of the down-projection of block l at the subject's last token:
one number per neuron.  It is averaged over the bare prompt and the prompt after each context text.
The bare prompt has half of the weight (arXiv 2410.04045 and 2210.07229, in their code), or the same
weight as the others (ROME, arXiv 2202.05262, equation 3).

No token after the subject's last one can change either quantity, so rows end there.  A write to
layer l changes nothing below the output of block l, so a reading can keep the hidden states that go
into a block, and later readings begin there (:mod:`nse_plugin.model.partial_pass`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from nse_plugin.locate.rows import Rows
from nse_plugin.model.hooks import quiet, read_rows, visit_inputs
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.partial_pass import beginning_at, can_begin_at
from nse_plugin.model.prompts import TokenBatch, alike_batches, micro_batches

_KEPT = "what goes into a block"


def other_token_keys(
    layout: DecoderLayout, rows: Sequence[Rows], layers: Sequence[int], token_budget: int
) -> dict[int, torch.Tensor]:
    """Current keys of all tokens of the bare prompts that no request edits.

    A beginning that several prompts share is read once.

    Returns:
        By layer: float32 [d_ff, m], in main memory.
    """
    prompts = sorted((one.rewriting[0] for one in rows), key=lambda prompt: prompt.n_prompt)
    downs = {layer: layout.down(layer) for layer in layers}
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    known = {one.up_to_subject for one in rows}  # a key depends on its token and those before it
    with quiet(layout.model):
        for run in micro_batches([prompt.n_prompt for prompt in prompts], token_budget):
            texts = [prompt.ids[: prompt.n_prompt] for prompt in prompts[run]]
            new = []
            for place in (text[: i + 1] for text in texts for i in range(len(text))):
                new.append(place not in known)
                known.add(place)
            visit_inputs(
                layout,
                TokenBatch.of(texts, layout.input_device),
                downs,
                lambda layer, keys: found[layer].append(keys.float().cpu()[new]),  # noqa: B023
            )
    return {layer: torch.cat(parts).T for layer, parts in found.items()}


class Found(NamedTuple):
    """What one reading of a round's requests gave."""

    keys: dict[int, torch.Tensor]
    """By layer: float32 [d_ff, n]."""
    bare: dict[int, torch.Tensor]
    """The same for the bare prompts alone."""
    h: torch.Tensor | None
    """Output of a block on the bare prompts, float32 [n, d_model], if requested."""
    lookups: Lookups
    """The same requests, with the hidden states kept for later readings."""

    def select(self, requests: torch.Tensor) -> Found:
        """The same for some of the requests."""
        return Found(
            {layer: keys[:, requests.to(keys.device)] for layer, keys in self.keys.items()},
            {layer: keys[:, requests.to(keys.device)] for layer, keys in self.bare.items()},
            None if self.h is None else self.h[requests.to(self.h.device)],
            self.lookups.select(requests),
        )


@dataclass(frozen=True)
class Lookups:
    """Reads keys and activations at the requests of a round."""

    prompts: Prefixes
    """The bare prompts up to the subject's last token, one per request."""
    in_context: Prefixes
    """The same after each context text, request by request."""
    bare_weight: float = 0.5
    """Weight of the bare prompt's key in the mean, where there are contexts."""

    @classmethod
    def of(cls, layout: DecoderLayout, rows: Sequence[Rows], token_budget: int) -> Lookups:
        """The places to read in the rows of :func:`~nse_plugin.locate.rows.encode_round`."""
        read = [[prompt.up_to_subject for prompt in one.rewriting] for one in rows]
        return cls(
            Prefixes(layout, token_budget, tuple(prompts[0] for prompts in read)),
            Prefixes(layout, token_budget, tuple(row for prompts in read for row in prompts[1:])),
        )

    def __len__(self) -> int:
        return len(self.bare)

    @property
    def bare(self) -> tuple[tuple[int, ...], ...]:
        """Per request: the bare prompt's tokens up to the subject's last."""
        return self.prompts.rows

    def select(self, requests: torch.Tensor) -> Lookups:
        """The same for some of the requests."""
        chosen = requests.tolist()
        each = len(self.in_context.rows) // len(self)
        return replace(
            self,
            prompts=self.prompts.select(chosen),
            in_context=self.in_context.select([i * each + j for i in chosen for j in range(each)]),
        )

    def evenly(self) -> Lookups:
        """The same, with the bare prompt weighing as much as the prompt after each context."""
        return replace(self, bare_weight=len(self) / (len(self) + len(self.in_context.rows)))

    def keys(self, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Current keys by layer: float32 [d_ff, n]."""
        return self.read(layers).keys

    def activations(self, layer: int) -> torch.Tensor:
        """Current h, the output of a block on the bare prompts: float32 [n, d_model]."""
        return self.prompts.read({}, {"h": self.prompts.layout.blocks[layer]})[0]["h"]

    def read(
        self,
        layers: Sequence[int],
        *,
        h_of: int | None = None,
        keep: int | None = None,
        last: int | None = None,
    ) -> Found:
        """Keys, and the output of a block on the bare prompts, in as few passes as possible.

        Args:
            h_of: the block whose output is read.
            keep: keep the hidden states that go into this block, so that the lookups returned
                begin there.  They are valid as long as nothing below the block is written, and lie
                in main memory: tokens times d_model, of all rows.
            last: the last block that those lookups will read, if it is above what is read now.
        """
        layout = self.prompts.layout
        downs = {layer: layout.down(layer) for layer in layers}
        blocks = {} if h_of is None else {"h": layout.blocks[h_of]}
        last = max([*layers, h_of or 0, last or 0])
        found, prompts = self.prompts.read(downs, blocks, keep, last)
        bare = {layer: found[layer] for layer in layers}  # [n, d_ff]
        keys, in_context = dict(bare), self.in_context
        if in_context.rows:
            others, in_context = in_context.read(downs, {}, keep, last)
            for layer in layers:
                contexts = others[layer].view(len(self), -1, others[layer].shape[1]).mean(dim=1)
                weight = self.bare_weight
                keys[layer] = weight * bare[layer] + (1 - weight) * contexts
        return Found(
            {layer: key.T for layer, key in keys.items()},
            {layer: key.T for layer, key in bare.items()},
            found.get("h"),
            replace(self, prompts=prompts, in_context=in_context),
        )


@dataclass(frozen=True)
class Prefixes:
    """Rows of tokens, each read at its last token."""

    layout: DecoderLayout
    token_budget: int
    rows: tuple[tuple[int, ...], ...]
    block: int = 0
    """The block at which a pass begins."""
    hidden: tuple[torch.Tensor, ...] = ()
    """By row [tokens, d_model], what goes into that block; empty for the first block."""

    def select(self, chosen: Sequence[int]) -> Prefixes:
        """Some of the rows."""
        return replace(
            self,
            rows=tuple(self.rows[i] for i in chosen),
            hidden=tuple(self.hidden[i] for i in chosen) if self.block else (),
        )

    def read(
        self,
        inputs_of: Mapping[Any, nn.Module],
        outputs_of: Mapping[Any, nn.Module],
        keep: int | None = None,
        last: int = 0,
    ) -> tuple[dict[Any, torch.Tensor], Prefixes]:
        """By name: float32 [rows, features]; and the rows that begin at the block ``keep``, to be
        read up to the block ``last``."""
        layout, whole = self.layout, {}
        if keep is not None and keep > self.block and can_begin_at(layout, keep, last):
            whole = {_KEPT: layout.blocks[keep]}
        lengths = [len(row) for row in self.rows]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        batches = alike_batches(order, lengths, lengths, self.token_budget)
        parts, kept = [], []
        with quiet(layout.model):
            for numbers in batches:
                batch = TokenBatch.of([self.rows[i] for i in numbers], layout.input_device)
                with self._beginning(numbers):
                    found = read_rows(
                        layout,
                        batch,
                        batch.lengths - 1,
                        inputs_of=inputs_of,
                        outputs_of=outputs_of,
                        whole_inputs_of=whole,
                    )
                if whole:
                    each = zip(found.pop(_KEPT).cpu(), batch.lengths.tolist())
                    kept += [hidden[:length] for hidden, length in each]
                parts.append(found)
        back = torch.tensor([i for numbers in batches for i in numbers]).argsort()
        above = self
        if whole and keep is not None:
            above = replace(self, block=keep, hidden=tuple(kept[i] for i in back.tolist()))
        return {
            name: torch.cat([part[name].float() for part in parts])[back.to(first.device)]
            for name, first in parts[0].items()
        }, above

    def _beginning(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        if not self.block:
            return nullcontext()
        hidden = pad_sequence([self.hidden[i] for i in rows], batch_first=True)
        return beginning_at(self.layout, self.block, hidden)
