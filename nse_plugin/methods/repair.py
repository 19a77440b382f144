"""Repair by behaviour: edits that are not in effect after the write are written again.

Values of the original model fit an edited model less and less, so in a long sequence the *newest*
edits fail, whatever their residuals say.  One forward pass therefore tests every new edit.  For
those that are not in effect, a value is optimised in the current model and written by another pass,
whose solve preserves all other requests of the round, as it does the previous keys.

Later rounds also undo earlier edits.  With ``repair_every``, every N rounds the earlier edits are
tested before the round is written, and those that are no longer in effect join the round with
values optimised in the current model.

When a fact is edited again, by a repair or with a new target, its old keys are left out of the
previous keys, which would preserve its old output.

This is ours, in none of the papers, and off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse_plugin.hparams import SpreadHparams
from nse_plugin.locate.values import Values
from nse_plugin.marks import fact_mark, mark
from nse_plugin.methods.bookkeeping import EarlierEdit, last_edits
from nse_plugin.methods.writer import Writer
from nse_plugin.model.answers import score_encoded
from nse_plugin.model.prompts import encode_request
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession


@dataclass(frozen=True)
class Repaired:
    """What was tested and repaired; row i belongs to request i, on the CPU."""

    times: torch.Tensor
    """[n], how often each was repaired."""
    answered_before: torch.Tensor
    """[n] bool, whether each was in effect before the first repair."""
    answered: torch.Tensor
    """[n] bool, the same after the last repair."""
    residual_before: torch.Tensor
    """[n], ||z - h|| before the first repair."""

    def of(self, i: int) -> dict[str, Any]:
        """The fields of request i's outcome."""
        return {
            "repairs": int(self.times[i]),
            "answered_before_repair": bool(self.answered_before[i]),
            "answered": bool(self.answered[i]),
            "residual_before_repair": float(self.residual_before[i]),
        }


def lost_edits(
    session: EditSession, requests: Sequence[EditRequest], hparams: SpreadHparams
) -> list[EarlierEdit]:
    """The earlier edits that are no longer in effect, if ``repair_every`` tests them in this round.

    Args:
        requests: of the round; facts that it edits are not tested.
    """
    if session.ledger.next_number() % hparams.repair_every:
        return []
    edits = last_edits(session.ledger.heads(), but=requests)
    if not edits:
        return []
    given = answered(session, [request for request, _ in edits], hparams.token_budget).tolist()
    lost = [edit for edit, yes in zip(edits, given) if not yes]
    if hparams.merge_subjects:  # edits with the same key share a value
        keys = {request.key_text for request, _ in lost}
        lost = [edit for edit in edits if edit[0].key_text in keys]
    return lost


def same_subject_edits(session: EditSession, requests: Sequence[EditRequest]) -> list[EarlierEdit]:
    """Edits of earlier rounds with the key of a request, whose value would overwrite theirs."""
    ledger, keys = session.ledger, {request.key_text for request in requests}
    return [
        (request, number)
        for request, number in last_edits(ledger.heads_with(map(mark, keys)), but=requests)
        if request.key_text in keys and number == ledger.wrote_last(request)
    ]


def earlier_columns(session: EditSession, requests: Sequence[EditRequest]) -> dict[int, list[int]]:
    """By number of a round: the columns of its keys that are of the facts of these requests."""
    facts = {request.fact for request in requests}
    return {
        record.number: [i for i, request in enumerate(record.requests) if request.fact in facts]
        for record in session.ledger.heads_with(map(fact_mark, facts))
    }


def repair(
    writer: Writer, find_values: Callable[[torch.Tensor], Values], hparams: SpreadHparams
) -> Repaired | None:
    """Test the requests of a round, and write again those that are not in effect.

    Args:
        writer: of the round, after its passes.
        find_values: optimises values of the requests with these indices [n] in the current model.

    Returns:
        What was done; None without ``repair_rounds``.
    """
    if not hparams.repair_rounds:
        return None

    def in_effect() -> torch.Tensor:
        with writer.clock("ask"):
            return answered(writer.session, writer.requests, hparams.token_budget)

    before = now = in_effect()
    residual = writer.after
    times = torch.zeros(len(now), dtype=torch.long)
    for _ in range(hparams.repair_rounds):
        failed = (~now).nonzero()[:, 0]
        if not len(failed):
            break
        if hparams.merge_subjects:  # requests with the same key share a value
            keys = writer.start.lookups.bare
            shared = {keys[i] for i in failed.tolist()}
            failed = torch.tensor([i for i, key in enumerate(keys) if key in shared])
        with writer.clock("repair"):
            values = find_values(failed)
        written = writer.rewrite(failed, values)
        if not len(written):
            break
        times[written] += 1
        now = in_effect()
    return Repaired(times, before, now, residual)


def answered(
    session: EditSession, requests: Sequence[EditRequest], token_budget: int
) -> torch.Tensor:
    """[n] bool, whether greedy decoding writes each request's whole target."""
    limit = session.layout.max_positions
    asked = [
        encode_request(session.tokenizer, request, with_target=True, max_positions=limit)
        for request in requests
    ]
    return torch.tensor(score_encoded(session.model, asked, token_budget=token_budget).exact)
