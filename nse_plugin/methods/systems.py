"""The solve that NSE and MEMIT share: K_I^T (lambda C'[I, I] + P[I, I] + K_I K_I^T)^-1.

C' is C, the second moment of the keys of general text; with a ridge r, C' = C + r mean(diag C) 1
(ENCORE, arXiv 2502.01636, adds a multiple of 1 without a unit).  P is the sum of k k^T over earlier
rounds, K the keys to write, I the neurons.

With all neurons and few keys only C' is factored, once per model: a write then costs d_ff^2 n and
not d_ff^3.
"""

from __future__ import annotations

from functools import partial

import torch

from nse_plugin.hparams import LocateHparams
from nse_plugin.locate.update import (
    factor_if_regular,
    few_keys_right,
    smallest_right,
    solve_factored,
    solve_right,
    submatrix,
)
from nse_plugin.session.previous_keys import no_keys
from nse_plugin.session.session import EditSession


class Systems:
    """The systems of a round, by layer.

    Args:
        use_previous: whether P is part of them.
        ridge: r.
    """

    def __init__(
        self,
        session: EditSession,
        hparams: LocateHparams,
        use_previous: bool,
        ridge: float | None = None,
    ) -> None:
        self._untouched, self._previous = session.untouched, session.previous_keys
        self._hparams, self._use_previous = hparams, use_previous
        self._C = session.untouched.covariances(hparams) if hparams.mom2_adjustment else {}
        self._ridges = {
            layer: ridge * float(C.diagonal().double().mean()) if ridge else 0.0
            for layer, C in self._C.items()
        }

    def right(self, layer: int, K: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        """The right factor of the write, float32 [n, |I|], for K [d_ff, n] and I [|I|]."""
        C, found = self._C.get(layer), None
        if C is None or len(neurons) == len(K):  # few earlier keys are enough, without P
            E = self._previous.few(layer, K) if self._use_previous else no_keys(K)
            if E is not None and C is None:
                found = smallest_right(K[neurons], E[neurons], layer=layer)
            elif E is not None:
                found = self._of_all(layer, K, E)
        if found is not None:
            return found
        weight = self._hparams.covariance_weight(len(K))
        if C is not None:  # on the layer's device, which is that of the keys
            C = submatrix(self._untouched.of_covariance(self._hparams, layer, _itself), neurons)
        return solve_right(
            K[neurons],
            covariance=C,
            weight=weight,
            previous=self._previous.matrix(layer, neurons) if self._use_previous else None,
            layer=layer,
            ridge=weight * self._ridges.get(layer, 0.0),
        )

    def _of_all(self, layer: int, K: torch.Tensor, E: torch.Tensor) -> torch.Tensor | None:
        """The same for all neurons; None if C' has no factor or the keys are not few."""
        weight = self._hparams.covariance_weight(len(K))
        if 2 * (K.shape[1] + E.shape[1]) > len(K):
            return None
        factor = self._untouched.of_covariance(
            self._hparams, layer, factor_if_regular, self._ridges[layer]
        )
        if factor is None:
            return None
        solved = partial(solve_factored, factor)
        E_solved = self._previous.solved(layer, factor, solved) if E.shape[1] else E
        return few_keys_right(K, solved(K) / weight, E, E_solved / weight, layer=layer)


def _itself(covariance: torch.Tensor) -> torch.Tensor:
    return covariance
