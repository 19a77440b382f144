"""Default probes for hand-written edits: old answers, paraphrases and neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from nse_plugin.data.facts import others_like, with_paraphrases
from nse_plugin.data.schema_fields import NEIGHBORHOOD
from nse_plugin.errors import RequestError
from nse_plugin.model.answers import score_answers
from nse_plugin.model.chat import words_around
from nse_plugin.model.generation import greedy_text
from nse_plugin.requests import EditRequest, Probe

_N_NEIGHBOURS = 2
MOST_FACTS = 10
"""Facts of one round for which neighbours are looked for; each takes a dozen questions."""
_ENDS = ("\n", ".", ",", ";", "<", "。", "，", "、", "；")


def with_questions(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    neighbours: Sequence[str] = (),
    edited: Iterable[str] = (),
) -> list[EditRequest]:
    """Requests completed with an old answer, paraphrases and neighbours where they have none.

    The old answers and those of the neighbours are the model's.

    Args:
        model: the untouched one.
        neighbours: prompts whose answers must not change, for every request.
        edited: subjects that cannot be neighbours, besides those of the requests.

    Raises:
        RequestError: the model has no answer to a neighbour.
    """
    subjects = {*edited, *(request.subject for request in requests)}
    unknown = [request.text for request in requests if request.ground_truth is None]
    old = dict(zip(unknown, _answers(model, tokenizer, unknown)))
    given = _answers(model, tokenizer, neighbours)
    for text, answer in zip(neighbours, given):
        if not answer:
            raise RequestError(
                f"neighbour {text!r}: the untouched model writes no word after it, so a change of "
                "its answer could not be seen; give a text that ends right before an answer"
            )
    probes = tuple(map(Probe, neighbours, given))
    found = []
    for request in map(with_paraphrases, requests):
        if request.ground_truth is None:
            request = replace(request, ground_truth=old[request.text] or None)
        beside = probes
        if not (beside or request.locality) and len(requests) <= MOST_FACTS:
            beside = _surest(model, tokenizer, request, others_like(request.subject, subjects))
        if beside:
            beside = (*request.locality.get(NEIGHBORHOOD, ()), *beside)
            request = replace(request, locality={**request.locality, NEIGHBORHOOD: beside})
        found.append(request)
    return found


def _surest(
    model: nn.Module, tokenizer: Any, request: EditRequest, subjects: Sequence[str]
) -> tuple[Probe, ...]:
    """The request's question about those subjects of whose answer the model is surest."""
    texts = [replace(request, subject=subject).text for subject in subjects]
    texts = [text[:1].upper() + text[1:] for text in texts]
    answers = _answers(model, tokenizer, texts)
    pairs = [(text, answer) for text, answer in zip(texts, answers) if answer]
    if not pairs:
        return ()
    unlikely = score_answers(model, tokenizer, *map(list, zip(*pairs))).nll
    order = sorted(range(len(pairs)), key=unlikely.__getitem__)
    return tuple(Probe(*pairs[index]) for index in order[:_N_NEIGHBOURS])


def _answers(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The first words that the model writes after each text."""
    tokens = 1 + words_around(tokenizer)
    found = greedy_text(model, tokenizer, texts, tokens, stop=_ENDS) if texts else []
    return [answer.strip() for answer in found]
