"""Questions to a model and its scored answers, from which all scores are computed.

One pass answers all questions of all records.  :mod:`nse_plugin.evaluation.metrics` computes our
own scores from the answers, :mod:`nse_plugin.evaluation.edit_quality` those of EasyEdit.

What cannot be measured (an answer without a token has no loss) is None here and in files, never
zero, and means leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nse_plugin.model.answers import score_encoded
from nse_plugin.model.prompts import EncodedPrompt, encode_prompt


@dataclass(frozen=True)
class Question:
    """A prompt and the answer with which the model's is compared."""

    record: int
    """Index of the request or record that the question is about."""
    group: str
    """One of those in :mod:`.settings`: ``GROUPS`` and ``OPTIONAL_GROUPS``."""
    prompt: str
    answer: str
    other: str | None = None
    """A second answer to compare likelihoods with: the true one, or for locality the target."""
    kind: str = ""
    """The kind of probe, for the groups locality and portability."""
    in_chat: bool = False
    """Whether the prompt is a rendered chat, which has its special tokens already."""


@dataclass(frozen=True)
class ScoredAnswer:
    """A model's scores on a question; see :class:`nse_plugin.model.answers.Answers`."""

    exact: bool
    accuracy: float | None
    nll: float | None
    n_tokens: int
    predicted: list[int]
    nll_other: float | None = None


Encode = Callable[[Any, Question, str], EncodedPrompt]
"""Tokens of a question's prompt with an answer: ``encode(tokenizer, question, answer)``."""


def _as_in_editing(tokenizer: Any, question: Question, answer: str) -> EncodedPrompt:
    return encode_prompt(tokenizer, question.prompt, target=answer)


def put_questions(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    names: Sequence[Any],
    *,
    encode: Encode = _as_in_editing,
) -> list[ScoredAnswer]:
    """Ask all questions in a few batches; a prompt runs once for all answers read from it.

    Args:
        names: of the records, for messages.
        encode: how prompt and answer become tokens.

    Raises:
        RequestError: a question is longer than the model's context, or has no prompt.
    """
    compared = [question for question in questions if question.other is not None]
    pairs = [encode(tokenizer, question, question.answer) for question in questions]
    pairs += [encode(tokenizer, question, str(question.other)) for question in compared]
    scores = score_encoded(
        model,
        pairs,
        names=[f"{q.group} of case {names[q.record]}" for q in (*questions, *compared)],
    )
    others = iter(scores.nll[len(questions) :])
    return [
        ScoredAnswer(
            exact=scores.exact[number],
            accuracy=finite(scores.token_accuracy[number]),
            nll=finite(scores.nll[number]),
            n_tokens=scores.n_tokens[number],
            predicted=scores.predicted[number],
            nll_other=None if question.other is None else finite(next(others)),
        )
        for number, question in enumerate(questions)
    ]


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of no value."""
    return sum(values) / len(values) if values else None
