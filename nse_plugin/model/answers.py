"""Check answers: the one place where prompts are scored.

Many (prompt, answer) pairs go through the model in a few batches.  Rows are padded here, with masks
and positions that make padding invisible; the tokenizer is only asked for tokens, so neither
its ``padding_side`` nor its pad token plays a part.

Three notions of "the model gives this answer" are kept apart:

* *exact*: greedy decoding writes the whole answer, token for token;
* *token accuracy*: the share of answer tokens that are the model's first choice when all tokens
  before them are given (teacher forcing).  This is EasyEdit's ``rewrite_acc``;
* *nll*: how unlikely the answer is, which moves before the first choice does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import RequestError
from nse_plugin.model.hooks import head_at, quiet
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import (
    MAX_PADDING,
    EncodedPrompt,
    TokenBatch,
    encode_prompt,
    micro_batches,
)

_LOGITS_BUDGET = 2**28  # float32 numbers of logits held at once: 1 GiB


@dataclass(frozen=True)
class Answers:
    """How well a model gives answers, one entry per (prompt, answer) pair, in the order given."""

    exact: list[bool]
    """Greedy decoding writes the whole answer."""
    token_accuracy: list[float]
    """Share of answer tokens that are the first choice under teacher forcing; NaN of no tokens."""
    predicted: list[list[int]]
    """First choice at each answer token, under teacher forcing."""
    nll: list[float]
    """Mean over the answer's tokens of -log p(token | all before it); NaN of no tokens."""
    n_tokens: list[int]
    """Number of answer tokens."""

    def __len__(self) -> int:
        return len(self.exact)


def score_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    token_budget: int = 16384,
) -> Answers:
    """Check how the model continues each prompt, against the answer one space after it.

    Args:
        token_budget: tokens per batch, padding included.

    Raises:
        RequestError: there are more prompts than answers or the reverse, or a pair is longer than
            the model's context.
        ModelError: the tokenizer is not a fast one, or the model has no output head.
    """
    if len(prompts) != len(answers):
        raise RequestError(
            f"{len(prompts)} prompts and {len(answers)} answers; give one answer per prompt"
        )
    pairs = [encode_prompt(tokenizer, p, target=a) for p, a in zip(prompts, answers)]
    return score_encoded(model, pairs, token_budget=token_budget)


def score_encoded(
    model: nn.Module,
    pairs: Sequence[EncodedPrompt],
    *,
    names: Sequence[str] = (),
    token_budget: int = 16384,
) -> Answers:
    """Check answers that are tokens already: the last ``n_target`` of each row.

    Args:
        names: what messages call the pairs.

    ``exact`` needs no generation.  Greedy decoding picks, at each step, the first choice given
    what it has written so far.  If the first choices under teacher forcing are the answer's tokens
    throughout, then the first step writes the answer's first token, so the second step sees just
    what teacher forcing showed it, and so on to the end.  If they are not, then at the first
    deviation greedy decoding has seen the same tokens and deviates too.

    Raises:
        RequestError: a row is longer than the model's context, or has no token before its answer.
        ModelError: the model has no output head.
    """
    lengths = [len(pair.ids) for pair in pairs]
    check_length(model, lengths, "shorten the prompt or its answer", names)
    for number, pair in enumerate(pairs):
        if pair.n_target and not pair.n_prompt:
            raise RequestError(f"prompt {number} has no tokens; give a text to answer")
    rows = sorted(_rows(pairs), key=lambda row: len(row.ids))
    n_vocab = layout_of(model).text_config.vocab_size
    widths = [_width(row, pairs, n_vocab, token_budget) for row in rows]
    predicted: list[list[int]] = [[] for _ in pairs]
    losses: list[list[float]] = [[] for _ in pairs]
    with quiet(model), torch.no_grad():
        for run in micro_batches(widths, token_budget, max_padding=MAX_PADDING):
            _read_answers(model, rows[run], pairs, predicted, losses)
    hits = [
        [choice == token for choice, token in zip(choices, pair.target_ids)]
        for choices, pair in zip(predicted, pairs)
    ]
    return Answers(
        exact=[bool(row) and all(row) for row in hits],
        token_accuracy=[_mean(row) for row in hits],
        predicted=predicted,
        nll=[_mean(row) for row in losses],
        n_tokens=[pair.n_target for pair in pairs],
    )


