"""NSE: neuron-level sequential editing (arXiv 2410.04045, ACL 2025).

A round of requests is written into the MLP down-projections W_l of a few consecutive layers, the
last of which is the z-layer L:

1. *Values* (section 3.1).  z = h_L + delta makes the model produce the target.  It is optimised
   with the weights rewound to before the first edit of the sequence.
2. *Writing* (sections 3.2 and 3.3).  Layer by layer, K are the keys of the active requests (inputs
   of W_l), and the residual is spread over the layers still to write, this one included:

       R = (z - h_L) / layers left
       I = the neurons with the largest sum of |K|, until they hold p of all of it
       Delta[:, I] = R K_I^T (lambda C[I, I] + P[I, I] + K_I K_I^T)^-1

   C is the second moment of the keys of general text, P the sum of k k^T over all earlier rounds.
3. *Iterating* (section 3.4).  Step 2 again for the requests with alpha < ||z - h_L|| < upper_bound.

This file has step 2's formula, :mod:`nse_plugin.methods.spread` the loops of steps 2 and 3, which
MEMIT and AlphaEdit share, :mod:`nse_plugin.locate.values` the optimisation of step 1, and
:mod:`nse_plugin.methods.systems` the solve.
"""

from __future__ import annotations

from functools import partial

import torch

from nse_plugin.hparams import NSEHparams
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.stabilise import (
    SOFT_SHARE,
    TopDirections,
    anchored,
    keep_out,
    softened,
    top_directions,
)
from nse_plugin.locate.update import all_neurons, select_by
from nse_plugin.locate.values import Values
from nse_plugin.methods.spread import SpreadMethod, spread_round
from nse_plugin.methods.systems import Systems
from nse_plugin.methods.writer import Passes, Solve
from nse_plugin.session.norms import Factors, column_norms
from nse_plugin.session.session import EditSession


def _solver(session: EditSession, hparams: NSEHparams) -> Solve:
    """The formula of step 2."""
    systems = Systems(session, hparams, hparams.use_previous_keys, hparams.ridge)
    amount = hparams.protect_top_directions
    protected = {
        layer: session.untouched.of_original(layer, top_directions, amount)
        for layer in (hparams.layers if amount else ())
    }
    softly: dict[int, TopDirections] = {}  # of the weights before the round

    def select(layer: int, K: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
        """The neurons I; ``selection_by: update`` ranks them by the update of all neurons."""
        p, rule, n = hparams.neuron_threshold, hparams.selection_rule, R.shape[1]
        if p >= 1.0:
            return all_neurons(K)
        if hparams.selection_by == "key_mass":
            return select_by(K[:, :n].double().abs().sum(dim=1), p, rule)
        right = systems.right(layer, K, all_neurons(K))[:n]
        return select_by(column_norms(R, right), p, rule)

    def solve(layer: int, K: torch.Tensor, R: torch.Tensor) -> Factors:
        neurons = select(layer, K, R)
        right = systems.right(layer, K, neurons)[: R.shape[1]]
        if layer in protected:
            R, right = keep_out(protected[layer], neurons, R, right)
        if alpha := hparams.soft_projection:
            if layer not in softly:
                weight = session.layout.to_weight(session.layout.down(layer).weight.detach())
                softly[layer] = top_directions(weight, SOFT_SHARE)
            right = softened(softly[layer], neurons, right, alpha)
        return Factors(neurons, R, right)

    return solve


def _method(session: EditSession, hparams: NSEHparams) -> SpreadMethod:
    def anchor(values: Values, lookups: Lookups) -> Values:
        with session.weights.rewound():
            return anchored(values, lookups.activations(hparams.layers[-1]))

    return SpreadMethod(
        _solver(session, hparams),
        rewind=hparams.rewind,
        passes=Passes(
            hparams.max_iterations,
            hparams.alpha,
            hparams.upper_bound,
            hparams.alpha_relative,
            hparams.upper_bound_relative,
        ),
        adjust=anchor if hparams.value_norm_anchor else None,
    )


edit_round = partial(spread_round, _method)
"""Write one round of requests; see :func:`nse_plugin.methods.spread.spread_round`."""
