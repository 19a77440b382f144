"""ROME: rank-one model editing (arXiv 2202.05262, NeurIPS 2022).

One fact at a time, into the MLP of one layer.  The value is optimised at the MLP's output, in the
current model, and written by a change of rank one that maps the key of the bare prompt to exactly
that value (section 3.1, equation 2):

    W' = W + (v - W k) u^T / (u . k),    u = C^-1 k_mean

k is the key of the bare prompt, k_mean the mean over the bare prompt and the prompt after each
context.  The requests of a round are written one after another, each into the weights that the one
before left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from nse_plugin.hparams import ROMEHparams
from nse_plugin.locate.keys import Found, Lookups
from nse_plugin.locate.rows import Rows, encode_round
from nse_plugin.locate.update import all_neurons, covariance_factor, rank_one_right
from nse_plugin.locate.values import Values, compute_values
from nse_plugin.methods.bookkeeping import (
    Clock,
    Progress,
    check_inputs,
    outcomes,
    with_texts_about,
)
from nse_plugin.model.residual_path import path_of
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord, Write
from nse_plugin.session.session import EditSession

MOST_LEFT_AFTER_ROUND = 0.01
"""A request has converged if at most this share of its residual is left after the whole round."""


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: ROMEHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Write one request after the other and enter them into the session's ledger as one round.

    After an error, model and ledger are as before.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layer or module templates do not fit the model, or weights are not finite.
        StatisticsError: the covariance is not available, singular, or of another model.
        SessionError: the edited weights were changed outside the session since the last round.
    """
    check_inputs(session, requests, hparams)
    with session.round(hparams.layers):
        layer = hparams.layers[0]
        contexts = session.untouched.contexts(hparams)
        rows = encode_round(
            session.layout, session.tokenizer, requests, contexts, hparams.target_eos
        )
        rows = with_texts_about(session, requests, rows, hparams)
        factor = (
            session.untouched.of_covariance(hparams, layer, covariance_factor)
            if hparams.mom2_adjustment
            else None
        )
        clock = Clock()
        with clock("keys"):  # writes to this layer do not change its keys
            lookups = Lookups.of(session.layout, rows, hparams.token_budget).evenly()
            found = lookups.read([layer])
        writer = _Writer(session, rows, hparams, found, factor, clock)
        last_block = replace(hparams, v_loss_layer=None)
        for number, one in enumerate(rows):
            with clock("values"):
                values = compute_values(
                    session.layout, [one], last_block, objective, trace=trace, first=number
                )
            writer.write(number, values.lengthened(hparams))
        record = RoundRecord(
            number=session.ledger.next_number(),
            method=hparams.method,
            outcomes=outcomes(requests, Values.cat(writer.values), writer.progress()),
            writes=tuple(writer.writes),
            keys={layer: found.keys[layer].cpu()},
            seconds=clock.seconds,
            d_ff=session.layout.d_ff,
        )
        session.commit(record)
    return record


@dataclass
class _Writer:
    """Writes the requests of a round one after another."""

    session: EditSession
    rows: Sequence[Rows]
    hparams: ROMEHparams
    found: Found
    factor: torch.Tensor | None  # of the covariance
    clock: Clock
    values: list[Values] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    before: list[torch.Tensor] = field(default_factory=list)  # residual norms [1]

    @property
    def layer(self) -> int:
        return self.hparams.layers[0]

    def write(self, number: int, values: Values) -> None:
        """Write the value [1, d_model] of the request with this index."""
        layout, layer = self.session.layout, self.layer
        with self.clock("solve"):
            found = self.found.select(torch.tensor([number]))
            mean_key, key = found.keys[layer], found.bare[layer]
            path, output = path_of(layout, layer), layout.recalled(layer, key)
            residual = values.z - path(output)  # [1, d_model]
            self.before.append(residual.norm(dim=1).cpu())
            left = path.pull_back(residual, output).T
            right = rank_one_right(key, mean_key, self.factor)
        write = Write(
            layer=layer,
            pass_number=1,
            neurons=all_neurons(mean_key).cpu(),
            left=left.cpu(),
            right=right.cpu(),
            case_ids=(self.rows[number].case_id,),
            key_mass=1.0,
        )
        with self.clock("write"):
            self.session.write(write)
        self.values.append(values)
        self.writes.append(write)

    def progress(self) -> Progress:
        """The outcome of every request after the last write."""
        layout, layer = self.session.layout, self.layer
        now = path_of(layout, layer)(layout.recalled(layer, self.found.bare[layer]))
        after = (Values.cat(self.values).z - now).norm(dim=1).cpu()
        before = torch.cat(self.before)
        reached = (after <= MOST_LEFT_AFTER_ROUND * before).tolist()
        return Progress(
            before,
            after,
            torch.ones(len(self.rows), dtype=torch.long),
            tuple("converged" if yes else "residual_left" for yes in reached),
        )
