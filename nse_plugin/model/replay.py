"""Replay: call the blocks above a layer again with the arguments of an earlier pass.

The rows pass through the whole model once, common starts together
(:mod:`nse_plugin.model.common_prefix`).  Kept are the layer's hidden states, the arguments of the
blocks above it, and the attention keys and values left of the position.  Each run computes only the
blocks above, from the position on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from nse_plugin.errors import ModelError
from nse_plugin.model.common_prefix import CommonStarts, Group, after, groups
from nse_plugin.model.hooks import take_positions
from nse_plugin.model.layout import DecoderLayout, first_tensor
from nse_plugin.model.prompts import TokenBatch

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past", "cache")  # by family and version
_BY_POSITION = ("position_ids", "position_embeddings")
_REPLACED = ("hidden_states", "attention_mask", "cache_position", "use_cache", *_CACHE_NAMES)


class _FrozenPrefix:
    """Attention keys and values of the tokens left of the start, with the interface of a cache."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values  # [rows, heads, prefix, d_head]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix followed by the new tokens, which are not stored."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)

    def get_seq_length(self, *_args: Any) -> int:
        """Number of tokens."""
        return self.keys.shape[2]


@dataclass(frozen=True)
class _BlockCall:
    block: Callable[..., Any]
    cache_name: str | None
    prefix: _FrozenPrefix
    tensors: dict[str, Any]  # arguments by row and position, cut to the rows' tails
    constants: dict[str, Any]

    def select(self, rows: torch.Tensor, prefix: int, tail: int) -> _BlockCall:
        keys = _rows(self.prefix.keys, rows)[:, :, :prefix]
        values = _rows(self.prefix.values, rows)[:, :, :prefix]
        tensors = {
            name: _each(value, lambda tensor, kept: _rows(tensor, kept)[:, :tail], rows)
            for name, value in self.tensors.items()
        }
        return replace(self, prefix=_FrozenPrefix(keys, values), tensors=tensors)


