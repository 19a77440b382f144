"""Consolidation: all edits in effect solved jointly, as if they had come in one round.

Each round of a sequence writes into the weights that the rounds before it left.  The ledger keeps
every request's value z, so all edits can be solved again at any time: the weights are rewound, and
one round writes them all, layer by layer, with new keys.  No value is optimised.  Edits that were
undone, or whose fact a later edit changes, are left out.  The result depends on the set of edits
and not on their order: to the bit with the same case_ids, otherwise up to rounding.

With ``repair_rounds``, edits that are not in effect afterwards are repaired as in any other round,
with values optimised in the consolidated model (:mod:`nse_plugin.methods.repair`).

A consolidation is a round of its own.  In a stream it is the round with the N-th edit since the
last one (``consolidate_every_edits``), or one after which too few edits are in effect
(``consolidate_below``).  It takes the place of the rounds before it; undoing it makes those active
again, to the bit.  If it leaves fewer edits in effect than the round itself, as written before any
repair, it is put back, and not tried again for N edits (with ``consolidate_below`` alone: until the
next round).  This is ours, in no paper.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from nse_plugin.errors import SessionError
from nse_plugin.hparams import SpreadHparams
from nse_plugin.locate.keys import Found
from nse_plugin.locate.rows import Rows
from nse_plugin.locate.values import Values
from nse_plugin.methods.bookkeeping import Clock, last_edits
from nse_plugin.methods.repair import answered
from nse_plugin.model.hooks import own_modes
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import ActiveRound, Outcome, RoundRecord, rounds_named
from nse_plugin.session.session import EditSession

log = logging.getLogger(__name__)

TESTED = 64
"""Edits at most that ``consolidate_below`` tests after a round."""
# how to leave them, at the end of a message
_SWITCH = " (in a stream, consolidate_every_edits: 0 and consolidate_below: 0)"
KnownEdit = tuple[EditRequest, torch.Tensor, Outcome]
"""A request, its value z [d_model], and its last outcome."""
H = TypeVar("H", bound=SpreadHparams)


@dataclass(frozen=True)
class StoredValues:
    """The values of some edits, as the ledger has them."""

    z: torch.Tensor
    """[n, d_model]."""
    outcomes: Sequence[Outcome]
    """The edits' last outcomes."""

    def values(self, found: Found, rows: Sequence[Rows], hparams: SpreadHparams) -> Values:
        """The same with h, and a warning if the edits are now made at other tokens.

        Args:
            found: h of the z-layer, in the untouched model.
            rows: the edits' token rows.
        """
        moved = [
            outcome.case_id
            for outcome, one in zip(self.outcomes, rows)
            if outcome.past_sink != one.past_sink
        ]
        if moved:
            log.warning(
                "%d edits were made at another token than avoid_sinks: %s chooses (cases %s); "
                "their values may not fit, so give the hyperparameters of their rounds",
                len(moved), str(hparams.avoid_sinks).lower(), ", ".join(map(str, moved[:5])),
            )  # fmt: skip
        h = found.h
        assert h is not None
        losses = [outcome.z_loss or 0.0 for outcome in self.outcomes]
        steps = [outcome.z_steps or 0 for outcome in self.outcomes]
        return Values(
            self.z.to(h.device),
            h,
            torch.tensor(losses, dtype=h.dtype, device=h.device),
            torch.tensor(steps, device=h.device),
        )


WriteRound = Callable[[Sequence[EditRequest], H, StoredValues], RoundRecord]
"""Writes requests with known values as one round into model and ledger."""


def write_or_consolidate(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: H,
    write: Callable[..., RoundRecord],
) -> RoundRecord:
    """Write a round of a stream, as a consolidation where the settings ask for one.

    Args:
        write: a :data:`WriteRound` that also works without values, and traces the tokens unless
            ``trace`` is None.

    Raises:
        SessionError: the settings may ask for a consolidation, and a round cannot be part of it.
    """
    first, due = hparams, _is_due(session, hparams, len(requests))
    if due or hparams.consolidate_below:  # before anything is computed
        for entry in session.ledger.active():
            if (entry.method, sorted(entry.key_counts)) != (hparams.method, hparams.layers):
                _values_of(entry.read(), hparams.layers)
    if due:  # the joint solve repairs
        first = replace(hparams, repair_rounds=0, repair_every=0)
    newest = write(requests, first)
    if not due:
        clock = Clock(dict(newest.seconds))
        with clock("ask"):
            due = _too_few_in_effect(session, hparams)
        newest = replace(newest, seconds=clock.seconds)
        session.ledger.replace_last(newest)
    if not due:
        return newest
    try:
        return solve_together(session, hparams, write, newest)
    except _FewerInEffect as error:
        log.warning(
            "round %d: %s, so the round stays as written; the edited layers are full, and more "
            "edits will cost earlier ones",
            newest.number, error,
        )  # fmt: skip
    if first != hparams:  # the round has to repair by itself
        session.drop_last()
        newest = write(requests, hparams, trace=None)  # they were traced
    newest = replace(newest, put_back=True)
    session.ledger.replace_last(newest)
    return newest


