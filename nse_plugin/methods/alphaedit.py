"""AlphaEdit: null-space constrained editing (arXiv 2410.02355, ICLR 2025).

As in :mod:`nse_plugin.methods.spread`, with values optimised in the current model, one pass, all
neurons.  A change that maps every key of general text to zero leaves the model unchanged there
(section 3.2).  Exact zeros do not exist, so P projects onto the eigenvectors of the covariance C
whose eigenvalue is below a threshold.  With the keys K_p of all earlier rounds and a weight L2
(equation 14),

    Delta = R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1

Whatever K is projected to, Delta stays in the range of P, so this is the solve of the other methods
with PK for the keys, P K_p K_p^T P for the previous ones, and L2 I in place of lambda C.
"""

from __future__ import annotations

from functools import partial

import torch

from nse_plugin.hparams import AlphaEditHparams
from nse_plugin.locate.update import all_neurons, few_keys_right, solve_right
from nse_plugin.methods.spread import SpreadMethod, spread_round
from nse_plugin.session.norms import Factors
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.null_space import kept_busy_directions


def into_null_space(busy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """P x = x - U U^T x, for U [d_ff, r] and x [d_ff, n], both float64."""
    return x - busy @ (busy.T @ x)


def _method(session: EditSession, hparams: AlphaEditHparams) -> SpreadMethod:
    untouched, threshold = session.untouched, hparams.nullspace_threshold
    busy = {}
    for layer in hparams.layers:
        path = untouched.statistics_path(hparams, layer)
        busy[layer] = untouched.of_covariance(hparams, layer, kept_busy_directions, threshold, path)

    def right(layer: int, keys: torch.Tensor) -> torch.Tensor:
        """float32 [n, d_ff], for keys [d_ff, n]."""
        U = busy[layer].to(keys.device)
        projected = into_null_space(U, keys.double())
        earlier = session.previous_keys.few(layer, keys)
        if earlier is not None and 2 * (keys.shape[1] + earlier.shape[1]) <= len(keys):
            if earlier.shape[1]:
                project = partial(into_null_space, U)
                earlier = session.previous_keys.solved(layer, U, project)
            return few_keys_right(
                projected, projected / hparams.L2, earlier, earlier / hparams.L2,
                layer=layer, weight_name="L2",
            )  # fmt: skip
        previous = session.previous_keys.matrix(layer, all_neurons(keys))
        if previous is not None:
            previous = into_null_space(U, into_null_space(U, previous).T)
        return solve_right(
            projected,
            covariance=torch.eye(len(keys), dtype=torch.float64, device=keys.device),
            weight=hparams.L2,
            previous=previous,
            layer=layer,
            weight_name="L2",
        )

    def solve(layer: int, keys: torch.Tensor, residual: torch.Tensor) -> Factors:
        return Factors(all_neurons(keys), residual, right(layer, keys)[: residual.shape[1]])

    return SpreadMethod(solve)


edit_round = partial(spread_round, _method)
"""Write one round of requests; see :func:`nse_plugin.methods.spread.spread_round`."""
