"""Keep the facts that the untouched model gives right, so that edits change something it knows.

A fact is known where greedy decoding writes the whole true answer after the record's own prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nse_plugin.errors import DataError
from nse_plugin.model.answers import score_answers
from nse_plugin.requests import EditRequest, Probe

_AT_ONCE = 64  # requests asked before the limit is looked at


@dataclass
class Known:
    """The requests that were kept, and how many of how many those are."""

    requests: list[EditRequest] = field(default_factory=list)
    """In the order given, with those of their locality probes that the model answers right."""
    asked: dict[str, int] = field(default_factory=dict)
    """Requests asked, by prompt with ``{}``: one relation of a data set is one prompt or a few."""
    kept: dict[str, int] = field(default_factory=dict)
    """Requests kept, by the same prompts."""
    probes_asked: int = 0
    """Locality probes of the requests kept."""
    probes_kept: int = 0
    """Those that the model answers right."""

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"the untouched model knows {len(self.requests)} of {sum(self.asked.values())} true "
            f"answers, and {self.probes_kept} of {self.probes_asked} answers to locality prompts; "
            "only these are used"
        )

    def shares(self) -> list[tuple[str, int, int]]:
        """(prompt, kept, asked), the largest share first."""
        rows = [(prompt, self.kept.get(prompt, 0), asked) for prompt, asked in self.asked.items()]
        return sorted(rows, key=lambda row: (-row[1] / row[2], row[0]))


def keep_known(
    model: nn.Module, tokenizer: Any, requests: Sequence[EditRequest], *, limit: int | None = None
) -> Known:
    """Leave out the requests whose true answer the model does not give, and such locality probes.

    Args:
        limit: stop once this number of requests is kept.

    Raises:
        DataError: a request has no true answer, or none of the true answers is known.
        RequestError: a prompt is longer than the model's context.
    """
    for request in requests:
        if not request.ground_truth:
            raise DataError(
                f"request {request.case_id} has no true answer (ground_truth), so nobody can tell "
                "whether the model knows it; give data with true answers, or keep all requests"
            )
    asker = _Asker(model, tokenizer)
    known = Known()
    for start in range(0, len(requests), _AT_ONCE):
        if limit is not None and len(known.requests) >= limit:
            break
        some = requests[start : start + _AT_ONCE]
        _keep_some(asker, some, known, limit)
    if requests and not known.requests:
        raise DataError(
            f"the model gives none of the {len(requests)} true answers; "
            "take a larger model or other data, or keep all requests"
        )
    return known


def _keep_some(
    asker: _Asker, requests: Sequence[EditRequest], known: Known, limit: int | None
) -> None:
    """Enter the known ones among some requests, up to the limit."""
    own = [Probe(request.text, str(request.ground_truth)) for request in requests]
    right = asker.right(own)
    room = len(requests) if limit is None else limit - len(known.requests)
    kept: list[EditRequest] = []
    for request, is_right in zip(requests, right):
        if len(kept) == room:
            break
        known.asked[request.prompt] = known.asked.get(request.prompt, 0) + 1
        if is_right:
            known.kept[request.prompt] = known.kept.get(request.prompt, 0) + 1
            kept.append(request)
    asker.right(probe for request in kept for probe in _locality(request))
    for request in kept:
        locality = {
            kind: tuple(probe for probe, ok in zip(probes, asker.right(probes)) if ok)
            for kind, probes in request.locality.items()
        }
        known.probes_asked += len(_locality(request))
        known.probes_kept += sum(map(len, locality.values()))
        still_there = {kind: probes for kind, probes in locality.items() if probes}
        known.requests.append(dataclasses.replace(request, locality=still_there))


def _locality(request: EditRequest) -> list[Probe]:
    return [probe for probes in request.locality.values() for probe in probes]


class _Asker:
    """Asks each question once."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._right: dict[Probe, bool] = {}

    def right(self, probes: Iterable[Probe]) -> list[bool]:
        """Whether the model gives each answer; new questions are asked together."""
        probes = list(probes)
        new = [probe for probe in dict.fromkeys(probes) if probe not in self._right]
        if new:
            prompts, answers = [p.prompt for p in new], [p.answer for p in new]
            answered = score_answers(self._model, self._tokenizer, prompts, answers)
            self._right.update(zip(new, answered.exact))
        return [self._right[probe] for probe in probes]
