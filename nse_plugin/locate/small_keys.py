"""Edits whose keys are small: at attention sinks, and at the beginning of a text.

The share of its residual that a closed-form solve writes for an edit grows with ||k||^2, while the
regularisation is the same for all edits.  So an edit with a small key falls short of its value.

At an attention sink nothing can be written at all.  A few tokens, nearly always among the first of
a text, collect attention that is needed nowhere else, and the neurons of an MLP hardly fire there
(attention sinks, arXiv 2309.17453).  Others have hidden states a hundred times as long as those of
other tokens (massive activations, arXiv 2402.17762): the value of an edit there, which is bounded
by a share of that length, and whose key all texts share, would destroy the model.  If the tokenizer
puts no token before a text, this can be the subject itself, as in "England is located in".  The
same subject after a context text shows how large key and hidden state should be.

Instead of a sink, a later token is edited.  Its key is nearly the same for every subject, so the
solve preserves the same prompt with other subjects: only what the subject changed in the key is
left to write with.

Both remedies are ours, in none of the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from nse_plugin.locate.keys import Prefixes
from nse_plugin.locate.rows import Rows
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import encode_request
from nse_plugin.requests import EditRequest

SINK = 0.15
"""A token of the bare prompt is a sink if its ||k||^2 is below this share of the subject's mean
||k||^2 after contexts.  docs/methods.md has the numbers behind it."""
MASSIVE = 10.0
"""It is one, too, if its hidden state is longer than this multiple of the subject's after
contexts."""
OTHER_SUBJECTS = (
    "Paris", "Japan", "Germany", "China", "New York City", "Mount Everest", "The Eiffel Tower",
    "Albert Einstein", "Isaac Newton", "Shakespeare", "The Beatles", "Microsoft", "Toyota",
    "Amazon", "the piano", "water",
)  # fmt: skip
"""Subjects of many kinds that take the place of the subject of an edit at a later token."""


def for_small_keys(
    layout: DecoderLayout,
    rows: Sequence[Rows],
    layer: int,
    token_budget: int,
    *,
    avoid_sinks: bool,
    most_weight: float,
) -> list[Rows]:
    """The rows, with another token to edit or a larger weight where the key is small.

    If a subject ends at a sink, the prompt's last token that is no sink is edited instead; if there
    is none after the subject, the row stays.  The weight is that of the edit's squared error in a
    solve that repairs it: ||k||^2 after contexts over ||k||^2 in the bare prompt, clamped to 1 and
    ``most_weight``.

    Args:
        rows: with at least one context.
        layer: the first edited layer, whose keys and inputs no edit changes.
    """
    modules = {"key": layout.down(layer), "hidden": layout.blocks[layer]}

    def squares(texts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """||k||^2, and that of the hidden state, at the last token of each text [2, n]."""
        found, _ = Prefixes(layout, token_budget, tuple(texts)).read(modules, {})
        return torch.stack([found[name].square().sum(dim=1) for name in modules])

    texts = [prompt.up_to_subject for one in rows for prompt in one.rewriting]
    by_row = squares(texts).view(2, len(rows), -1)
    bare, usual = by_row[:, :, 0], by_row[:, :, 1:].mean(dim=2)  # [2, rows]
    found, keys = list(rows), bare[0].clone()
    for number in _sinks(bare, usual).nonzero()[:, 0].tolist() if avoid_sinks else ():
        prompt = rows[number].rewriting[0]
        later = range(prompt.n_prompt - 1, prompt.subject_last, -1)  # from the end
        if len(later) == 0:
            continue
        at_later = squares([prompt.ids[: place + 1] for place in later])
        for back in (~_sinks(at_later, usual[:, [number]])).nonzero()[:1, 0].tolist():
            found[number] = edited_at_the_end(rows[number], back)
            keys[number] = at_later[0, back]
    least = torch.finfo(keys.dtype).tiny  # a key can be zero, with ReLU
    weights = (usual[0] / keys.clamp_min(least)).clamp(1.0, most_weight).tolist()
    return [replace(one, weight=weight) for one, weight in zip(found, weights)]


def _sinks(squares: torch.Tensor, usual: torch.Tensor) -> torch.Tensor:
    """Which tokens are sinks [n], from ||k||^2 and that of the hidden state [2, n]."""
    return (squares[0] < SINK * usual[0]) | (squares[1] > MASSIVE**2 * usual[1])


def edited_at_the_end(one: Rows, back: int = 0) -> Rows:
    """The rows of a request, edited ``back`` tokens before the last of each prompt."""
    prompts = [replace(each, subject_last=each.n_prompt - 1 - back) for each in one.rewriting]
    return replace(one, rewriting=tuple(prompts), past_sink=True)


def with_other_subjects(
    tokenizer: Any, request: EditRequest, one: Rows, longest: int | None
) -> Rows:
    """The rows of a request that is edited past a sink, with other subjects to preserve.

    Args:
        longest: length of the model's context; prompts that are longer are left out.
    """
    prompt = one.rewriting[0]
    back = prompt.n_prompt - len(prompt.up_to_subject)
    texts = [
        encode_request(tokenizer, replace(request, subject=subject)).ids
        for subject in OTHER_SUBJECTS
        if subject != request.subject
    ]
    fitting = [ids for ids in texts if longest is None or len(ids) <= longest]
    return replace(one, other_subjects=tuple(ids[: len(ids) - back] for ids in fitting))
