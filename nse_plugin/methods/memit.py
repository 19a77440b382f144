"""MEMIT: mass-editing memory in a transformer (arXiv 2210.07229, ICLR 2023).

As in :mod:`nse_plugin.methods.spread`, with values optimised in the current model, one pass, all
neurons, and no memory of earlier rounds:

    Delta = R K^T (lambda C + K K^T)^-1        (equation 14)

With ``use_previous_keys`` the sum P of k k^T over all earlier rounds joins the system, which makes
MEMIT a sequential method: NSE without rewinding, selection and further passes.
"""

from __future__ import annotations

from functools import partial

import torch

from nse_plugin.hparams import MEMITHparams
from nse_plugin.locate.update import all_neurons
from nse_plugin.methods.spread import SpreadMethod, spread_round
from nse_plugin.methods.systems import Systems
from nse_plugin.session.norms import Factors
from nse_plugin.session.session import EditSession


def _method(session: EditSession, hparams: MEMITHparams) -> SpreadMethod:
    systems = Systems(session, hparams, hparams.use_previous_keys)

    def solve(layer: int, keys: torch.Tensor, residual: torch.Tensor) -> Factors:
        neurons = all_neurons(keys)
        right = systems.right(layer, keys, neurons)
        return Factors(neurons, residual, right[: residual.shape[1]])

    return SpreadMethod(solve)


edit_round = partial(spread_round, _method)
"""Write one round of requests; see :func:`nse_plugin.methods.spread.spread_round`."""