@dataclass(frozen=True)
class _Row:
    """Tokens that are run once, and the pairs whose answers are read from them."""

    ids: tuple[int, ...]
    members: list[int]


def _rows(pairs: Sequence[EncodedPrompt]) -> list[_Row]:
    """As few rows as answer all pairs.

    An answer's last token is predicted, never fed in.  In a causal model a row that begins another
    one gives nothing that the longer one does not, so the true and the new answer of a prompt
    share a row where both have one token.  In lexicographic order a row that begins any other
    begins its successor.
    """
    order = sorted(
        (index for index, pair in enumerate(pairs) if pair.n_target),
        key=lambda index: pairs[index].ids[:-1],
        reverse=True,
    )
    rows: list[_Row] = []
    before: tuple[int, ...] = ()  # the successor's tokens; its row is the last one
    for index in order:
        ids = pairs[index].ids[:-1]
        if rows and before[: len(ids)] == ids:
            rows[-1].members.append(index)
        else:
            rows.append(_Row(ids, [index]))
        before = ids
    return rows


def _read_answers(
    model: nn.Module,
    rows: Sequence[_Row],
    pairs: Sequence[EncodedPrompt],
    predicted: list[list[int]],
    losses: list[list[float]],
) -> None:
    """Run some rows; write first choice and -log p(token) at each answer token of their pairs.

    The output head is given only the hidden states that predict an answer token, each once;
    whatever the model does after its head (scaling, soft-capping) is done as usual.
    """
    batch = TokenBatch.of([row.ids for row in rows], layout_of(model).input_device)
    reads: dict[tuple[int, int], int] = {}  # (row, position): which of the logits
    wanted: list[tuple[int, int, int]] = []  # (pair, which of the logits, answer token)
    for number, row in enumerate(rows):
        for index in row.members:
            for position in range(pairs[index].n_prompt, len(pairs[index].ids)):
                which = reads.setdefault((number, position - 1), len(reads))
                wanted.append((index, which, pairs[index].ids[position]))
    at_row, at_position = torch.tensor(list(reads)).T

    with head_at(model, at_row, at_position):
        logits = model(**batch.model_inputs(), use_cache=False).logits[0].float()  # [reads, vocab]
    at, tokens = torch.tensor([entry[1:] for entry in wanted], device=logits.device).T
    nll = logits.logsumexp(dim=-1)[at] - logits[at, tokens]
    choices = logits.argmax(dim=-1)[at]
    for (index, *_), choice, loss in zip(wanted, choices.tolist(), nll.tolist()):
        predicted[index].append(choice)
        losses[index].append(loss)


def _width(row: _Row, pairs: Sequence[EncodedPrompt], n_vocab: int, token_budget: int) -> int:
    """What a row costs of the token budget: its tokens, or its share of the logits' budget."""
    logits = sum(pairs[index].n_target for index in row.members) * n_vocab
    return max(len(row.ids), math.ceil(logits / _LOGITS_BUDGET * token_budget))


def check_length(
    model: nn.Module, lengths: Sequence[int], way_out: str, names: Sequence[str] = ()
) -> None:
    """Raise :class:`RequestError` if a row is longer than the model's context.

    Args:
        names: what messages call the rows; "text 0" and so on if there are none.
    """
    limit = layout_of(model).max_positions
    if limit is not None and lengths and max(lengths) > limit:
        number = max(range(len(lengths)), key=lengths.__getitem__)
        raise RequestError(
            f"{names[number] if names else f'text {number}'} has {lengths[number]} tokens and the "
            f"model's context is {limit}; {way_out}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