@dataclass(frozen=True)
class Replay:
    """Continues by calling the blocks above the layer again."""

    hidden: torch.Tensor
    """[rows, tail, d_model], output of the layer from each row's start on; padded on the right."""
    starts: torch.Tensor
    """[rows], first position of each row's tail."""
    lengths: torch.Tensor
    """[rows], tokens of each row's tail."""
    mask: torch.Tensor
    """[rows, 1, tail, prefix + tail], added to the attention scores."""
    calls: tuple[_BlockCall, ...]

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
    ) -> Replay:
        """Run the decoder once; see :func:`nse_plugin.model.continuation.capture`.

        Raises:
            ModelError: the attention takes no mask per row, or the blocks take unknown tensors.
        """
        kind = getattr(layout.text_config, "_attn_implementation", None)
        if kind not in (None, "eager", "sdpa"):
            raise ModelError(
                f"their attention is {kind!r}, which takes no mask per row, as 'sdpa' does"
            )
        rows = batch.rows()
        starts_by_common = CommonStarts(layout)
        lengths = batch.lengths - starts
        prefix, tail = int(starts.max()), int(lengths.max())
        steps = torch.arange(tail, device=starts.device)
        numbers = range(layer, last + 1)
        outputs, order = [], []
        pieces: dict[int, list[_BlockCall]] = {number: [] for number in numbers[1:]}
        for group in groups(rows, starts.tolist()):
            cache = starts_by_common.cache(rows[group.rows[0]][: group.common], len(group.rows))
            output, arguments = _observed(layout, batch, group, cache, numbers)
            index = starts[group.rows][:, None] - group.common + steps
            index = index.clamp(max=output.shape[1] - 1)
            outputs.append(take_positions(output, index))
            for number, of_block in pieces.items():
                kv = cache.layers[number]
                frozen = _FrozenPrefix(_to_width(kv.keys, prefix), _to_width(kv.values, prefix))
                block = layout.blocks[number]
                of_block.append(_block_call(block, arguments[number], frozen, index))
            order += group.rows
        back = torch.tensor(order).argsort()
        hidden = _rows(torch.cat(outputs), back)
        calls = tuple(_joined(found).select(back, prefix, tail) for found in pieces.values())
        mask = _tail_mask(starts, prefix, tail, hidden.dtype).to(hidden.device)
        return cls(hidden, starts, lengths, mask, calls)

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Blocks layer+1..last on hidden states [rows, tail, d_model]; differentiable."""
        for call in self.calls:
            arguments = {**call.constants, **call.tensors, "attention_mask": self.mask}
            if call.cache_name is not None:
                arguments[call.cache_name] = call.prefix
            hidden = first_tensor(call.block(hidden, **arguments))
        return hidden

    def select(self, rows: torch.Tensor) -> Replay:
        """The same for some rows, cut to their width; rows: [kept], indices."""
        starts, lengths = _rows(self.starts, rows), _rows(self.lengths, rows)
        prefix, tail = int(starts.max()), int(lengths.max())
        mask = _tail_mask(starts, prefix, tail, self.hidden.dtype).to(self.mask.device)
        calls = tuple(call.select(rows, prefix, tail) for call in self.calls)
        return Replay(_rows(self.hidden, rows)[:, :tail], starts, lengths, mask, calls)

    def up_to(self, n_blocks: int) -> Replay:
        """The same through the first blocks only."""
        return replace(self, calls=self.calls[:n_blocks])


def _observed(
    layout: DecoderLayout, batch: TokenBatch, group: Group, cache: DynamicCache, numbers: range
) -> tuple[torch.Tensor, dict[int, dict[str, Any]]]:
    """Run a group of rows after their common start, and record the blocks' calls.

    Args:
        numbers: the layer and the blocks above it.

    Returns:
        The layer's output [rows, width, d_model], and the arguments of each block above, by name.
    """
    outputs: list[torch.Tensor] = []
    arguments: dict[int, dict[str, Any]] = {}
    with ExitStack() as hooks:
        z_block = layout.blocks[numbers[0]]
        hooks.enter_context(
            z_block.register_forward_hook(
                lambda _module, _args, output: outputs.append(first_tensor(output))
            )
        )
        for number in numbers[1:]:
            hooks.enter_context(_record_call(layout, number, arguments))
        layout.body(**after(batch, group), past_key_values=cache, use_cache=True)
    known = (*_REPLACED, *_BY_POSITION)
    for call in arguments.values():
        if unknown := [n for n, value in call.items() if n not in known and _has_tensor(value)]:
            raise ModelError(
                f"they take {', '.join(unknown)}, which this version cannot cut by position"
            )
    return outputs[0], arguments


def _to_width(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """[rows, heads, width, d_head], cut or padded on the right."""
    missing = width - tensor.shape[2]
    return functional.pad(tensor, (0, 0, 0, missing)) if missing > 0 else tensor[:, :, :width]


def _joined(calls: list[_BlockCall]) -> _BlockCall:
    """The calls of one block in several passes, with their rows concatenated."""
    first = calls[0]

    def cat(values: list[Any]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(cat(list(items)) for items in zip(*values))
        return torch.cat(values) if isinstance(values[0], torch.Tensor) else values[0]

    tensors = {name: cat([call.tensors[name] for call in calls]) for name in first.tensors}
    keys = torch.cat([call.prefix.keys for call in calls])
    values = torch.cat([call.prefix.values for call in calls])
    return replace(first, prefix=_FrozenPrefix(keys, values), tensors=tensors)


def _record_call(
    layout: DecoderLayout, number: int, found: dict[int, dict[str, Any]]
) -> RemovableHandle:
    """Record the arguments of a block's calls by name."""
    block = layout.blocks[number]
    signature = inspect.signature(block.forward)

    def record(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        extra = bound.pop("kwargs", {})
        found[number] = {**bound, **extra}

    return block.register_forward_pre_hook(record, with_kwargs=True)


def _block_call(
    block: Any, arguments: dict[str, Any], prefix: _FrozenPrefix, index: torch.Tensor
) -> _BlockCall:
    tensors: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    cache_name = None
    for name, value in arguments.items():
        if name in _CACHE_NAMES:
            cache_name = name
        elif name in _BY_POSITION and _has_tensor(value):
            tensors[name] = _each(value, take_positions, index)
        elif name not in _REPLACED:
            constants[name] = value
    return _BlockCall(block, cache_name, prefix, tensors, constants)


def _tail_mask(starts: torch.Tensor, prefix: int, tail: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, 1, tail, prefix + tail]: 0 where a token attends, else the dtype's lowest value."""
    rows = starts.shape[0]
    device = starts.device
    sees_prefix = torch.arange(prefix, device=device) < starts[:, None]  # [rows, prefix]
    causal = torch.ones(tail, tail, dtype=torch.bool, device=device).tril()
    sees = torch.cat(
        [sees_prefix[:, None, :].expand(rows, tail, prefix), causal.expand(rows, tail, tail)], dim=2
    )
    mask = torch.zeros(rows, tail, prefix + tail, dtype=dtype, device=device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(item) for item in value)
    return isinstance(value, torch.Tensor)


def _each(value: Any, function: Callable[..., torch.Tensor], index: torch.Tensor) -> Any:
    """Apply a function to a tensor, or to each tensor of a tuple."""
    if isinstance(value, (tuple, list)):
        return tuple(_each(item, function, index) for item in value)
    return function(value, index) if isinstance(value, torch.Tensor) else value


def _rows(value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return value[rows.to(value.device)]
