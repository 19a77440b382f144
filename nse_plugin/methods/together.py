"""Consolidation: all edits in effect solved jointly, as if they had come in one round.

A sequence of rounds writes each on what the rounds before it left.  The ledger keeps every
request's value z, so the edits can be solved again at any time: the weights are rewound, and one
round writes all of them, layer by layer, with keys read anew.  No value is optimised.  Edits that
were undone, or whose fact a later one edits, are not in it; the result depends on the set of edits,
not on the order in which they came: to the bit with the same case_ids, else up to rounding.

With ``repair_rounds``, edits that the model does not give afterwards get new values, optimised in
the model as it is then, and are written once more.  As long as some are missing, and up to that
many times, everything is then solved again with the values that there are now: what one repair
displaces, the next solve has a place for.  A solve after which no fewer are missing than before it
is the last, and is not kept.

The consolidation is a round of its own, or with ``consolidate_every`` every N-th round is one.  It
takes the place of the rounds before it, and undoing it makes those active again, to the bit.  This
is ours; it is in none of the papers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from nse_plugin.errors import SessionError
from nse_plugin.hparams import SpreadHparams
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.values import Values
from nse_plugin.methods.bookkeeping import rows_of
from nse_plugin.methods.repair import answered
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import ActiveRound, Outcome, RoundRecord
from nse_plugin.session.session import EditSession

log = logging.getLogger(__name__)

KnownEdit = tuple[EditRequest, torch.Tensor, Outcome]
"""A request, its value z [d_model], and its outcome until now."""
H = TypeVar("H", bound=SpreadHparams)
WriteRound = Callable[[Sequence[EditRequest], H, Values], RoundRecord]
"""Writes requests of known values as one round into model and ledger."""


def is_due(session: EditSession, hparams: SpreadHparams) -> bool:
    """Whether ``consolidate_every`` says that the next round is a consolidation."""
    every = hparams.consolidate_every
    return bool(every and len(session.ledger) and session.ledger.next_number() % every == 0)


def solve_together(
    session: EditSession,
    hparams: H,
    write: WriteRound[H],
    newest: RoundRecord | None = None,
) -> RoundRecord:
    """Solve all edits in effect jointly, in place of the active rounds.

    Args:
        newest: the last round, if it is to become the consolidation: under its number, and with
            the rounds before it inside.

    Raises:
        SessionError: no round is active; one has no values, or edited other layers; or the
            weights were changed outside the session.  All is as before.
    """
    edits = _in_effect(session.ledger.active(), hparams.layers)
    requests = [request for request, _, _ in edits]
    own = set()
    if newest is not None:
        own = {r.fact for r, o in zip(newest.requests, newest.outcomes) if o.is_new}
    number = session.ledger.next_number() if newest is None else newest.number
    before = answered(session, requests, hparams.token_budget).tolist()
    once = replace(hparams, repair_rounds=min(1, hparams.repair_rounds), repair_every=0)
    if hparams.repair_rounds:
        once = once.with_lambda_times(hparams.consolidation_weight)
    seconds = Counter(newest.seconds if newest else {})
    made: list[RoundRecord] = []
    with session.anew() as entries:
        h = _activations(session, edits, hparams)
        while len(made) < max(1, hparams.repair_rounds):
            with session.anew():  # the record made last gives way
                solved = write(requests, once, _values(edits, h))
            seconds.update(solved.seconds)
            if made and _missing(solved) >= _missing(made[-1]):
                _write_again(session, made[-1])
                break
            made.append(solved)
            if not _missing(solved):
                break
            edits = _edits_of(solved)
        if None in [outcome.answered for outcome in made[-1].outcomes]:  # no repair has asked
            after = answered(session, requests, hparams.token_budget).tolist()
        else:
            after = [bool(outcome.answered) for outcome in made[-1].outcomes]
        record = replace(
            made[-1],
            number=number,
            outcomes=_outcomes(made, zip(before, after), own),
            within=tuple(entries if newest is None else entries[:-1]),
            seconds=dict(seconds),
        )
        session.ledger.replace_last(record)
    return record


def _missing(record: RoundRecord) -> int:
    """How many of its edits the model does not give."""
    return sum(not outcome.answered for outcome in record.outcomes)


def _write_again(session: EditSession, record: RoundRecord) -> None:
    """Give model and ledger a round that gave way, in place of the active one; to the bit."""
    with session.anew():
        for write in record.writes:
            session.write(write)
        session.commit(record)


def _outcomes(
    made: Sequence[RoundRecord],
    given: Iterable[tuple[bool, bool]],
    own: Collection[tuple[str, str]],
) -> tuple[Outcome, ...]:
    """What became of each edit over the solves up to the one that is kept.

    Args:
        made: the record of each.
        given: of each edit, whether the model gave it before the consolidation and after.
        own: facts that came with the round.
    """
    return tuple(
        replace(
            last,
            repairs=sum(outcome.repairs for outcome in (*earlier, last)),
            answered_before_repair=(*earlier, last)[0].answered_before_repair,
            residual_before_repair=(*earlier, last)[0].residual_before_repair,
            answered_before_consolidation=None if request.fact in own else before,
            answered=after,
        )
        for request, (before, after), *earlier, last in zip(
            made[-1].requests, given, *(record.outcomes for record in made)
        )
    )


def _in_effect(entries: Sequence[ActiveRound], layers: list[int]) -> list[KnownEdit]:
    """The last edit of every fact, in an order that is that of no stream.

    Raises:
        SessionError: there is none, or a round has no values or edited other layers.
    """
    latest: dict[tuple[str, str], KnownEdit] = {}
    for record in (entry.read() for entry in entries):
        if record.z is None:
            raise SessionError(
                f"round {record.number} was written by {record.method}, which keeps no values, so "
                "it cannot be consolidated; undo it, or leave the rounds as they are"
            )
        if sorted(record.key_counts) != layers:
            raise SessionError(
                f"round {record.number} edited layers {sorted(record.key_counts)}, and layers is "
                f"{layers}; give the hyperparameters with which the rounds were written"
            )
        latest |= {edit[0].fact: edit for edit in _edits_of(record)}
    if not latest:
        raise SessionError("no round is active, so there is nothing to consolidate; edit first")
    return sorted(latest.values(), key=lambda edit: edit[0].digest())


def _edits_of(record: RoundRecord) -> list[KnownEdit]:
    """The edits of a round that has values."""
    assert record.z is not None
    return list(zip(record.requests, record.z, record.outcomes))


def _activations(
    session: EditSession, edits: Sequence[KnownEdit], hparams: SpreadHparams
) -> torch.Tensor:
    """h of the z-layer at the token that each edits [n, d_model], in the model as it is."""
    rows = rows_of(session, [request for request, _, _ in edits], hparams)
    moved = [
        request.case_id
        for (request, _, outcome), one in zip(edits, rows)
        if outcome.past_sink != one.past_sink
    ]
    if moved:
        log.warning(
            "%d edits were made at another token than avoid_sinks: %s chooses (cases %s); their "
            "values may not fit, so give the hyperparameters of their rounds",
            len(moved), str(hparams.avoid_sinks).lower(), ", ".join(map(str, moved[:5])),
        )  # fmt: skip
    return Lookups.of(session.layout, rows, hparams.token_budget).activations(hparams.layers[-1])


def _values(edits: Sequence[KnownEdit], h: torch.Tensor) -> Values:
    """What is known of the edits' values; h [n, d_model] is of the untouched model."""
    losses = [outcome.z_loss or 0.0 for _, _, outcome in edits]
    steps = [outcome.z_steps or 0 for _, _, outcome in edits]
    return Values(
        torch.stack([z for _, z, _ in edits]).to(h.device),
        h,
        torch.tensor(losses, dtype=h.dtype, device=h.device),
        torch.tensor(steps, device=h.device),
    )
