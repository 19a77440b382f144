"""A round that is spread over a few consecutive layers: what NSE, MEMIT and AlphaEdit share.

1. Values z are optimised for all requests at the last of the layers, the z-layer.
2. Write passes: layer by layer, the keys of the requests that have not reached their value are
   read, and a closed-form change takes the layer's share of the residual z - h (MEMIT, arXiv
   2210.07229, algorithm 1).
3. With ``repair_rounds`` and ``repair_every``, edits that are not in effect are written again
   (:mod:`nse_plugin.methods.repair`).
4. The keys of all requests after the last write join the previous keys.

Where methods differ, above all in the closed form, each has a :class:`SpreadMethod`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
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
    EarlierEdit,
    check_inputs,
    check_settings,
    outcomes,
    rows_of,
    with_texts_about,
)
from nse_plugin.methods.repair import (
    earlier_columns,
    lost_edits,
    repair,
    same_subject_edits,
)
from nse_plugin.methods.together import StoredValues, write_or_consolidate
from nse_plugin.methods.writer import ONE_PASS, Passes, Solve, Writer
from nse_plugin.model.residual_path import path_of
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession

H = TypeVar("H", bound=SpreadHparams)
FOUND_ELSEWHERE = "values found elsewhere"
"""Among the seconds of a round: how long another run searched for the values that this one uses."""


@dataclass(frozen=True)
class SpreadMethod:
    """What distinguishes a method from the others, in one round."""

    solve: Solve
    """The closed form."""
    rewind: bool = False
    """Optimise values with the original weights instead of the current ones."""
    passes: Passes = ONE_PASS
    adjust: Callable[[Values, Lookups], Values] | None = None
    """Changes values before they are written; the lookups are of the same requests."""


def spread_round(
    method_of: Callable[[EditSession, H], SpreadMethod],
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: H,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
    stored: StoredValues | None = None,
) -> RoundRecord:
    """Write one round of requests and enter it into the session's ledger.

    After an error, model and ledger are as before.

    Args:
        method_of: reads the statistics that the method needs, and returns the method.
        stored: values of all edits in effect, which are then solved jointly; only repairs optimise
            more.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layers or module templates do not fit the model, or weights are not finite.
        StatisticsError: the covariance is not available, or of another model.
        SessionError: the edited weights were changed outside the session since the last round.
    """
    if stored is None:
        check_inputs(session, requests, hparams)
    else:  # edits of different rounds, whose case_ids may be the same
        check_settings(session, hparams)
    write = partial(_write_round, method_of, session, objective)
    with session.round(hparams.layers):
        for layer in hparams.layers:
            path_of(session.layout, layer)  # refuses a layer before anything is computed
        if stored is not None:
            return write(requests, hparams, stored)
        with session.untouched.keeping_values():  # a consolidation may have it written twice
            return write_or_consolidate(session, requests, hparams, partial(write, trace=trace))


def _write_round(
    method_of: Callable[[EditSession, H], SpreadMethod],
    session: EditSession,
    objective: TokenObjective,
    requests: Sequence[EditRequest],
    hparams: H,
    stored: StoredValues | None = None,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Write one round, or with ``stored`` values a joint solve; see :func:`spread_round`."""
    clock, together = Clock(), stored is not None
    same: list[EarlierEdit] = []
    lost: list[EarlierEdit] = []
    if hparams.merge_subjects and not together:
        same = same_subject_edits(session, requests)
    own = [*requests, *(request for request, _ in same)]
    if hparams.repair_every and not together:
        with clock("ask"):
            lost = lost_edits(session, own, hparams)
    requests = [*own, *(request for request, _ in lost)]
    method = method_of(session, hparams)
    rows = rows_of(session, requests, hparams)
    lookups = Lookups.of(session.layout, rows, hparams.token_budget)
    search = _ValueSearch(session, method, objective, hparams, requests, rows, lookups)
    if stored is None:
        with clock("values"):
            values, elsewhere = search.first(len(own), trace)
        if elsewhere:
            clock.seconds[FOUND_ELSEWHERE] = elsewhere
    if lost:
        with clock("repair"):
            found = search.current(torch.arange(len(own), len(requests)))
        values = Values.cat([values, found])
    with clock("keys"):
        first = hparams.layers[0]
        start = lookups.read([first], h_of=hparams.layers[-1], keep=first)
        if stored is not None:
            values = stored.values(start, rows, hparams)
        preserved = _preserved_keys(session, rows, hparams, together)
    with session.previous_keys.without({} if together else earlier_columns(session, requests)):
        writer = Writer(
            session, requests, hparams.layers, start, values, method.solve, method.passes,
            clock, preserved, torch.tensor([one.weight for one in rows]),
        )  # fmt: skip
        writer.run()
        repaired = repair(writer, search.current, hparams)
    earlier = [number for _, number in (*same, *lost)]
    record = RoundRecord(
        number=session.ledger.next_number(),
        method=hparams.method,
        outcomes=outcomes(requests, writer.values, writer.progress(), repaired, earlier, rows),
        writes=tuple(writer.writes),
        keys=writer.keys(),
        seconds=clock.seconds,
        d_ff=session.layout.d_ff,
        requests=tuple(request.without_probes() for request in requests),
        z=writer.values.z.cpu(),
    )
    session.commit(record)
    return record


