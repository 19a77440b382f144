"""Score answers to prompts, many (prompt, answer) pairs in a few batches.

Rows are padded here, with masks and positions that make padding invisible, so the tokenizer's
``padding_side`` and pad token do not matter.

There are three measures of an answer:

* *exact*: greedy decoding writes the whole answer, token for token;
* *token accuracy*: the share of answer tokens that are the model's first choice given all tokens
  before them (teacher forcing).  This is EasyEdit's ``rewrite_acc``;
* *nll*: the negative log-likelihood, which changes before the first choice does.
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
    TOKEN_BUDGET,
    EncodedPrompt,
    TokenBatch,
    alike_batches,
    encode_prompt,
)
from nse_plugin.printable import shortened

_LOGITS_BUDGET = 2**28  # float32 numbers of logits held at once: 1 GiB


@dataclass(frozen=True)
class Answers:
    """Scores of answers, one entry per (prompt, answer) pair, in the order given."""

    exact: list[bool]
    """Greedy decoding writes the whole answer."""
    token_accuracy: list[float]
    """Share of answer tokens that are the first choice under teacher forcing; NaN if empty."""
    predicted: list[list[int]]
    """First choice at each answer token, under teacher forcing."""
    nll: list[float]
    """Mean over the answer's tokens of -log p(token | all before it); NaN if empty."""
    n_tokens: list[int]
    """Number of answer tokens."""


def score_answers(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
) -> Answers:
    """Score the answer to each prompt, one space after it.

    Raises:
        RequestError: prompts and answers differ in number, or a pair is longer than the model's
            context.
        ModelError: the tokenizer is not a fast one, or the model has no output head.
    """
    if len(prompts) != len(answers):
        raise RequestError(
            f"{len(prompts)} prompts and {len(answers)} answers; give one answer per prompt"
        )
    pairs = [encode_prompt(tokenizer, p, target=a) for p, a in zip(prompts, answers)]
    return score_encoded(model, pairs)


def score_encoded(
    model: nn.Module,
    pairs: Sequence[EncodedPrompt],
    *,
    names: Sequence[str] = (),
    token_budget: int = TOKEN_BUDGET,
) -> Answers:
    """Score tokenised answers: the last ``n_target`` tokens of each row.

    ``exact`` needs no generation.  As long as the first choices under teacher forcing are the
    answer's tokens, greedy decoding sees the same tokens and writes the same.  At the first
    difference it has still seen the same tokens, and differs too.

    Args:
        names: of the pairs, for messages.
        token_budget: tokens per batch, padding included.

    Raises:
        RequestError: a row is longer than the model's context, or has no token before its answer.
        ModelError: the model has no output head.
    """
    lengths = [len(pair.ids) for pair in pairs]
    check_length(model, lengths, "shorten the prompt or its answer", names)
    for number, pair in enumerate(pairs):
        if pair.n_target and not pair.n_prompt:
            name = names[number] if names else f"text {number}"
            raise RequestError(f"{name} has no tokens before its answer; give a text to answer")
    rows = sorted(_rows(pairs), key=lambda row: len(row.ids))
    n_vocab = layout_of(model).text_config.vocab_size
    widths = [len(row.ids) for row in rows]
    sizes = [_size(row, pairs, n_vocab, token_budget) for row in rows]
    predicted: list[list[int]] = [[] for _ in pairs]
    losses: list[list[float]] = [[] for _ in pairs]
    with quiet(model), torch.no_grad():
        for run in alike_batches(range(len(rows)), widths, sizes, token_budget):
            _read_answers(model, [rows[i] for i in run], pairs, predicted, losses)
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
    """A row of tokens and the indices of the pairs whose answers are read from it."""

    ids: tuple[int, ...]
    members: list[int]


def _rows(pairs: Sequence[EncodedPrompt]) -> list[_Row]:
    """The fewest rows from which all answers can be read.

    An answer's last token is predicted, never fed in.  In a causal model, a row that is a prefix of
    another is not needed, so the true and the new answer of a prompt share a row if both have one
    token.  In lexicographic order, a row that is a prefix of any other is one of its successor.
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
    """Run some rows; append first choice and -log p(token) of each answer token of their pairs.

    The output head gets only the hidden states that predict an answer token, each once.
    """
    batch = TokenBatch.of([row.ids for row in rows], layout_of(model).input_device)
    reads: dict[tuple[int, int], int] = {}  # (row, position): index of its logits
    wanted: list[tuple[int, int, int]] = []  # (pair, index of the logits, answer token)
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


def _size(row: _Row, pairs: Sequence[EncodedPrompt], n_vocab: int, token_budget: int) -> int:
    """The part of the token budget that a row takes, by its tokens or by its logits."""
    logits = sum(pairs[index].n_target for index in row.members) * n_vocab
    return max(len(row.ids), math.ceil(logits / _LOGITS_BUDGET * token_budget))


def check_length(
    model: nn.Module, lengths: Sequence[int], way_out: str, names: Sequence[str] = ()
) -> None:
    """Raise :class:`RequestError` if a row is longer than the model's context.

    Args:
        names: of the rows, for messages; by default "text 0" and so on.
    """
    limit = layout_of(model).max_positions
    if limit is not None and lengths and max(lengths) > limit:
        number = max(range(len(lengths)), key=lengths.__getitem__)
        name = shortened(names[number]) if names else f"text {number}"
        raise RequestError(
            f"{name} has {lengths[number]} tokens and the model's context is {limit}; {way_out}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
