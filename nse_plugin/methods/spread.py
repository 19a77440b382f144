"""A round that is spread over a few consecutive layers: what NSE, MEMIT and AlphaEdit share.

1. Values z are optimised for all requests at the last of the layers, the z-layer.
2. Write passes: layer by layer, the keys of the requests that have not reached their value are
   read, and a closed-form change takes the layer's share of the residual z - h (MEMIT, arXiv
   2210.07229, algorithm 1).
3. With ``repair_rounds`` and ``repair_every``, edits that are not in effect are written again
   (:mod:`nse_plugin.methods.repair`).
4. The keys of all requests after the last write join the previous keys.

Methods differ in the closed form (:data:`~nse_plugin.methods.writer.Solve`), in the model that
values are optimised in, and in the number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from nse_plugin.errors import RequestError
from nse_plugin.hparams import SpreadHparams
from nse_plugin.locate.keys import Lookups, Prefixes, other_token_keys
from nse_plugin.locate.rows import Rows, merged
from nse_plugin.locate.values import Values, compute_values
from nse_plugin.methods.bookkeeping import (
    Clock,
    check_inputs,
    outcomes,
    rows_of,
    with_texts_about,
)
from nse_plugin.methods.repair import (
    EarlierEdits,
    earlier_keys,
    lost_edits,
    repair,
    same_subject_edits,
)
from nse_plugin.methods.together import are_lost, is_due, solve_together
from nse_plugin.methods.writer import ONE_PASS, Passes, Solve, Writer
from nse_plugin.model.residual_path import path_of
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession

H = TypeVar("H", bound=SpreadHparams)
Adjust = Callable[[Values, EditSession, Lookups, int], Values]
"""``adjust(values, session, lookups, z_layer)``: the values to write in place of those found."""


def spread_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: H,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
    values: Values | None = None,
    *,
    solver: Callable[[EditSession, H], Solve],
    rewind: bool,
    passes: Passes = ONE_PASS,
    adjust: Adjust | None = None,
) -> RoundRecord:
    """Write one round of requests and enter it into the session's ledger.

    After an error, model and ledger are as before.

    Args:
        values: of all edits in effect, which are then solved jointly; only repairs optimise more.
        solver: reads the statistics that the method needs and returns its closed form.
        rewind: optimise values with the original weights instead of the current ones.
        adjust: changes the values before they are written.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layers or module templates do not fit the model, or weights are not finite.
        StatisticsError: the covariance is not available, or of another model.
        SessionError: the edited weights were changed outside the session since the last round.
    """
    check_inputs(session, requests, hparams)
    write = partial(_write_round, session, objective=objective, solver=solver, rewind=rewind,
                    passes=passes, adjust=adjust)  # fmt: skip
    with session.round(hparams.layers):
        for layer in hparams.layers:
            path_of(session.layout, layer)  # refuses a layer before anything is computed
        if values is not None:
            return write(requests, hparams, values=values)
        due, first = is_due(session, hparams), hparams
        if due:  # the joint solve repairs
            first = replace(hparams, repair_rounds=0, repair_every=0)
        newest = write(requests, first, trace=trace)
        if not (due or are_lost(session, hparams)):
            return newest
        return solve_together(
            session,
            hparams,
            lambda edits, again, known: write(edits, again, values=known),
            newest,
        )


def _write_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: H,
    *,
    objective: TokenObjective,
    solver: Callable[[EditSession, H], Solve],
    rewind: bool,
    passes: Passes,
    adjust: Adjust | None,
    trace: TokenTrace | None = None,
    values: Values | None = None,
) -> RoundRecord:
    """Write one round, or with ``values`` a joint solve; see :func:`spread_round`."""
    clock, together = Clock(), values is not None
    same = lost = EarlierEdits()
    if values is None and hparams.merge_subjects:
        same = same_subject_edits(session, requests)
    if values is None and hparams.repair_every:
        with clock("ask"):
            lost = lost_edits(session, [*requests, *same.requests], hparams)
    rounds = (*same.rounds, *lost.rounds)
    n_own = len(requests) + len(same.requests)
    requests = [*requests, *same.requests, *lost.requests]
    solve = solver(session, hparams)
    search = _ValueSearch.of(session, requests, hparams, objective, adjust)
    if values is None:
        with clock("values"):
            values = search.first(n_own, rewind, trace)
    if lost.requests:
        with clock("repair"):
            lost_values = search.current(torch.arange(n_own, len(requests)))
        values = Values.cat([values, lost_values])
    preserved = _preserved_keys(session, search.encoded, hparams, clock, together)
    with session.previous_keys.without({} if together else earlier_keys(session, requests)):
        writer = Writer(
            session, requests, hparams.layers, search.lookups, values, solve, passes, clock,
            preserved, torch.tensor([one.weight for one in search.encoded]),
        )  # fmt: skip
        writer.run()
        repaired = repair(writer, search.current, hparams)
    record = RoundRecord(
        number=session.ledger.next_number(),
        method=hparams.method,
        outcomes=outcomes(
            requests, writer.values, writer.progress(), repaired, rounds, search.encoded
        ),
        writes=tuple(writer.writes),
        keys=writer.keys(),
        seconds=clock.seconds,
        d_ff=session.layout.d_ff,
        requests=tuple(request.without_probes() for request in requests),
        z=writer.values.z.cpu(),
    )
    session.commit(record)
    return record


def _preserved_keys(
    session: EditSession,
    rows: Sequence[Rows],
    hparams: SpreadHparams,
    clock: Clock,
    together: bool,
) -> dict[int, torch.Tensor]:
    """Keys of the prompts that every solve of the round preserves, by layer [d_ff, m].

    With ``other_token_weight`` these are O such that O O^T is that multiple of lambda times the
    mean of k k^T over the prompts' other tokens.  For an edit at a token after its subject, they
    are the keys of other subjects at that token.

    Args:
        together: all edits are solved jointly.  The other subjects of an edit then weigh as much
            as one edit together, since the joint solve leaves more of each residual; otherwise
            each of them does.
    """
    layout = session.layout
    parts: list[dict[int, torch.Tensor]] = []
    if hparams.other_token_weight:
        weight = hparams.other_token_weight * hparams.covariance_weight(layout.d_ff)
        with clock("keys"):
            found = other_token_keys(layout, rows, hparams.layers, hparams.token_budget)
        scale = {layer: math.sqrt(weight / max(1, keys.shape[1])) for layer, keys in found.items()}
        parts.append({layer: keys * scale[layer] for layer, keys in found.items()})
    own = {one.read for one in rows}  # an edit of the round may be about one of those subjects
    texts = {
        text: len(one.other_subjects)
        for one in rows
        for text in one.other_subjects
        if text not in own
    }
    if texts:
        downs = {layer: layout.down(layer) for layer in hparams.layers}
        with clock("keys"):
            keys, _ = Prefixes(layout, hparams.token_budget, tuple(texts)).read(downs, {})
        weights = 1 / torch.tensor(list(texts.values())) if together else torch.ones(len(texts))
        parts.append({layer: keys[layer].T.cpu() * weights.sqrt() for layer in hparams.layers})
    if not parts:
        return {}
    return {layer: torch.cat([part[layer] for part in parts], dim=1) for layer in hparams.layers}


@dataclass(frozen=True)
class _ValueSearch:
    """Finds the values of a round's requests; ``rows`` are indices of requests in the round."""

    session: EditSession
    requests: Sequence[EditRequest]
    hparams: SpreadHparams
    objective: TokenObjective
    adjust: Adjust | None
    contexts: tuple[str, ...]
    encoded: Sequence[Rows]
    lookups: Lookups

    @classmethod
    def of(
        cls,
        session: EditSession,
        requests: Sequence[EditRequest],
        hparams: SpreadHparams,
        objective: TokenObjective,
        adjust: Adjust | None,
    ) -> _ValueSearch:
        """Tokenise the requests, alone and after the context texts."""
        contexts = session.untouched.contexts(hparams)
        encoded = rows_of(session, requests, hparams)
        lookups = Lookups.of(session.layout, encoded, hparams.token_budget)
        return cls(session, requests, hparams, objective, adjust, contexts, encoded, lookups)

    def first(self, count: int, rewind: bool, trace: TokenTrace | None) -> Values:
        """Values of the first ``count`` requests, in the untouched or in the current model."""
        rows = torch.arange(count)
        if not rewind:
            return self._adjusted(self._optimised(rows, trace), rows)
        digests, h = tuple(request.digest() for request in self.requests[:count]), self.hparams
        edited_token = (h.merge_subjects, h.avoid_sinks, h.layers[0])
        key = (digests, self.contexts, *h.value_settings(), *edited_token, self.objective)
        with self.session.weights.rewound():
            values = self.session.untouched.values(key, lambda: self._optimised(rows, trace))
            return self._adjusted(values, rows)

    def current(self, rows: torch.Tensor) -> Values:
        """Values of some requests in the current model."""
        return self._adjusted(self._optimised(rows), rows)

    def _optimised(self, rows: torch.Tensor, trace: TokenTrace | None = None) -> Values:
        hparams, some = self.hparams, rows.tolist()
        requests, encoded = [self.requests[i] for i in some], [self.encoded[i] for i in some]
        encoded = with_texts_about(self.session, requests, encoded, hparams)
        if hparams.merge_subjects:
            encoded, numbers = merged(encoded)
            if trace is not None and len(encoded) < len(numbers):
                raise RequestError(
                    "a trace follows each edit's tokens separately, but with merge_subjects edits "
                    "of this round share a value; write them in separate rounds"
                )
        layout = self.session.layout
        values = compute_values(layout, encoded, hparams, self.objective, trace=trace)
        return values[torch.tensor(numbers)] if hparams.merge_subjects else values

    def _adjusted(self, values: Values, rows: torch.Tensor) -> Values:
        values = values.lengthened(self.hparams)
        if self.adjust is None:
            return values
        lookups = self.lookups.select(rows)
        return self.adjust(values, self.session, lookups, self.hparams.layers[-1])
