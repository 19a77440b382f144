"""Consolidation: all edits in effect solved together, as if they had come in one round.

A sequence of rounds writes each on what the rounds before it left.  The ledger keeps every
request's value z, so the edits can be solved again at any time: the weights are rewound, and one
round writes all of them, layer by layer, with keys read anew.  No value is optimised.  Edits that
were undone, or whose fact a later one edits, are not in it; the result depends on the set of edits,
not on the order in which they came.

The consolidation is a round of its own.  It takes the place of the rounds before it, and undoing it
makes those active again, to the bit.  This is ours; it is in none of the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nse_plugin.errors import HparamsError, SessionError
from nse_plugin.hparams import Hparams, OvertoneHparams, SpreadHparams
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import Values
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.overtone import objective_of
from nse_plugin.methods.repair import answered
from nse_plugin.objectives.nll import nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import ActiveRound, Outcome, RoundRecord
from nse_plugin.session.session import EditSession

Edit = tuple[EditRequest, torch.Tensor, Outcome]
"""A request, its value z [d_model], and its outcome until now."""


def consolidate(
    session: EditSession, hparams: Hparams, repair_rounds: int | None = None
) -> RoundRecord:
    """Solve all edits in effect together, in the place of the active rounds.

    Args:
        hparams: of NSE, MEMIT or AlphaEdit, with the layers that the rounds wrote.
        repair_rounds: how often edits that the model does not give afterwards are written once
            more, with new values; instead of the hyperparameters' number.

    Returns:
        The new round; its outcomes say of each request whether it was given before and after.

    Raises:
        HparamsError: the method has no values, or ``repair_rounds`` is negative.
        SessionError: no round is active; one has no values, or edited other layers; or somebody
            else changed the weights.  All is as before.
    """
    base = hparams.for_base() if isinstance(hparams, OvertoneHparams) else hparams
    if not isinstance(base, SpreadHparams):
        raise HparamsError(
            f"alg_name is {base.alg_name!r}, and consolidation solves for values, which NSE, MEMIT "
            "and AlphaEdit have; give the hyperparameters of one of them"
        )
    if repair_rounds is not None:
        base = replace(base, repair_rounds=repair_rounds)
    edits = _in_effect(session.ledger.active(), base.layers)
    requests = [request for request, _, _ in edits]
    number = session.ledger.next_number()
    before = answered(session, requests, base.token_budget).tolist()
    with session.anew() as entries:
        values = _values(session, base, edits)
        objective = objective_of(hparams) if isinstance(hparams, OvertoneHparams) else nll
        record = BASES[base.method].edit_round(session, requests, base, objective, values=values)
        after = [outcome.answered for outcome in record.outcomes]  # a repair has asked
        if None in after:
            after = answered(session, requests, base.token_budget).tolist()
        outcomes = tuple(
            replace(outcome, answered_before_consolidation=was, answered=now)
            for outcome, was, now in zip(record.outcomes, before, after)
        )
        record = replace(record, number=number, outcomes=outcomes, within=tuple(entries))
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
