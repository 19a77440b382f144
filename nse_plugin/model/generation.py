"""Generate text: greedily, or by seeded sampling.

Rows are padded on the left here, with masks and positions that make padding invisible; the
tokenizer's padding and torch's global random state are neither used nor changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import RequestError
from nse_plugin.model.answers import check_length
from nse_plugin.model.hooks import head_at, quiet
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import TOKEN_BUDGET, encode_prompt, micro_batches
from nse_plugin.printable import counted

TOP_K = 5
"""The number of likeliest tokens that :func:`sampled_text` draws from."""
Choose = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""From logits [rows, vocab] and the rows' indices to the next token ids [rows]."""


def greedy_text(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
) -> list[str]:
    """Continue each prompt by greedy decoding.

    The model's own generation settings (temperature, repetition penalty ...) are ignored.

    Args:
        stop: a row ends before the first of these texts, e.g. ``("\\n", ".")``.  It also ends at
            the end-of-sequence token.

    Returns:
        The new text of each row, without special tokens.

    Raises:
        RequestError: a prompt and its continuation are longer than the model's context.
    """
    return [text for text, _ in greedy_endings(model, tokenizer, prompts, max_new_tokens, stop)]


def greedy_endings(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> list[tuple[str, bool]]:
    """As :func:`greedy_text`, and of each row whether it ended before ``max_new_tokens``."""
    rows = _encode_all(tokenizer, prompts)

    def cut(ids: list[int]) -> tuple[str, bool]:
        """The text up to a stop, and whether there is a stop."""
        text = tokenizer.decode(ids, skip_special_tokens=True)
        cuts = [text.find(mark) for mark in stop if mark and mark in text]
        return text[: min(cuts, default=None)], bool(cuts)

    new = continue_rows(
        model,
        rows,
        [max_new_tokens] * len(rows),
        end_ids=end_ids(model, tokenizer),
        ended=lambda ids: bool(stop) and cut(ids)[1],
        names=[f"the text {prompt[:40]!r}" for prompt in prompts],
    )
    return [(cut(ids)[0], len(ids) < max_new_tokens) for ids in new]


def sampled_text(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], max_tokens: int
) -> list[str]:
    """Continue each prompt by sampling from the likeliest tokens, up to a total length.

    Each row has its own random generator, so its text does not depend on the rest of the batch.

    Args:
        max_tokens: tokens per row, the prompt included.

    Returns:
        Prompt and continuation of each row, without special tokens.
    """
    rows = _encode_all(tokenizer, prompts)
    draws = [torch.Generator().manual_seed(0) for _ in rows]

    def choose(logits: torch.Tensor, which: list[int]) -> torch.Tensor:
        top = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1)
        levels = top.values.softmax(dim=-1).cumsum(dim=-1)  # [rows, TOP_K]
        drawn = torch.stack([torch.rand((), generator=draws[row]) for row in which])
        place = (levels < drawn.to(levels.device)[:, None]).sum(dim=-1, keepdim=True)
        place = place.clamp(max=levels.shape[-1] - 1)
        return top.indices.gather(-1, place)[:, 0]

    room = [max(max_tokens - len(row), 0) for row in rows]
    new = continue_rows(model, rows, room, choose)
    return [tokenizer.decode(row + ids, skip_special_tokens=True) for row, ids in zip(rows, new)]


def continue_rows(
    model: nn.Module,
    rows: Sequence[list[int]],
    room: Sequence[int],
    choose: Choose = lambda logits, _rows: logits.argmax(dim=-1),
    *,
    end_ids: frozenset[int] = frozenset(),
    ended: Callable[[list[int]], bool] = lambda ids: False,
    names: Sequence[str] = (),
    way_out: str = "shorten it or ask for fewer new tokens (--tokens in nse ask and nse chat)",
    token_budget: int = TOKEN_BUDGET,
) -> list[list[int]]:
    """Generate the new tokens of each row.

    Args:
        room: maximum number of new tokens of each row.
        choose: the next tokens; by default the likeliest.
        end_ids: tokens that end a row; they are not part of it.
        ended: whether a row with these new tokens is done.
        names: of the rows, for messages.
        way_out: what a message suggests if a row with its new tokens is too long.
    """
    names = names or [f"text {number}" for number in range(len(rows))]
    check_length(model, list(map(len, rows)), "shorten it", names)
    check_length(
        model,
        [len(row) + new for row, new in zip(rows, room)],
        way_out,
        [
            f"{name} has {counted(len(row), 'token')}; with {new} new ones it"
            for name, row, new in zip(names, rows, room)
        ],
    )
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    new: list[list[int]] = [[] for _ in rows]

    def is_done(index: int, token: int) -> bool:
        if token in end_ids:
            return True
        new[index].append(token)
        return len(new[index]) >= room[index] or ended(new[index])

    with quiet(model), torch.no_grad():
        for group in _groups(model, rows, order, room, token_budget):
            unfinished = {index for index in group if room[index] > 0}
            _continue_group(model, rows, group, unfinished, choose, is_done)
    return new


def _groups(
    model: nn.Module,
    rows: Sequence[list[int]],
    order: Sequence[int],
    room: Sequence[int],
    token_budget: int,
) -> list[list[int]]:
    """Indices of rows to run together; for a model without position ids, only of equal lengths."""
    runs = micro_batches([len(rows[index]) + room[index] for index in order], token_budget)
    groups = [list(order[run]) for run in runs]
    if _takes_positions(model):
        return groups
    equal: list[list[int]] = []
    for group in groups:
        by_length: dict[int, list[int]] = {}
        for index in group:
            by_length.setdefault(len(rows[index]), []).append(index)
        equal.extend(by_length.values())
    return equal


def _continue_group(
    model: nn.Module,
    rows: Sequence[list[int]],
    group: list[int],
    unfinished: set[int],
    choose: Choose,
    is_done: Callable[[int, int], bool],
) -> None:
    """Continue one group of rows, padded on the left, until all are done.

    Args:
        is_done: adds a token to a row and returns whether it was the last one.
    """
    width = max(len(rows[index]) for index in group)
    device = layout_of(model).input_device
    padding = [width - len(rows[index]) for index in group]
    ids = torch.tensor([[0] * pad + rows[i] for pad, i in zip(padding, group)], device=device)
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=device)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    limit = layout_of(model).max_positions
    takes_positions, cache = _takes_positions(model), None
    every = torch.arange(len(group), device=device)
    while unfinished:
        extra = {"position_ids": positions} if takes_positions else {}
        with head_at(model, every, torch.full_like(every, ids.shape[1] - 1)):
            output = model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra
            )
        cache = output.past_key_values
        choice = choose(output.logits[0].float(), group)  # [rows]
        for index, token in zip(group, choice.tolist()):
            if index in unfinished and is_done(index, token):
                unfinished.remove(index)
        ids = choice.to(device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(group), 1)], dim=-1)
        # finished rows are still run; they must not run out of positions
        positions = positions[:, -1:] + 1
        if limit is not None:
            positions = positions.clamp(max=limit - 1)


def _takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _encode_all(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    rows = [list(encode_prompt(tokenizer, prompt).ids) for prompt in prompts]
    for prompt, row in zip(prompts, rows):
        if not row:
            raise RequestError(f"prompt {prompt!r} has no tokens; give a text to continue")
    return rows


def end_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), tokenizer):
        value: Any = getattr(source, "eos_token_id", None)
        found.update(value if isinstance(value, (list, tuple)) else [value])
    return frozenset(token for token in found if token is not None)
