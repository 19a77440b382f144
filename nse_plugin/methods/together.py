"""Consolidation: all edits in effect solved together, as if they had come in one round.

A sequence of rounds writes each on what the rounds before it left.  The ledger keeps every
request's value z, so the edits can be solved again at any time: the weights are rewound, and one
round writes all of them, layer by layer, with keys read anew.  No value is optimised, unless a
repair follows.  Edits that were undone, or whose fact a later one edits, are not in it; the result
depends on the set of edits, not on the order in which they came.

The consolidation is a round of its own, or with ``consolidate_every`` every N-th round is one.  It
takes the place of the rounds before it, and undoing it makes those active again, to the bit.  This
is ours; it is in none of the papers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from nse_plugin.errors import SessionError
from nse_plugin.hparams import SpreadHparams
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import Values
from nse_plugin.methods.repair import answered
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import ActiveRound, Outcome, RoundRecord
from nse_plugin.session.session import EditSession

Edit = tuple[EditRequest, torch.Tensor, Outcome]
"""A request, its value z [d_model], and its outcome until now."""
Write = Callable[[Sequence[EditRequest], Values], RoundRecord]
"""Writes requests of known values as one round into model and ledger."""


def is_due(session: EditSession, hparams: SpreadHparams) -> bool:
    """Whether ``consolidate_every`` says that the next round is a consolidation."""
    every = hparams.consolidate_every
    return bool(every and len(session.ledger) and session.ledger.next_number() % every == 0)


def solve_together(
    session: EditSession,
    hparams: SpreadHparams,
    write: Write,
    newest: RoundRecord | None = None,
) -> RoundRecord:
    """Solve all edits in effect together, in the place of the active rounds.

    Args:
        newest: the last round, if it is to become the consolidation: under its number, and with
            the rounds before it inside.

    Raises:
        SessionError: no round is active; one has no values, or edited other layers; or somebody
            else changed the weights.  All is as before.
    """
    edits = _in_effect(session.ledger.active(), hparams.layers)
    requests = [request for request, _, _ in edits]
    own = set()
    if newest is not None:
        own = {r.fact for r, o in zip(newest.requests, newest.outcomes) if o.is_new}
    number = session.ledger.next_number() if newest is None else newest.number
    before = answered(session, requests, hparams.token_budget).tolist()
    with session.anew() as entries:
        record = write(requests, _values(session, hparams, edits))
        after = [outcome.answered for outcome in record.outcomes]  # a repair has asked
        if None in after:
            after = answered(session, requests, hparams.token_budget).tolist()
        outcomes = tuple(
            replace(
                outcome,
                answered_before_consolidation=None if request.fact in own else was,
                answered=now,
            )
            for request, outcome, was, now in zip(requests, record.outcomes, before, after)
        )
        within = entries if newest is None else entries[:-1]
        seconds = Counter({} if newest is None else newest.seconds) + Counter(record.seconds)
        record = replace(
            record, number=number, outcomes=outcomes, within=tuple(within), seconds=dict(seconds)
        )
        session.ledger.replace_last(record)
    return record


def _in_effect(entries: Sequence[ActiveRound], layers: list[int]) -> list[Edit]:
    """The last edit of every fact, in an order that is that of no stream.

    Raises:
        SessionError: there is none, or a round has no values or edited other layers.
    """
    latest: dict[tuple[str, str], Edit] = {}
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
        for request, z, outcome in zip(record.requests, record.z, record.outcomes):
            latest[request.fact] = (request, z, outcome)
    if not latest:
        raise SessionError("no round is active, so there is nothing to consolidate; edit first")
    return sorted(latest.values(), key=lambda edit: edit[0].digest())


def _values(session: EditSession, hparams: SpreadHparams, edits: Sequence[Edit]) -> Values:
    """What is known of the edits' values, in the untouched model."""
    requests = [request for request, _, _ in edits]
    rows = encode_round(session.layout, session.tokenizer, requests, ())
    lookups = Lookups.of(session.layout, rows, hparams.token_budget)
    h = lookups.activations(hparams.layers[-1])
    losses = [outcome.z_loss or 0.0 for _, _, outcome in edits]
    steps = [outcome.z_steps or 0 for _, _, outcome in edits]
    return Values(
        torch.stack([z for _, z, _ in edits]).to(h.device),
        h,
        torch.tensor(losses, dtype=h.dtype, device=h.device),
        torch.tensor(steps, device=h.device),
    )
