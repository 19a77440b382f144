"""Forward passes that begin at a block in the middle of the decoder.

The model's own forward pass runs, with its own masks and positions.  The blocks below are skipped,
and the first block that runs gets the hidden states of an earlier pass; from there on everything is
computed as in a whole pass, to the bit.

Some decoders pass more than hidden states from block to block.  So each model and block is tested
once, with a few tokens, against a pass through all blocks up to the last one that is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nse_plugin.model.hooks import quiet, read_rows
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch

log = logging.getLogger(__name__)


def can_begin_at(layout: DecoderLayout, block: int, last: int) -> bool:
    """Whether a pass can begin at a block above the first one; tested when first needed.

    Args:
        last: the last block that such a pass runs.
    """
    key = ("can begin at", block)
    can, tested = layout.measured.get(key, (True, -1))
    if can and tested < last:
        can = _tested(layout, block, last)
        layout.measured[key] = (can, last)
    return can


@contextmanager
def beginning_at(layout: DecoderLayout, block: int, hidden: torch.Tensor) -> Iterator[None]:
    """Inside, passes begin at a block for which :func:`can_begin_at` is true.

    Args:
        hidden: [rows, width, d_model], what goes into the block.
    """
    in_tuple = layout.measured["in tuple", block - 1]

    def put_in(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden.to(args[0].device), *args[1:])

    with ExitStack() as undo:
        for below in list(layout.blocks)[:block]:
            undo.enter_context(_skipped(below, in_tuple))
        undo.enter_context(layout.blocks[block].register_forward_pre_hook(put_in))
        yield


@contextmanager
def _skipped(block: nn.Module, in_tuple: bool) -> Iterator[None]:
    """Inside, a block returns its hidden states unchanged, as they are or in a tuple."""
    own = vars(block).get("forward")  # of the instance: accelerate puts one there
    block.forward = lambda hidden, *_args, **_kwargs: (hidden,) if in_tuple else hidden
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def _tested(layout: DecoderLayout, block: int, last: int) -> bool:
    """Whether a pass that begins at a block gives what one from the first block does."""
    # 16 tokens, as a CPU takes twice as long for slightly fewer
    batch = TokenBatch.of([range(1, 9), range(1, 5)], layout.input_device)
    at, ends = batch.lengths - 1, {"last": layout.blocks[last]}

    def note(_module: Any, _args: Any, output: Any) -> None:
        layout.measured["in tuple", block - 1] = isinstance(output, tuple)

    try:
        with quiet(layout.model), layout.blocks[block - 1].register_forward_hook(note):
            whole = {"hidden": layout.blocks[block]}
            expected = read_rows(layout, batch, at, outputs_of=ends, whole_inputs_of=whole)
            with beginning_at(layout, block, expected["hidden"]):
                got = read_rows(layout, batch, at, outputs_of=ends)
        why = _difference(got["last"].float(), expected["last"].float())
        if expected["hidden"].shape != (*batch.input_ids.shape, layout.d_model):
            why = f"its hidden states have the shape {list(expected['hidden'].shape)}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a block may raise anything if those below are skipped
        why = f"{type(error).__name__}: {error}"
    if why:
        log.info(
            "no pass of model type %r can begin at block %d (%s); keys are read with whole passes, "
            "which are slower and give the same",
            layout.model_type,
            block,
            why,
        )
    return not why


def _difference(got: torch.Tensor, expected: torch.Tensor) -> str:
    error = (got - expected).norm() / expected.norm()
    return "" if error < 1e-3 else f"relative difference {float(error):.2g}"
