"""What is measured during a run, and when.

Before the first round, the untouched model's answers to all probes are frozen.  Each round is
scored right after it is written; every N rounds and at the end all earlier edits are (a row of the
retention matrix per round edited, a column per round tested), and the model as a whole.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from nse_plugin.evaluation.metrics import Answered, ask, summarise
from nse_plugin.evaluation.model_state import (
    ability,
    direction_drift,
    first_words,
    fluency,
    free_generation,
    perplexity,
    relative_change,
    run_harness,
)
from nse_plugin.evaluation.settings import Measurement, Protocol
from nse_plugin.marks import fact_mark, mark
from nse_plugin.requests import EditRequest
from nse_plugin.session.tables import key_share


@dataclass(frozen=True)
class Edit:
    """An edit that was made."""

    round: int
    request: EditRequest
    frozen: Answered
    """The untouched model's answers to its probes."""


class History:
    """The edits made so far, numbered from 0, and which of them a later one superseded.

    Only numbers and hashes are kept in memory, some hundred bytes per edit; requests and answers
    are read when needed.

    Args:
        read: returns a round's requests and the untouched model's answers to their probes.
    """

    def __init__(self, read: Callable[[int], tuple[Sequence[EditRequest], Sequence[Answered]]]):
        self._read = read
        self._rounds = array("q")  # of each edit
        self._replaces = array("q")  # the edit that it superseded, or -1
        self._superseded = bytearray()  # 1 if another superseded it
        self._latest: dict[bytes, int] = {}  # by fact
        self._texts = _Texts()

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, number: int, requests: Sequence[EditRequest]) -> int:
        """Add a round; returns how many earlier edits it supersedes."""
        superseded = 0
        for request in requests:
            fact = fact_mark(request.fact)
            replaced = self._latest.get(fact, -1)
            if replaced >= 0:
                self._superseded[replaced] = 1
                superseded += 1
            self._latest[fact] = len(self)
            self._rounds.append(number)
            self._replaces.append(replaced)
            self._superseded.append(0)
            self._texts.add(request.text, *request.rephrase_prompts)
        return superseded

    def take_back(self, number: int) -> None:
        """Forget the last round; what it superseded is in effect again."""
        if not self._rounds or self._rounds[-1] != number:
            return
        for request in reversed(self._read(number)[0]):
            self._rounds.pop()
            self._superseded.pop()
            replaced, fact = self._replaces.pop(), fact_mark(request.fact)
            if replaced >= 0:
                self._superseded[replaced] = 0
                self._latest[fact] = replaced
            else:
                del self._latest[fact]
            self._texts.remove(request.text, *request.rephrase_prompts)

    def in_effect(self) -> list[int]:
        """Edits that no later one superseded, in the order made."""
        return [edit for edit, gone in enumerate(self._superseded) if not gone]

    def of_round(self, number: int) -> range:
        """The edits of a round."""
        return range(bisect_left(self._rounds, number), bisect_right(self._rounds, number))

    def edits(self, chosen: Sequence[int]) -> list[Edit]:
        """These edits with requests and frozen answers; ``chosen`` is in the order made."""
        found = []
        for number, of_it in groupby(chosen, key=self._rounds.__getitem__):
            first = self.of_round(number).start
            requests, frozen = self._read(number)
            found += [Edit(number, requests[e - first], frozen[e - first]) for e in of_it]
        return found

    def edited_texts(self) -> Container[str]:
        """The prompts of all edits, paraphrases included."""
        return self._texts


class _Texts:
    """A multiset of texts of which only hashes are kept."""

    def __init__(self) -> None:
        self._counts = Counter[bytes]()

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._counts[mark(text)] > 0

    def add(self, *texts: str) -> None:
        self._counts.update(map(mark, texts))

    def remove(self, *texts: str) -> None:
        self._counts.subtract(map(mark, texts))


@dataclass
class MeasuredModel:
    """The model to measure, in the state after a round."""

    model: nn.Module
    tokenizer: Any
    originals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Original values of the edited parameters, by name."""
    keys: Callable[[int], Mapping[int, torch.Tensor]] = lambda _limit: {}
    """Returns at most N previous keys [d_ff, n] by layer, for methods that have them."""
    held_out: Sequence[str] = ()
    """Texts for the perplexity."""
    untouched: bool = False
    """Whether no round has changed the model, so that the frozen answers are its answers."""
    base: Measurement = field(default_factory=Measurement)
    """What :func:`measure_model` found of the untouched model, if it has been measured."""
    _answers: dict[str, Answered] = field(default_factory=dict)  # by digest of the request

    def answers(self, edits: Sequence[Edit], protocol: Protocol) -> list[Answered]:
        """Answers to the edits' probes; each edit is asked once."""
        if self.untouched:
            return [edit.frozen for edit in edits]
        digests = [edit.request.digest() for edit in edits]
        new = {
            digest: edit.request
            for digest, edit in zip(digests, edits)
            if digest not in self._answers
        }
        asked = ask(self.model, self.tokenizer, list(new.values()), protocol)
        self._answers.update(zip(new, asked))
        return [self._answers[digest] for digest in digests]


