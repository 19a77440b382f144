"""NSE: neuron-level sequential editing (arXiv 2410.04045, ACL 2025).

A round of requests is written into the MLP down-projections of a few consecutive layers, as in
:mod:`nse_plugin.methods.spread`:

1. values z with the weights rewound to before the first edit of the sequence (section 3.1): a
   later edit then aims at what the original model would need;
2. per layer, the neurons that carry the keys (section 3.2), and a closed-form update that spares
   the covariance and the keys of all earlier rounds (section 3.3);
3. again for the requests that are still off their value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nse_plugin.hparams import NSEHparams
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.stabilise import anchored, keep_out, top_directions
from nse_plugin.locate.update import (
    all_neurons,
    select_by,
    select_neurons,
    solve_right,
    submatrix,
)
from nse_plugin.locate.values import Values
from nse_plugin.methods.spread import Factors, Passes, Solve, spread_round
from nse_plugin.objectives import TokenObjective
from nse_plugin.objectives.nll import nll
from nse_plugin.objectives.trace import TokenTrace
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: NSEHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Write one round of requests; see :func:`nse_plugin.methods.spread.spread_round`."""
    return spread_round(
        session,
        requests,
        hparams,
        objective,
        trace,
        solver=_solver,
        rewind=hparams.rewind,
        passes=Passes(hparams.max_iterations, hparams.alpha, hparams.upper_bound),
        adjust=_anchor if hparams.value_norm_anchor else None,
    )


def _anchor(values: Values, session: EditSession, lookups: Lookups, z_layer: int) -> Values:
    with session.weights.rewound():
        return anchored(values, lookups.activations(z_layer))


def _solver(session: EditSession, hparams: NSEHparams) -> Solve:
    covariances = session.untouched.covariances(hparams) if hparams.mom2_adjustment else {}
    amount, previous_keys = hparams.protect_top_directions, session.previous_keys
    protected = (
        session.untouched.of_originals(hparams.layers, top_directions, amount) if amount else {}
    )

    def right_factor(layer: int, keys: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        return solve_right(
            keys[neurons],
            covariance=submatrix(covariances.get(layer), neurons),
            weight=hparams.mom2_update_weight,
            previous=previous_keys.matrix(layer, neurons) if hparams.use_previous_keys else None,
            layer=layer,
        )

    def select(layer: int, keys: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        share, rule = hparams.neuron_threshold, hparams.selection_rule
        if hparams.selection_by == "key_mass" or share >= 1.0:
            return select_neurons(keys, share, rule)
        right = right_factor(layer, keys, all_neurons(keys)).double()
        update = residual.to(right.device).double() @ right  # layers may lie on other devices
        return select_by(update.norm(dim=0), share, rule)

    def solve(layer: int, keys: torch.Tensor, residual: torch.Tensor) -> Factors:
        neurons = select(layer, keys, residual)
        right = right_factor(layer, keys, neurons)
        if layer in protected:
            return Factors(neurons, *keep_out(protected[layer], neurons, residual, right))
        return Factors(neurons, residual, right)

    return solve
