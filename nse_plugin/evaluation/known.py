"""Keep the facts that the untouched model knows, so that edits change existing knowledge.

A fact is known if greedy decoding gives the whole true answer to the record's own prompt.
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

_AT_ONCE = 64  # requests asked before the limit is checked


@dataclass
class Known:
    """The requests that were kept, and counts of those asked and kept."""

    requests: list[EditRequest] = field(default_factory=list)
    """In the order given, with the locality probes that the model answers correctly."""
    asked: dict[str, int] = field(default_factory=dict)
    """Requests asked, by prompt with ``{}``, which stands for the relation."""
    kept: dict[str, int] = field(default_factory=dict)
    """Requests kept, by the same prompts."""
    probes_asked: int = 0
    """Locality probes of the requests kept."""
    probes_kept: int = 0
    """Those that the model answers correctly."""

    def __str__(self) -> str:
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
    """Leave out the requests and locality probes whose true answers the model does not give.

    Args:
        limit: stop once this number of requests is kept.

    Raises:
        DataError: a request has no true answer, or none of the true answers is known.
        RequestError: a prompt is longer than the model's context.
    """
    for request in requests:
        if not request.ground_truth:
            raise DataError(
                f"request {request.case_id} has no true answer (ground_truth), so whether the "
                "model knows it cannot be tested; give data with true answers, or keep all requests"
            )
    asker = _Asker(model, tokenizer)
    known = Known()
    for start in range(0, len(requests), _AT_ONCE):
        if limit is not None and len(known.requests) >= limit:
            break
        _keep_some(asker, requests[start : start + _AT_ONCE], known, limit)
    if requests and not known.requests:
        raise DataError(
            f"the model gives none of the {len(requests)} true answers; "
            "take a larger model or other data, or keep all requests"
        )
    return known


def _keep_some(
    asker: _Asker, requests: Sequence[EditRequest], known: Known, limit: int | None
) -> None:
    """Add those of some requests that are known, up to the limit."""
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
    """Asks each question once, new ones in batches."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._right: dict[Probe, bool] = {}

    def right(self, probes: Iterable[Probe]) -> list[bool]:
        """Whether the model gives each answer."""
        probes = list(probes)
        new = [probe for probe in dict.fromkeys(probes) if probe not in self._right]
        if new:
            prompts, answers = [p.prompt for p in new], [p.answer for p in new]
            answered = score_answers(self._model, self._tokenizer, prompts, answers)
            self._right.update(zip(new, answered.exact))
        return [self._right[probe] for probe in probes]