def measure_round(
    protocol: Protocol, measured: MeasuredModel, history: History, number: int
) -> dict[str, Any]:
    """Scores of one round's edits after it, and of the untouched model (``before``)."""
    edits = history.edits(history.of_round(number))
    answered = measured.answers(edits, protocol)
    frozen = [edit.frozen for edit in edits]
    before = summarise(frozen, frozen).items()
    return {
        **summarise(answered, frozen, history.edited_texts()),
        "before": {name: value for name, value in before if not name.startswith("locality")},
    }


def measure_all(
    protocol: Protocol, measured: MeasuredModel, history: History, number: int
) -> Measurement:
    """Everything that is measured every N rounds and at the end, except ``answers``."""
    result: Measurement = {"tested": number, "in_effect": len(history.in_effect())}
    if sample := _sample(history, protocol.retention, protocol.seed, number):
        answered = measured.answers(sample, protocol)
        texts = history.edited_texts()
        result |= _retention(sample, answered, texts)
        if protocol.each:
            result["each"] = _each(sample, answered, texts)
    model, tokenizer = measured.model, measured.tokenizer
    if sample := _sample(history, protocol.generation, protocol.seed, number):
        requests, longest = [edit.request for edit in sample], protocol.generation_tokens
        result["generation"] = free_generation(
            model, tokenizer, requests, longest, judged=protocol.judge
        )
    if sample := _sample(history, protocol.fluency, protocol.seed, number):
        result["fluency"] = fluency(model, tokenizer, [edit.request for edit in sample])
    result |= measure_model(protocol, measured)
    now = dict(model.named_parameters())
    if protocol.weights:
        result["relative_change"] = {
            name: relative_change(original, now[name])
            for name, original in measured.originals.items()
        }
    if protocol.directions:
        result["direction_drift"] = {
            name: direction_drift(original, now[name], protocol.directions)
            for name, original in measured.originals.items()
        }
    if protocol.key_space:
        result["key_share"] = {
            str(layer): key_share(keys, protocol.key_space)
            for layer, keys in measured.keys(protocol.key_space).items()
        }
    return result


def measure_model(protocol: Protocol, measured: MeasuredModel) -> Measurement:
    """What is measured of the model as a whole, independent of the edits."""
    if measured.untouched and measured.base:
        return measured.base
    result: Measurement = {}
    texts = list(measured.held_out[: protocol.perplexity])
    if texts:
        result["perplexity"] = perplexity(measured.model, measured.tokenizer, texts)
    if protocol.ability:
        result["ability"] = ability(measured.model, measured.tokenizer, protocol.ability)
    if protocol.harness_tasks:
        result["harness"] = run_harness(
            measured.model, measured.tokenizer, protocol.harness_tasks, protocol.harness_limit
        )
    return result


def _retention(
    sample: Sequence[Edit], answered: Sequence[Answered], texts: Container[str]
) -> Measurement:
    by_round: dict[int, list[int]] = {}
    for index, edit in enumerate(sample):
        by_round.setdefault(edit.round, []).append(index)

    def scores(which: Sequence[int]) -> dict[str, Any]:
        return summarise([answered[i] for i in which], [sample[i].frozen for i in which], texts)

    return {
        "retention": [{"edited": number, **scores(which)} for number, which in by_round.items()],
        "all": scores(range(len(sample))),
    }


def _each(
    sample: Sequence[Edit], answered: Sequence[Answered], texts: Container[str]
) -> list[dict[str, Any]]:
    return [
        {"round": edit.round, "case_id": edit.request.case_id}
        | summarise([now], [edit.frozen], texts)
        for edit, now in zip(sample, answered)
    ]


def measure_answers(
    protocol: Protocol, measured: MeasuredModel, history: History, number: int
) -> Measurement:
    """``answers``: per edit tested, whether it is in effect, and the text that the model gives.

    Only measured at the end of a run, since generating text takes longer than scoring.
    """
    edits = _sample(history, protocol.answers, protocol.seed, number)
    if not edits:
        return {}
    now = measured.answers(edits, protocol)
    prompts, targets = zip(*((edit.request.text, edit.request.target_new) for edit in edits))
    texts = first_words(measured.model, measured.tokenizer, prompts, targets)
    return {
        "answers": [
            {
                "round": edit.round,
                "case_id": edit.request.case_id,
                "exact": answered["rewrite"][0]["exact"],
                "answer": text,
            }
            for edit, answered, text in zip(edits, now, texts)
        ]
    }


def _sample(history: History, size: int, seed: int, number: int) -> list[Edit]:
    """At most ``size`` edits that are in effect, in the order made, drawn by seed and round."""
    edits = history.in_effect()
    if len(edits) > size:
        edits = sorted(random.Random(f"{seed}-{number}").sample(edits, size))
    return history.edits(edits)
