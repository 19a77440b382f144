"""Rows of tokens in groups that a pass can take together: alike in length, alike at their start.

The prompts of a round come after the same few context texts.  What such rows have in common at
their start is run once, and its attention keys and values serve all of them.
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
"""Common tokens from which a pass of their own pays."""


@dataclass(frozen=True)
class Group:
    """Rows of one pass."""

    rows: list[int]
    """Their numbers."""
    common: int
    """Tokens that all of them begin with."""


def groups(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Group]:
    """All rows, each in one group; a common start ends before every ``starts`` of its rows."""
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
    """Attention keys and values of the starts that groups of rows have in common.

    Each is computed once, however many groups have it.
    """

    def __init__(self, layout: DecoderLayout) -> None:
        self._layout = layout
        self._caches: dict[tuple[int, ...], DynamicCache] = {}

    def cache(self, start: Sequence[int], n_rows: int) -> DynamicCache:
        """A cache that holds a start for some rows, and may be written to."""
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
    """Inputs of a pass over the rows of a group, from the end of their common start on."""
    rows = torch.tensor(group.rows, device=batch.input_ids.device)
    width = int(batch.lengths[rows].max())
    return {
        "input_ids": batch.input_ids[rows, group.common : width],
        "attention_mask": batch.attention_mask[rows, :width],
    }


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their start."""
    pairs = enumerate(zip(one, other))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