class _FewerInEffect(Exception):
    """A joint solve would leave fewer edits in effect than there were before it."""


def _is_due(session: EditSession, hparams: SpreadHparams, n_requests: int) -> bool:
    """Whether ``consolidate_every_edits`` says that a round of new requests is a consolidation."""
    every, ledger = hparams.consolidate_every_edits, session.ledger
    return bool(every and len(ledger) and ledger.edits_since_joint_solve() + n_requests >= every)


def _too_few_in_effect(session: EditSession, hparams: SpreadHparams) -> bool:
    """Whether less than ``consolidate_below`` of the edits are in effect, in a random sample."""
    if not hparams.consolidate_below or len(session.ledger) < 2:
        return False
    if session.ledger.put_back_within(hparams.consolidate_every_edits):
        return False
    latest = last_edits(session.ledger.heads())
    edits = sorted((request for request, _ in latest), key=EditRequest.digest)
    number = session.ledger.numbers()[-1]
    sample = random.Random(number).sample(edits, min(TESTED, len(edits)))
    share = float(answered(session, sample, hparams.token_budget).double().mean())
    lost = share < hparams.consolidate_below
    if lost:
        log.info(
            "round %d: %.1f%% of %d tested edits are in effect, less than consolidate_below: %s; "
            "solving all of them jointly",
            number, 100 * share, len(sample), hparams.consolidate_below,
        )  # fmt: skip
    return lost


@own_modes()
def solve_together(
    session: EditSession,
    hparams: H,
    write: WriteRound[H],
    newest: RoundRecord | None = None,
    without: Collection[int] = (),
) -> RoundRecord:
    """Solve all edits in effect jointly, in place of the active rounds.

    Args:
        without: numbers of rounds in effect whose new edits are left out.  If an earlier round
            edited the same fact, its edit is in effect again.
        newest: the last round, if it is to become the consolidation of itself and the rounds
            before it, under its own number.

    Raises:
        _FewerInEffect: ``newest`` is given, and fewer edits than before would be in effect.
        SessionError: no round is active; one has no values, or edited other layers; a round to
            leave out is not in effect, or they are all; or the weights were changed outside the
            session.  Model and ledger are as before.
    """
    _check_left_out(session, without)
    edits = _in_effect(session.ledger.active(), hparams.layers, without)
    requests = [request for request, _, _ in edits]
    own = set()
    if newest is not None:
        own = {r.fact for r, o in zip(newest.requests, newest.outcomes) if o.is_new}
    number = session.ledger.next_number() if newest is None else newest.number
    clock = Clock(dict(newest.seconds) if newest else {})
    with clock("ask"):
        before = answered(session, requests, hparams.token_budget).tolist()
    if hparams.repair_rounds:
        hparams = hparams.with_lambda_times(hparams.consolidation_weight)
    with session.anew() as entries:
        stored = StoredValues(torch.stack([z for _, z, _ in edits]), [o for _, _, o in edits])
        solved = write(requests, hparams, stored)
        if hparams.repair_rounds:
            after = [bool(outcome.answered) for outcome in solved.outcomes]
        else:
            with clock("ask"):
                after = answered(session, requests, hparams.token_budget).tolist()
        if newest is not None and sum(after) < sum(before):
            raise _FewerInEffect(
                f"solved jointly, {sum(after)} of {len(after)} edits would be in effect instead of "
                f"{sum(before)}"
            )
        outcomes = zip(requests, solved.outcomes, before, after)
        record = replace(
            solved,
            number=number,
            outcomes=tuple(
                replace(
                    outcome,
                    answered_before_consolidation=None if request.fact in own else earlier,
                    answered=now,
                )
                for request, outcome, earlier, now in outcomes
            ),
            within=tuple(entries if newest is None else entries[:-1]),
            left_out=tuple(sorted({*without, *(n for entry in entries for n in entry.left_out)})),
            seconds=dict(Counter(clock.seconds) + Counter(solved.seconds)),
        )
        session.ledger.replace_last(record)
    return record


