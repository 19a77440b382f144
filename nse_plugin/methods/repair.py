"""Repair by behaviour: edits that the model does not give after the write are written once more.

Values of the original model fit an edited one less and less, so in a long sequence it is the
*newest* edits that fail, whatever their residuals say.  So one forward pass tests every new edit,
and for those that are not in effect a value is optimised in the model as it is now and written by
one more pass.  All other requests of the round are in that pass's solve with no residual, as the
previous keys are: what they give stays.

Later rounds wear earlier edits away.  With ``repair_every``, every N rounds the earlier edits are
tested too before the round is written, and those that the model no longer gives join the round with
values optimised in the model as it is now.

The old keys of whatever is edited again, be it repaired or given another answer, are left out of
the previous keys, which would hold it where it is.

This is ours; it is in none of the papers, and off by default.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from nse_plugin.hparams import SpreadHparams
from nse_plugin.locate.values import Values
from nse_plugin.methods.bookkeeping import last_edits
from nse_plugin.methods.writer import Writer
from nse_plugin.model.answers import score_encoded
from nse_plugin.model.prompts import encode_request
from nse_plugin.requests import EditRequest, mark
from nse_plugin.session.session import EditSession


@dataclass(frozen=True)
class Repaired:
    """What was tested and repaired; row i belongs to request i, on the CPU."""

    times: torch.Tensor
    """[n], how often each was repaired."""
    answered_before: torch.Tensor
    """[n] bool, whether the model gave the answer before the first repair."""
    answered: torch.Tensor
    """[n] bool, the same after the last one."""
    residual_before: torch.Tensor
    """[n], ||z - h|| before the first repair, of the value that was written until then."""

    def of(self, i: int) -> dict[str, Any]:
        """The fields of request i's outcome."""
        return {
            "repairs": int(self.times[i]),
            "answered_before_repair": bool(self.answered_before[i]),
            "answered": bool(self.answered[i]),
            "residual_before_repair": float(self.residual_before[i]),
        }


class EarlierEdits(NamedTuple):
    """Edits of earlier rounds that are written again with a round: those that the model no longer
    gives, or that would be overwritten."""

    requests: tuple[EditRequest, ...] = ()
    rounds: tuple[int, ...] = ()
    """The round that wrote each last."""


def lost_edits(
    session: EditSession, requests: Sequence[EditRequest], hparams: SpreadHparams
) -> EarlierEdits:
    """Test the edits of earlier rounds, where ``repair_every`` says so of the next round.

    Args:
        requests: of the next round; a fact that it edits is not tested.
    """
    if session.ledger.next_number() % hparams.repair_every:
        return EarlierEdits()
    edits = last_edits(session.ledger, but=requests)
    if not edits:
        return EarlierEdits()
    given = answered(session, [request for request, _ in edits], hparams.token_budget).tolist()
    lost = [edit for edit, yes in zip(edits, given) if not yes]
    if hparams.merge_subjects:  # all edits of a key have one value
        keys = {request.key_text for request, _ in lost}
        lost = [edit for edit in edits if edit[0].key_text in keys]
    return _as_earlier(lost)


def same_subject_edits(session: EditSession, requests: Sequence[EditRequest]) -> EarlierEdits:
    """Edits of earlier rounds with the key of a request: they would be overwritten by its value."""
    ledger, keys = session.ledger, {request.key_text for request in requests}
    same = [
        (request, number)
        for request, number in last_edits(ledger.rounds_with(map(mark, keys)), but=requests)
        if request.key_text in keys and number == ledger.wrote_last(request)
    ]
    return _as_earlier(same)


def _as_earlier(edits: Sequence[tuple[EditRequest, int]]) -> EarlierEdits:
    """Of requests and the rounds that wrote them last."""
    return EarlierEdits(
        tuple(request for request, _ in edits), tuple(number for _, number in edits)
    )


def earlier_keys(session: EditSession, requests: Sequence[EditRequest]) -> dict[int, torch.Tensor]:
    """By layer: all keys [d_ff, n] that the ledger has of the facts of these requests.

    They would hold a fact that is edited again at what it gives until now.
    """
    facts = {request.fact for request in requests}
    found: dict[int, list[torch.Tensor]] = defaultdict(list)
    for record in session.ledger.rounds_with(mark(*fact) for fact in facts):
        some = [i for i, request in enumerate(record.requests) if request.fact in facts]
        if record.z is not None:  # FT keeps requests and has no keys
            for layer, keys in record.keys.items():
                found[layer].append(keys[:, some])
    return {layer: torch.cat(parts, dim=1) for layer, parts in found.items()}


def repair(
    writer: Writer, find_values: Callable[[torch.Tensor], Values], hparams: SpreadHparams
) -> Repaired | None:
    """Ask the requests of a round, and write those that the model does not give once more.

    Args:
        writer: of the round, after its passes.
        find_values: optimises values for the requests [n] of these numbers, in the model as it is.

    Returns:
        What was done, or None without ``repair_rounds``.
    """
    if not hparams.repair_rounds:
        return None

    def ask() -> torch.Tensor:
        with writer.clock("ask"):
            return answered(writer.session, writer.requests, hparams.token_budget)

    before = now = ask()
    residual = writer.after
    times = torch.zeros(len(now), dtype=torch.long)
    for _ in range(hparams.repair_rounds):
        failed = (~now).nonzero()[:, 0]
        if not len(failed):
            break
        if hparams.merge_subjects:  # one value for all that share a key
            keys = writer.lookups.bare
            shared = {keys[i] for i in failed.tolist()}
            failed = torch.tensor([i for i, key in enumerate(keys) if key in shared])
        with writer.clock("repair"):
            values = find_values(failed)
        written = writer.rewrite(failed, values)
        if not len(written):
            break
        times[written] += 1
        now = ask()
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
