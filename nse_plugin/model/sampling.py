"""Text that a model generates by itself, reproducible from a seed.

The random numbers come from a separate generator on the CPU.  So the global random state is neither
used nor changed, and a seed gives the same text on every device up to rounding of the logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nse_plugin.errors import ModelError
from nse_plugin.model.generation import continue_rows
from nse_plugin.model.prompts import TOKEN_BUDGET, EncodedPrompt, encode_prompt, encode_text
from nse_plugin.printable import shortened

_BLOCK = 256
"""Tokens of a vocabulary per block, for drawing a token in two steps."""
OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""Openings of context texts, as in the published code of MEMIT and NSE."""

ABOUT = (
    "It is said that {}",
    "In the text, {} is",
    "Everybody knows that {} has",
    "The story of {}",
    "We know that {} was",
)
"""Openings of texts about a subject, which is never at the beginning, where attention sinks are."""
TOKENS_ABOUT = 6
"""Generated tokens of each such text."""


def sample_ids(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    n_tokens: int,
    *,
    top_k: int | None,
    generator: torch.Generator,
    way_out: str = "ask for fewer new tokens",
) -> torch.Tensor:
    """Continue every row of a prompt by a number of sampled tokens.

    Sampling continues after an end-of-text token.

    Args:
        prompt_ids: [rows, width], no padding.
        top_k: how many of the likeliest tokens to draw from; None draws from all.
        generator: on the CPU; it draws one number per row and token.
        way_out: what a message suggests if a row is longer than the model's context.

    Returns:
        [rows, n_tokens] on the CPU, the prompt not included.

    Raises:
        ModelError: the model's logits are not finite.
        RequestError: a row is longer than the model's context.
    """
    rows = prompt_ids.tolist()
    new = continue_rows(
        model,
        rows,
        [n_tokens] * len(rows),
        lambda logits, _rows: _draw(logits, top_k, generator)[:, 0],
        way_out=way_out,
        token_budget=len(rows) * (prompt_ids.shape[1] + n_tokens),  # one batch, one generator
    )
    return torch.tensor(new, dtype=torch.long).view(len(rows), n_tokens)


def context_texts(
    model: PreTrainedModel, tokenizer: Any, *, seed: int, n_tokens: Sequence[int]
) -> tuple[str, ...]:
    """Short texts to put before prompts, as ``"{text}. {prompt}"`` (arXiv 2410.04045).

    Their openings, :data:`OPENINGS`, take turns.

    Args:
        n_tokens: length of each text in tokens, its opening included.

    Returns:
        The texts, each a single line that holds no braces.

    Raises:
        RequestError: a text is longer than the model's context.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for opening, length in zip(itertools.cycle(OPENINGS), n_tokens):
        ids = encode_text(tokenizer, opening)
        n_opening = len(tokenizer(opening, add_special_tokens=False)["input_ids"])
        more = sample_ids(
            model,
            torch.tensor([ids]),
            max(1, length - n_opening),
            top_k=5,
            generator=generator,
            way_out="lower context_length",
        )
        texts.append(_one_line(tokenizer.decode(ids + more[0].tolist(), skip_special_tokens=True)))
    return tuple(texts)


def texts_about(
    model: PreTrainedModel,
    tokenizer: Any,
    subjects: Sequence[str],
    count: int,
    *,
    token_budget: int = TOKEN_BUDGET,
) -> list[tuple[EncodedPrompt, ...]]:
    """Texts about each subject, written by greedy decoding.

    Args:
        count: texts per subject, at most one for each opening of :data:`ABOUT`.

    Returns:
        Per subject: the openings, with the model's continuations as targets.

    Raises:
        RequestError: a text is longer than the model's context.
    """
    prompts, names = [], []
    for subject in subjects:
        for opening in ABOUT[:count]:
            before, after = opening.split("{}")
            text = f"{before}{subject}{after}"
            names.append(f"the text {shortened(text, 60)!r} of kl_texts")
            prompts.append(
                encode_prompt(tokenizer, text, subject=(len(before), len(before + subject)))
            )
    new = continue_rows(
        model,
        [list(prompt.ids) for prompt in prompts],
        [TOKENS_ABOUT] * len(prompts),
        names=names,
        way_out="shorten the subject or set kl_texts to 0",
        token_budget=token_budget,
    )
    texts = [
        replace(prompt, ids=(*prompt.ids, *ids), n_target=len(ids))
        for prompt, ids in zip(prompts, new)
    ]
    return [tuple(texts[i : i + count]) for i in range(0, len(texts), count)]


def _draw(logits: torch.Tensor, top_k: int | None, generator: torch.Generator) -> torch.Tensor:
    """One token per row of logits [rows, vocab]: [rows, 1] on the CPU, by inverse CDF.

    From the whole vocabulary a token is drawn in two steps, first a block and then a token in it,
    so that only sums of blocks and one block per row need float64.
    """
    candidates = None
    if top_k is not None:
        logits, candidates = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    probabilities = logits.softmax(dim=-1)
    if not bool(torch.isfinite(probabilities.sum(dim=-1)).all()):
        raise ModelError(
            "the model's logits hold NaN or infinity, so no text can be sampled from it; "
            "load it in bfloat16 or float32"
        )
    random = torch.rand(logits.shape[0], 1, generator=generator, dtype=torch.float64)
    if candidates is not None:
        chosen, _ = _inverse_cdf(logits.cpu().double().softmax(dim=-1), random)
        return candidates.cpu().gather(1, chosen)
    blocks = nn.functional.pad(probabilities, (0, -probabilities.shape[1] % _BLOCK))
    blocks = blocks.unflatten(1, (-1, _BLOCK))  # [rows, blocks, tokens]
    block, random = _inverse_cdf(blocks.sum(dim=-1).cpu().double(), random)
    rows = torch.arange(len(blocks))
    one = blocks[rows.to(blocks.device), block[:, 0].to(blocks.device)]  # [rows, tokens]
    token, _ = _inverse_cdf(one.cpu().double(), random)
    return block * _BLOCK + token


def _inverse_cdf(masses: torch.Tensor, random: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index whose share of [0, 1) holds a number, and its place in that share, in [0, 1).

    Args:
        masses: [rows, n] float64, not negative; they need not sum to 1.
        random: [rows, 1] float64.

    Returns:
        [rows, 1] each.
    """
    upto = masses.cumsum(dim=-1)
    place = random * upto[:, -1:]
    chosen = torch.searchsorted(upto, place, right=True).clamp(max=masses.shape[-1] - 1)
    mass = masses.gather(1, chosen)
    within = (place - (upto.gather(1, chosen) - mass)) / mass
    return chosen, within.clamp(0.0, 1.0 - 1e-9)


def _one_line(text: str) -> str:
    """The text without braces, line breaks and broken characters, with single spaces."""
    for character in "{}\ufffd":
        text = text.replace(character, " ")
    return " ".join(text.split())