@dataclass(frozen=True)
class _ValueSearch:
    """Finds the values of a round's requests."""

    session: EditSession
    method: SpreadMethod
    objective: TokenObjective
    hparams: SpreadHparams
    requests: Sequence[EditRequest]
    rows: Sequence[Rows]
    lookups: Lookups

    def first(self, count: int, trace: TokenTrace | None) -> tuple[Values, float]:
        """Values of the first ``count`` requests, in the untouched or in the current model, and the
        seconds that another run took to find them."""
        chosen = torch.arange(count)
        if not self.method.rewind:
            return self.current(chosen, trace), 0.0
        with self.session.weights.rewound():
            rows, shared = self._rows(chosen, trace)
            texts = tuple((one.rewriting, one.about) for one in rows)
            values, elsewhere = self.session.untouched.values(
                (texts, self.hparams.value_settings(), self.objective),
                lambda: self._optimised(rows, trace),
                device=self.session.layout.down(self.hparams.layers[-1]).weight.device,
                # another class may have one repr for different settings
                share=trace is None and is_dataclass(self.objective),
            )
            return self._adjusted(values[shared], chosen), elsewhere

    def current(self, chosen: torch.Tensor, trace: TokenTrace | None = None) -> Values:
        """Values in the current model of the requests with these indices in the round [n]."""
        rows, shared = self._rows(chosen, trace)
        return self._adjusted(self._optimised(rows, trace)[shared], chosen)

    def _rows(
        self, chosen: torch.Tensor, trace: TokenTrace | None
    ) -> tuple[list[Rows], torch.Tensor]:
        """The rows to find values for, and for each of the requests the index of its rows [n]."""
        some = chosen.tolist()
        requests, rows = [self.requests[i] for i in some], [self.rows[i] for i in some]
        rows = with_texts_about(self.session, requests, rows, self.hparams)
        if not self.hparams.merge_subjects:
            return rows, torch.arange(len(rows))
        rows, shared = merged(rows)
        if trace is not None and len(rows) < len(shared):
            raise RequestError(
                "a trace follows each edit's tokens separately, but with merge_subjects edits of "
                "this round share a value; write them in separate rounds"
            )
        return rows, torch.tensor(shared)

    def _optimised(self, rows: Sequence[Rows], trace: TokenTrace | None) -> Values:
        return compute_values(self.session.layout, rows, self.hparams, self.objective, trace=trace)

    def _adjusted(self, values: Values, chosen: torch.Tensor) -> Values:
        values = values.lengthened(self.hparams)
        if self.method.adjust is None:
            return values
        return self.method.adjust(values, self.lookups.select(chosen))


def _preserved_keys(
    session: EditSession, rows: Sequence[Rows], hparams: SpreadHparams, together: bool
) -> dict[int, torch.Tensor]:
    """Keys of the prompts that every solve of the round preserves, by layer [d_ff, m], as they are
    before its first write.

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
        found = other_token_keys(layout, rows, hparams.layers, hparams.token_budget)
        parts.append({
            layer: keys * math.sqrt(weight / max(1, keys.shape[1])) for layer, keys in found.items()
        })  # fmt: skip
    # an edit of the round may be about one of those subjects
    own = {one.up_to_subject for one in rows}
    texts = {
        text: len(one.other_subjects)
        for one in rows
        for text in one.other_subjects
        if text not in own
    }
    if texts:
        downs = {layer: layout.down(layer) for layer in hparams.layers}
        keys, _ = Prefixes(layout, hparams.token_budget, tuple(texts)).read(downs, {})
        weights = 1 / torch.tensor(list(texts.values())) if together else torch.ones(len(texts))
        parts.append({layer: keys[layer].T.cpu() * weights.sqrt() for layer in hparams.layers})
    if not parts:
        return {}
    return {layer: torch.cat([part[layer] for part in parts], dim=1) for layer in hparams.layers}
