"""Run the blocks above a layer repeatedly, from one position per row on.

Optimising an activation h at (layer, position) changes nothing below the layer and, in a causal
decoder, nothing left of the position.  :class:`~nse_plugin.model.replay.Replay` uses this, and
depends on what transformers passes from block to block, which differs between versions and
families.  So the first replay of a model is compared with whole passes, on a few of its rows.  If
they differ, or the blocks cannot be called like this,
:class:`~nse_plugin.model.full_pass.FullPass` is used instead.
"""

from __future__ import annotations

import logging

import torch

from nse_plugin.model.full_pass import FullPass
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch
from nse_plugin.model.replay import Replay

log = logging.getLogger(__name__)


Continuation = Replay | FullPass
"""The tails of some rows of tokens, ready to be run through the blocks above a layer."""

_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size")
"""Config names of the number of tokens that attention reaches back."""
_OWN_WINDOW = "window_size"
"""The same for blocks that make their own masks, as in GPT-Neo."""


def capture(
    layout: DecoderLayout, batch: TokenBatch, starts: torch.Tensor, *, layer: int, last: int
) -> Continuation:
    """Run the decoder once over whole rows and keep what later runs from ``starts`` on need.

    Args:
        starts: [rows], first position that a run computes.
        layer: block whose output is replaced in each run.
        last: block whose output a run returns.
    """
    tried = layout.measured.setdefault("can replay", {})
    key = (layer, last, getattr(layout.text_config, "_attn_implementation", None))
    can_replay = tried.get(key)
    if _beyond_a_window(layout, batch, starts):
        can_replay = False
    elif can_replay is None:
        order = starts.argsort(descending=True)
        some = torch.cat([order[:3], order[-1:]]).unique()  # the longest starts, which may be one
        why = _difference(layout, batch.select(some), starts[some], layer, last)
        can_replay = not why
        if why:
            log.log(
                logging.DEBUG if False in tried.values() else logging.WARNING,
                "the blocks of model type %r cannot be replayed (%s); values are optimised with "
                "whole forward passes, which are slower and give the same",
                layout.model_type,
                why,
            )
        if why or bool((starts > 0).any()):  # without tokens on the left, nothing was tested
            tried[key] = can_replay
    kind = Replay if can_replay else FullPass
    return kind.capture(layout, batch, starts, layer=layer, last=last)


@torch.no_grad()
def _difference(
    layout: DecoderLayout, batch: TokenBatch, starts: torch.Tensor, layer: int, last: int
) -> str:
    """How a replay of some rows differs from whole passes; empty if it does not."""
    full = FullPass.capture(layout, batch, starts, layer=layer, last=last)
    try:
        replay = Replay.capture(layout, batch, starts, layer=layer, last=last)
        got = replay.run(replay.hidden).float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a block that cannot be called like this may raise anything
        return f"{type(error).__name__}: {error}"
    expected = full.run(full.hidden).float()
    real = torch.arange(got.shape[1], device=got.device) < full.lengths[:, None].to(got.device)
    relative = float((got - expected)[real].norm() / expected[real].norm())
    coarse = replay.hidden.dtype in (torch.bfloat16, torch.float16)
    return "" if relative < (3e-2 if coarse else 1e-3) else f"relative difference {relative:.2g}"


def _beyond_a_window(layout: DecoderLayout, batch: TokenBatch, starts: torch.Tensor) -> bool:
    """Whether a row is longer than a window or chunk of the model's attention.

    Blocks that make their own masks also count the padding between the two parts of a replayed row.
    """
    longest, starts = int(batch.lengths.max()), starts.to(batch.lengths.device)
    padded = int(starts.max()) + int((batch.lengths - starts).max())
    windows = [(getattr(layout.text_config, name, None), longest) for name in _WINDOWS]
    windows.append((getattr(layout.text_config, _OWN_WINDOW, None), padded))
    return any(isinstance(window, int) and tokens > window for window, tokens in windows)
