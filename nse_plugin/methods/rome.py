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
from dataclasses import replace

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
from nse_plugin.model.layout import DecoderLayout
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
    layout, layer, clock = session.layout, hparams.layers[0], Clock()
    with session.round(hparams.layers):
        contexts = session.untouched.contexts(hparams)
        rows = encode_round(layout, session.tokenizer, requests, contexts, hparams.target_eos)
        rows = with_texts_about(session, requests, rows, hparams)
        factor = None
        if hparams.mom2_adjustment:
            factor = session.untouched.of_covariance(hparams, layer, covariance_factor)
        with clock("keys"):  # writes to this layer do not change its keys
            found = Lookups.of(layout, rows, hparams.token_budget).evenly().read([layer])
        last_block = replace(hparams, v_loss_layer=None)
        parts, writes, before = [], [], []
        for number, one in enumerate(rows):
            with clock("values"):
                value = compute_values(
                    layout, [one], last_block, objective, trace=trace, first=number
                ).lengthened(hparams)
            with clock("solve"):
                own = found.select(torch.tensor([number]))
                write, residual = _rank_one(layout, layer, own, value, factor, one)
            with clock("write"):
                session.write(write)
            parts.append(value)
            writes.append(write)
            before.append(residual)
        values = Values.cat(parts)
        progress = _progress(layout, layer, found, values, torch.cat(before))
        record = RoundRecord(
            number=session.ledger.next_number(),
            method=hparams.method,
            outcomes=outcomes(requests, values, progress),
            writes=tuple(writes),
            keys={layer: found.keys[layer].cpu()},
            seconds=clock.seconds,
            d_ff=layout.d_ff,
        )
        session.commit(record)
    return record


def _rank_one(
    layout: DecoderLayout,
    layer: int,
    found: Found,
    value: Values,
    factor: torch.Tensor | None,
    one: Rows,
) -> tuple[Write, torch.Tensor]:
    """The write of one request, and the norm [1] of its residual before it.

    Args:
        found: the request's keys.
        value: its value [1, d_model].
        factor: of the covariance.
    """
    mean_key, key = found.keys[layer], found.bare[layer]
    path, output = path_of(layout, layer), layout.recalled(layer, key)
    residual = value.z - path(output)  # [1, d_model]
    write = Write(
        layer=layer,
        pass_number=1,
        neurons=all_neurons(mean_key).cpu(),
        left=path.pull_back(residual, output).T.cpu(),
        right=rank_one_right(key, mean_key, factor).cpu(),
        case_ids=(one.case_id,),
        key_mass=1.0,
    )
    return write, residual.norm(dim=1).cpu()


def _progress(
    layout: DecoderLayout, layer: int, found: Found, values: Values, before: torch.Tensor
) -> Progress:
    """How far the requests have come after the last write; ``before``: first residuals [n]."""
    now = path_of(layout, layer)(layout.recalled(layer, found.bare[layer]))
    after = (values.z - now).norm(dim=1).cpu()
    reached = (after <= MOST_LEFT_AFTER_ROUND * before).tolist()
    return Progress(
        before,
        after,
        torch.ones(len(before), dtype=torch.long),
        tuple("converged" if yes else "residual_left" for yes in reached),
    )
