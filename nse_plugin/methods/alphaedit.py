"""AlphaEdit: null-space constrained editing (arXiv 2410.02355, ICLR 2025).

As in :mod:`nse_plugin.methods.spread`, with values optimised in the model as it is now, one pass,
all neurons.  The change is kept out of the directions that general text uses: P projects onto the
eigenvectors of the covariance C whose eigenvalue is below a threshold.  With the keys K_p of all
earlier rounds and a weight L2 (equation 14),

    Delta = R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1

Whatever K is projected to, Delta stays in the range of P, so this is the solve of the other methods
with PK for the keys, P K_p K_p^T P for the previous ones, and L2 I in place of lambda C.
"""

from __future__ import annotations

from functools import partial

import torch

from nse_plugin.hparams import AlphaEditHparams
from nse_plugin.locate.null_space import busy_directions, into_null_space
from nse_plugin.locate.update import all_neurons, few_keys_right, solve_right
from nse_plugin.methods.spread import spread_round
from nse_plugin.methods.writer import Solve
from nse_plugin.session.norms import Factors
from nse_plugin.session.session import EditSession


def _solver(session: EditSession, hparams: AlphaEditHparams) -> Solve:
    busy = session.untouched.of_covariances(hparams, busy_directions, hparams.nullspace_threshold)

    def solve(layer: int, keys: torch.Tensor, residual: torch.Tensor) -> Factors:
        neurons = all_neurons(keys)
        spared = busy[layer].to(keys.device)
        projected = into_null_space(spared, keys.double())
        earlier = session.previous_keys.few(layer, keys)
        if earlier is not None and 2 * (keys.shape[1] + earlier.shape[1]) <= len(keys):
            earlier = into_null_space(spared, earlier)
            right = few_keys_right(
                projected, projected / hparams.L2, earlier, earlier / hparams.L2,
                layer=layer, weight_name="L2",
            )  # fmt: skip
            return Factors(neurons, residual, right[: residual.shape[1]])
        previous = session.previous_keys.matrix(layer, neurons)
        if previous is not None:
            previous = into_null_space(spared, into_null_space(spared, previous).T)
        right = solve_right(
            projected,
            covariance=torch.eye(len(neurons), dtype=torch.float64, device=keys.device),
            weight=hparams.L2,
            previous=previous,
            layer=layer,
            weight_name="L2",
        )
        return Factors(neurons, residual, right[: residual.shape[1]])

    return solve


edit_round = partial(spread_round, solver=_solver, rewind=False)
"""Write one round of requests; see :func:`nse_plugin.methods.spread.spread_round`."""