def _check_left_out(session: EditSession, without: Collection[int]) -> None:
    """Raise :class:`SessionError` if a round to leave out is not in effect."""
    there = sorted(session.ledger.numbers_in_effect())
    for number in without:
        if number not in there:
            raise SessionError(
                f"round {number} cannot be left out, since it is not in effect; these rounds are: "
                f"{', '.join(map(str, there))}"
            )


def _in_effect(
    entries: Sequence[ActiveRound], layers: list[int], without: Collection[int] = ()
) -> list[KnownEdit]:
    """The last edit of every fact, in an order that does not depend on that of the rounds.

    Raises:
        SessionError: there is none, or a round has no values or edited other layers.
    """
    latest: dict[str, KnownEdit] = {}
    for record in (entry.read() for entry in entries):
        latest |= {edit[0].fact: edit for edit in _known_edits(record, layers)}
    if not latest:
        raise SessionError("no round is active, so there is nothing to consolidate; edit first")
    if without:
        latest = _without(latest, list(_with_rounds_within(entries)), layers, without)
    return sorted(latest.values(), key=lambda edit: edit[0].digest())


def _without(
    latest: Mapping[str, KnownEdit],
    entries: Sequence[ActiveRound],
    layers: list[int],
    without: Collection[int],
) -> dict[str, KnownEdit]:
    """The last edit of every fact without those of some rounds.

    A value that an edit shares with one that is left out (``merge_subjects``) gives both answers,
    so the last value before that is taken.

    Args:
        entries: the rounds in order, also those inside consolidations.

    Raises:
        SessionError: no edit is left, or one has no value but a shared one.
    """
    made_in: dict[str, set[int]] = {}  # by digest of an edit: the rounds that it came with
    for record in (entry.head() for entry in entries):
        for request, outcome in zip(record.requests, record.outcomes):
            if outcome.is_new:
                made_in.setdefault(request.digest(), set()).add(record.number)
    for number in without:
        if not any(number in numbers for numbers in made_in.values()):
            raise SessionError(f"no edit came with round {number}; to take it back, undo it")
    left_out = {*without, *(number for entry in entries for number in entry.left_out)}
    gone = {digest for digest, numbers in made_in.items() if numbers <= left_out}
    kept: dict[str, KnownEdit] = {}
    for entry in entries:
        edits = list(_known_edits(entry.read(), layers))
        shared = {_bits(z) for request, z, _ in edits if request.digest() in gone}
        for request, z, outcome in edits:
            if request.digest() not in gone and _bits(z) not in shared:
                kept[request.fact] = (request, z, outcome)
    for request, _, _ in latest.values():
        digest = request.digest()
        if digest in gone or (request.fact in kept and kept[request.fact][0].digest() == digest):
            continue
        raise SessionError(
            f"an edit of {rounds_named(sorted(made_in[digest]))} (case {request.case_id}) shares "
            "its value with one that is to be left out (merge_subjects); leave it out, too"
        )
    if not kept:
        raise SessionError("without these rounds there is no edit left; undo the rounds instead")
    return kept


def _bits(value: torch.Tensor) -> bytes:
    return value.numpy().tobytes()


def _with_rounds_within(entries: Iterable[ActiveRound]) -> Iterator[ActiveRound]:
    """The rounds in order, before each consolidation those that it takes the place of."""
    for entry in entries:
        yield from _with_rounds_within(entry.within)
        yield entry


def _known_edits(record: RoundRecord, layers: list[int]) -> Iterable[KnownEdit]:
    return zip(record.requests, _values_of(record, layers), record.outcomes)


def _values_of(record: RoundRecord, layers: list[int]) -> torch.Tensor:
    """The values of a round [n, d_model].

    Raises:
        SessionError: it has none, or edited other layers.
    """
    if record.z is None:
        raise SessionError(
            f"round {record.number} was written by {record.method}, which keeps no values, so it "
            f"cannot be consolidated; undo it, or leave the rounds as they are{_SWITCH}"
        )
    if sorted(record.key_counts) != layers:
        raise SessionError(
            f"round {record.number} edited layers {sorted(record.key_counts)}, and layers is "
            f"{layers}; to consolidate them, give the hyperparameters with which the rounds were "
            f"written, or leave them as they are{_SWITCH}"
        )
    return record.z
