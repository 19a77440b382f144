"""The order of a stream of requests, and its division into rounds.

A later edit of a fact supersedes the earlier one, so the two never share a round.
A request whose target is in effect already is a repeat: it is counted and not written again.  In a
list, its questions are added to those of the edit in effect; in a stream that edit is written
already, so they are not asked, and a warning says so.  Requests are drawn from a stream only when a
round needs them.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from nse_plugin.errors import RequestError, did_you_mean
from nse_plugin.marks import fact_mark, mark
from nse_plugin.requests import EditRequest, Probes, each_as_request

log = logging.getLogger(__name__)

Order = Literal["given", "shuffled", "grouped"]
_LOOKAHEAD = 8
"""Number of rounds whose requests may be drawn ahead."""


@dataclass(frozen=True)
class PlannedRound:
    """Requests that are written together."""

    number: int
    """Counted from 1."""
    requests: tuple[EditRequest, ...]
    repeats: int
    """Requests left out since the round before, because their target was in effect already."""


class Rounds:
    """Cuts a list or an iterator of requests (or EasyEdit's dicts) into rounds.

    Args:
        order: ``given``; ``shuffled`` by the seed (an iterator in windows of 8 rounds); or
            ``grouped``: as given, but a request whose subject is in the round already waits for
            the next round; the requests of at most 8 rounds wait.

    Raises:
        RequestError: an argument is out of range, or a request cannot be read.
    """

    def __init__(
        self,
        requests: Iterable[EditRequest | Mapping[str, Any]],
        round_size: int,
        order: str = "given",
        seed: int = 0,
    ) -> None:
        if round_size < 1:
            raise RequestError(f"round_size is {round_size}; give a number of edits above 0")
        if order not in get_args(Order):
            raise RequestError(
                f"order is {order!r}{did_you_mean(order, get_args(Order))}; "
                f"give one of {', '.join(get_args(Order))}"
            )
        self.repeats = 0
        """Repeats seen so far."""
        self._size, self._order, self._seed = round_size, order, seed
        self._lookahead = _LOOKAHEAD * round_size
        self._stream = requests

    def __iter__(self) -> Iterator[PlannedRound]:
        counted = self.repeats = 0
        cut = self._grouped if self._order == "grouped" else self._cut
        for number, requests in enumerate(cut(), start=1):
            yield PlannedRound(number, tuple(requests), self.repeats - counted)
            counted = self.repeats

    def _cut(self) -> Iterator[list[EditRequest]]:
        taken: dict[str, EditRequest] = {}
        for request in self._fresh():
            if request.fact in taken:  # it supersedes one of this round, so the round ends here
                yield list(taken.values())
                taken = {}
            taken[request.fact] = request
            if len(taken) == self._size:
                yield list(taken.values())
                taken = {}
        if taken:
            yield list(taken.values())

    def _grouped(self) -> Iterator[list[EditRequest]]:
        """Rounds of different subjects; a waiting request goes before later ones of its subject,
        or of its fact if two requests cut their subject out of one text differently."""
        stream, waiting = self._fresh(), deque[EditRequest]()
        while True:
            taken: list[EditRequest] = []
            rest = deque[EditRequest]()
            met: set[tuple[str, str]] = set()  # subjects and facts of both
            while waiting or (len(taken) < self._size and len(rest) < self._lookahead):
                request = waiting.popleft() if waiting else next(stream, None)
                if request is None:
                    break
                its = {("subject", request.subject.casefold()), ("fact", request.fact)}
                fits = len(taken) < self._size and not its & met
                (taken if fits else rest).append(request)
                met |= its
            if not taken:
                return
            waiting = rest
            yield taken

    def _fresh(self) -> Iterator[EditRequest]:
        """Requests in order, without repeats."""
        if isinstance(self._stream, Sequence):
            yield from self._fresh_of_list()
            return
        in_effect: dict[bytes, bytes] = {}  # marks of fact and answer: a stream can be long
        unasked = 0
        for request in self._ordered():
            fact, target = fact_mark(request.fact), mark(request.target_new)
            if in_effect.get(fact) == target:
                self.repeats += 1
                unasked += bool(request.locality or request.portability or request.forms)
                continue
            in_effect[fact] = target
            yield request
        if unasked:
            log.warning("the questions of %d repeats in the stream were not asked", unasked)

    def _fresh_of_list(self) -> Iterator[EditRequest]:
        kept: list[EditRequest] = []
        repeats_before: list[int] = []
        in_effect: dict[str, int] = {}  # by fact: place in kept
        repeats = 0
        for request in self._ordered():
            place = in_effect.get(request.fact)
            if place is not None and kept[place].target_new == request.target_new:
                repeats += 1
                kept[place] = with_probes_of(kept[place], request)
                continue
            in_effect[request.fact] = len(kept)
            kept.append(request)
            repeats_before.append(repeats)
        for request, self.repeats in zip(kept, repeats_before):
            yield request
        self.repeats = repeats

    def _ordered(self) -> Iterator[EditRequest]:
        read = each_as_request(self._stream)
        if self._order != "shuffled":
            yield from read
            return
        draw = random.Random(self._seed)
        known = isinstance(self._stream, Sequence)
        window: list[EditRequest] = []
        for request in read:
            window.append(request)
            if not known and len(window) == self._lookahead:
                draw.shuffle(window)
                yield from window
                window = []
        draw.shuffle(window)
        yield from window


def with_probes_of(request: EditRequest, other: EditRequest) -> EditRequest:
    """The request with the probes of another request for the same edit.

    Those of locality and portability get kinds of their own, so that a bound on the probes of each
    kind does not leave them out.
    """

    def both(own: Probes, others: Probes) -> Probes:
        known = {probe for group in own.values() for probe in group}
        new = {
            f"{kind} of case {other.case_id}": tuple(p for p in group if p not in known)
            for kind, group in others.items()
        }
        return {**own, **{k: (*own.get(k, ()), *group) for k, group in new.items() if group}}

    return replace(
        request,
        rephrase_prompts=tuple(dict.fromkeys(request.rephrase_prompts + other.rephrase_prompts)),
        locality=both(request.locality, other.locality),
        portability=both(request.portability, other.portability),
        forms={
            kind: tuple(dict.fromkeys((*request.forms.get(kind, ()), *other.forms.get(kind, ()))))
            for kind in dict.fromkeys((*request.forms, *other.forms))
        },
    )
