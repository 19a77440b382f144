"""Keep the facts that the untouched model knows, so that edits change existing knowledge.

A fact is known if greedy decoding gives the whole true answer to the record's own prompt.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
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
    asked: Counter[str] = field(default_factory=Counter)
    """Requests asked, by prompt with ``{}``, which stands for the relation."""
    kept: Counter[str] = field(default_factory=Counter)
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
        rows = [(prompt, self.kept[prompt], asked) for prompt, asked in self.asked.items()]
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
    known = Known()
    right: dict[Probe, bool] = {}  # each question is asked once

    def ask(probes: Iterable[Probe]) -> None:
        new = [probe for probe in dict.fromkeys(probes) if probe not in right]
        if new:
            prompts, answers = [p.prompt for p in new], [p.answer for p in new]
            right.update(zip(new, score_answers(model, tokenizer, prompts, answers).exact))

    for start in range(0, len(requests), _AT_ONCE):
        room = len(requests) if limit is None else limit - len(known.requests)
        if room <= 0:
            break
        some = requests[start : start + _AT_ONCE]
        own = [Probe(request.text, str(request.ground_truth)) for request in some]
        ask(own)
        kept: list[EditRequest] = []
        for request, probe in zip(some, own):
            if len(kept) == room:
                break
            known.asked[request.prompt] += 1
            if right[probe]:
                known.kept[request.prompt] += 1
                kept.append(request)
        ask(probe for request in kept for probe in _locality(request))
        for request in kept:
            locality = {
                kind: tuple(filter(right.get, probes)) for kind, probes in request.locality.items()
            }
            known.requests.append(dataclasses.replace(request, locality=locality))
            known.probes_asked += len(_locality(request))
            known.probes_kept += len(_locality(known.requests[-1]))
    if requests and not known.requests:
        raise DataError(
            f"the model gives none of the {len(requests)} true answers; "
            "take a larger model or other data, or keep all requests"
        )
    return known


def _locality(request: EditRequest) -> list[Probe]:
    return [probe for probes in request.locality.values() for probe in probes]
