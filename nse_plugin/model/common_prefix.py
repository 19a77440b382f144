"""Group rows of tokens for joint passes: rows of similar length, with a common start.

The prompts of a round follow the same few context texts.  A common start of several rows is run
once, and all of them use its attention keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch, cheapest_batches

_WORTH = 6
"""A common start of at least this many tokens is worth a pass of its own."""


@dataclass(frozen=True)
class Group:
    """Rows of one pass."""

    rows: list[int]
    """Their indices."""
    common: int
    """Number of tokens that all of them begin with."""


def groups(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Group]:
    """All rows, each in one group; a common start ends before the ``starts`` of all its rows."""
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    runs: list[tuple[list[int], int]] = []  # neighbours in lexicographic order
    for index in order:
        if runs:
            members, common = runs[-1]
            shared = min(common, starts[index], _common(rows[members[-1]], rows[index]))
            if shared >= _WORTH:
                runs[-1] = ([*members, index], shared)
                continue
        runs.append(([index], starts[index]))
    alone = [members[0] for members, _ in runs if len(members) == 1]
    together = [(members, common) for members, common in runs if len(members) > 1]
    found = []
    for members, common in [*together, (alone, 0)]:
        members = sorted(members, key=lambda i: len(rows[i]))
        lengths = [len(rows[i]) - common for i in members]
        for run in cheapest_batches(lengths):
            found.append(Group(members[run], common))
    return found


class CommonStarts:
    """Attention keys and values of common starts, each computed once for all groups."""

    def __init__(self, layout: DecoderLayout) -> None:
        self._layout = layout
        self._caches: dict[tuple[int, ...], DynamicCache] = {}

    def cache(self, start: Sequence[int], n_rows: int) -> DynamicCache:
        """A cache with a start repeated for some rows; it may be written to."""
        if not start:
            return DynamicCache()
        key = tuple(start)
        if key not in self._caches:
            found = DynamicCache()
            batch = TokenBatch.of([key], self._layout.input_device)
            self._layout.body(**batch.model_inputs(), past_key_values=found, use_cache=True)
            self._caches[key] = found
        taken = copy.deepcopy(self._caches[key])
        taken.batch_repeat_interleave(n_rows)
        return taken


def after(batch: TokenBatch, group: Group) -> dict[str, torch.Tensor]:
    """Inputs of a pass over the rows of a group after their common start."""
    rows = torch.tensor(group.rows, device=batch.input_ids.device)
    width = int(batch.lengths[rows].max())
    return {
        "input_ids": batch.input_ids[rows, group.common : width],
        "attention_mask": batch.attention_mask[rows, :width],
    }


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common start of two rows."""
    pairs = enumerate(zip(one, other))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
