"""The closed-form write: which neurons, and how each of them changes.

    Delta[:, I] = R K_I^T (lambda C[I,I] + P[I,I] + K_I K_I^T)^-1

R [d_model, n] is the residual to write, K [d_ff, n] the keys, C [d_ff, d_ff] the covariance, P the
sum of k k^T over earlier keys, I the selected neurons (arXiv 2410.04045, equations 8-11).
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from nse_plugin.errors import NotFiniteError, StatisticsError


def all_neurons(keys: torch.Tensor) -> torch.Tensor:
    """Indices [d_ff] of every neuron, for keys [d_ff, n] or scores [d_ff]."""
    return torch.arange(keys.shape[0], device=keys.device)


def submatrix(matrix: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
    """M[I, I] on the device of ``neurons`` [|I|]."""
    if len(neurons) == len(matrix):
        return matrix.to(neurons.device)
    rows = neurons.to(matrix.device)
    return matrix[rows[:, None], rows].to(neurons.device)


def select_by(
    score: torch.Tensor, threshold: float, rule: Literal["cover", "within"]
) -> torch.Tensor:
    """The neurons with the largest scores [d_ff] that together hold a share of the total.

    Args:
        threshold: p, the share; 1 selects every neuron.
        rule: ``cover`` is the paper's smallest set with at least p of the total, ``within`` its
            published code's largest set with at most p (never fewer than one neuron here).

    Returns:
        Indices [|I|], rising.
    """
    if threshold >= 1.0:
        return all_neurons(score)
    mass, order = score.sort(descending=True, stable=True)
    covered = mass.cumsum(dim=0)
    bound = threshold * covered[-1]
    if rule == "cover":
        count = int((covered < bound).sum()) + 1
    else:
        count = max(1, int((covered <= bound).sum()))
    return order[: min(count, len(order))].sort().values


def solve_right(
    keys: torch.Tensor,
    *,
    covariance: torch.Tensor | None,
    weight: float,
    previous: torch.Tensor | None,
    layer: int,
    weight_name: str = "mom2_update_weight",
    ridge: float = 0.0,
) -> torch.Tensor:
    """K^T (lambda C + P + K K^T + ridge I)^-1, the right factor of the write, solved in float64.

    Args:
        keys: [|I|, n], rows of the selected neurons.
        covariance: C [|I|, |I|], or None to leave it out; the system is then solved in the
            least-squares sense, by its pseudo-inverse.
        weight: lambda.
        previous: P [|I|, |I|], or None where there are no earlier rounds.
        layer: for the message.
        weight_name: name of the hyperparameter for lambda, for the message.
        ridge: added to the diagonal.

    Returns:
        float32 [n, |I|].

    Raises:
        NotFiniteError: a key is not finite.
        StatisticsError: the system is not positive definite.
    """
    k = _finite(keys, layer)
    system = k @ k.T
    if covariance is not None:
        system += weight * covariance.double()
    if previous is not None:
        system += previous.double()
    if ridge:
        system.diagonal().add_(ridge)
    if covariance is None:  # with fewer keys than neurons: the smallest change that fits
        return (k.T @ torch.linalg.pinv(system, hermitian=True)).float().contiguous()
    factor, failed = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(k, factor)
    if bool(failed) or not bool(torch.isfinite(solved).all()):
        raise _singular(layer, len(keys), weight_name)
    return solved.T.float().contiguous()


def few_keys_right(
    keys: torch.Tensor,
    solved: torch.Tensor,
    earlier: torch.Tensor,
    earlier_solved: torch.Tensor,
    *,
    layer: int,
    weight_name: str = "mom2_update_weight",
) -> torch.Tensor:
    """K^T (A + E E^T + K K^T)^-1 for all neurons, from a system with as many unknowns as keys.

    With U = [K, E] this is the first n rows of (I + U^T A^-1 U)^-1 U^T A^-1 (Woodbury), so A is
    factored once and not in every round.

    Args:
        keys: K [d_ff, n].
        solved: A^-1 K [d_ff, n], float64.
        earlier: E [d_ff, m], the keys of earlier rounds, float64.
        earlier_solved: A^-1 E [d_ff, m], float64.
        layer, weight_name: for the message.

    Returns:
        float32 [n, d_ff].

    Raises:
        NotFiniteError: a key is not finite.
        StatisticsError: the system is singular.
    """
    k = _finite(keys, layer)
    U, solved_U = torch.cat([k, earlier], dim=1), torch.cat([solved, earlier_solved], dim=1)
    system = U.T @ solved_U
    system = (system + system.T) / 2
    system.diagonal().add_(1.0)
    factor, failed = torch.linalg.cholesky_ex(system)
    wanted = torch.eye(len(system), keys.shape[1], dtype=torch.float64, device=system.device)
    right = (solved_U @ torch.cholesky_solve(wanted, factor)).T
    if bool(failed) or not bool(torch.isfinite(right).all()):
        raise _singular(layer, len(keys), weight_name)
    return right.float().contiguous()


def smallest_right(keys: torch.Tensor, earlier: torch.Tensor, *, layer: int) -> torch.Tensor:
    """K^T (E E^T + K K^T)^+, the smallest change that fits without a covariance.

    These are the first n rows of the pseudo-inverse of [K, E].

    Args:
        keys: K [|I|, n], rows of the selected neurons.
        earlier: E [|I|, m].
        layer: for the message.

    Returns:
        float32 [n, |I|].
    """
    U = torch.cat([_finite(keys, layer), earlier.double()], dim=1)
    tolerance = math.sqrt(len(U) * torch.finfo(torch.float64).eps)  # U U^T has its square
    return torch.linalg.pinv(U, rtol=tolerance)[: keys.shape[1]].float().contiguous()


def _finite(keys: torch.Tensor, layer: int) -> torch.Tensor:
    """The keys in float64; raises :class:`NotFiniteError` if one is not finite."""
    k = keys.double()
    if not bool(torch.isfinite(k).all()):
        raise NotFiniteError(
            f"the keys of layer {layer} hold NaN or infinity: earlier edits broke the model; undo "
            "the last rounds, or edit with smaller changes (lower v_lr)"
        )
    return k


def _singular(layer: int, n_neurons: int, weight_name: str) -> StatisticsError:
    way_out = (
        "the covariance is not of full rank: raise mom2_n_samples, so that its text has several "
        "tokens per neuron, or give ridge: 0.001 (NSE)"
        if weight_name == "mom2_update_weight"
        else f"raise {weight_name}"
    )
    return StatisticsError(
        f"the system of layer {layer} is singular ({n_neurons} neurons); {way_out}"
    )


def factor_if_regular(covariance: torch.Tensor, ridge: float = 0.0) -> torch.Tensor | None:
    """The Cholesky factor of C + ridge I, float64 [d_ff, d_ff]; None if that is singular."""
    system = covariance.double()
    if ridge:
        system = system.clone()
        system.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(system)
    return None if bool(failed) else factor


def solve_factored(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A^-1 B [d_ff, n], float64, from the Cholesky factor of A.

    ``torch.cholesky_solve`` gives the same and copies the factor, which takes ten times as long for
    a few columns.
    """
    half = torch.linalg.solve_triangular(factor, right.double(), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def covariance_factor(covariance: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor of C [d_ff, d_ff], float64.

    Raises:
        StatisticsError: C is singular.
    """
    factor = factor_if_regular(covariance)
    if factor is None:
        raise StatisticsError(
            f"the covariance of {covariance.shape[0]} neurons is singular; raise mom2_n_samples so "
            "that it has full rank, or set mom2_adjustment: false"
        )
    return factor


def rank_one_right(
    key: torch.Tensor, mean_key: torch.Tensor, factor: torch.Tensor | None
) -> torch.Tensor:
    """u^T / (u . k), the right factor of a change that maps the key k to its left factor.

    u = C^-1 k_mean preserves general text best (ROME, arXiv 2202.05262, equation 2).

    Args:
        key: k [d_ff, 1], of the bare prompt.
        mean_key: k_mean [d_ff, 1], over the contexts.
        factor: of C, from :func:`covariance_factor`; None to take u = k_mean.

    Returns:
        float32 [1, d_ff].
    """
    u = mean_key.double()
    if factor is not None:
        u = solve_factored(factor.to(u.device), u)
    return (u / (key.double().T @ u)).T.float()
