"""Stabilisers from later papers, for long sequences of edits; options of NSE, off by default.

- norm anchor (arXiv 2602.02543): a value is rescaled to the norm of the original activation, so
  that values and weights cannot drive each other's norms up from round to round;
- spectral filter (REVIVE, arXiv 2601.11042): a change is kept out of the dominant singular
  directions of the original matrix, on both sides;
- soft projection (SPHERE, arXiv 2510.01172): a change is made smaller along the dominant directions
  of the matrix before the round, on the side of the neurons.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from nse_plugin.errors import HparamsError
from nse_plugin.locate.values import Values


def anchored(values: Values, reference: torch.Tensor) -> Values:
    """Values with z := z ||h|| / ||z||, for h [n, d_model] of the original model.

    The direction of z stays; the reported loss is that of z before rescaling.
    """
    scale = reference.norm(dim=1, keepdim=True) / values.z.norm(dim=1, keepdim=True)
    return replace(values, z=values.z * scale)


SOFT_SHARE = 0.5
"""Share of the squared singular values that the directions of the soft projection hold (the paper's
cumulative ratio)."""


class TopDirections(NamedTuple):
    """Singular vectors of the largest singular values of a matrix [d_model, d_ff]; float64."""

    left: torch.Tensor
    """U [d_model, k]."""
    right: torch.Tensor
    """V [d_ff, k]."""


def top_directions(weight: torch.Tensor, amount: float) -> TopDirections:
    """The dominant directions of W [d_model, d_ff].

    Args:
        amount: from 1 on, how many; below 1, the fewest that hold this share of the sum of the
            squared singular values.
    """
    W = weight.double()
    if W.shape[0] > W.shape[1]:
        return TopDirections(*reversed(top_directions(weight.T, amount)))
    squares, U = torch.linalg.eigh(W @ W.T)  # of the smaller side: the large directions are exact
    squares, U = squares.flip(0).clamp(min=0), U.flip(1)
    if amount >= 1:
        count = min(int(amount), len(squares))
    else:
        energy = squares.cumsum(dim=0)
        count = int((energy < amount * energy[-1]).sum()) + 1
    V, _ = torch.linalg.qr(W.T @ U[:, :count])  # of orthogonal columns, the largest first
    return TopDirections(U[:, :count].contiguous(), V)


def keep_out(
    top: TopDirections, neurons: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the change D without its part along U and V: U^T D = 0 and D V = 0.

    With all neurons this is (I - U U^T) D (I - V V^T).  With some, D stays on these: its rows are
    projected off the columns of V[I], so D V = D[:, I] V[I] is zero as well.

    Args:
        neurons: I [|I|].
        left: [d_model, n].
        right: [n, |I|].

    Returns:
        left and right, float32.

    Raises:
        HparamsError: nothing of the change would be left.
    """
    if top.left.shape[1] == len(top.left):
        raise HparamsError(
            f"protect_top_directions keeps the change out of all {len(top.left)} directions of the "
            "matrix, so nothing would be written; lower it"
        )
    U, new_left = top.left.to(left.device), left.double()
    new_left = new_left - U @ (U.T @ new_left)
    return new_left.float(), softened(top, neurons, right, 1.0)


def softened(
    top: TopDirections, neurons: torch.Tensor, right: torch.Tensor, alpha: float
) -> torch.Tensor:
    """The right factor of D (1 - alpha V V^T), float32 [n, |I|].

    Args:
        top: V; with some neurons, an orthonormal basis of the columns of V[I] is taken.
        neurons: I [|I|].
        right: [n, |I|].
        alpha: 1 removes all of D along the directions.

    Raises:
        HparamsError: nothing of the change would be left.
    """
    V, _ = torch.linalg.qr(top.right.to(right.device)[neurons])
    if alpha == 1 and V.shape[1] == len(neurons):
        raise HparamsError(
            "protect_top_directions or soft_projection keeps the change out of "
            f"{top.right.shape[1]} directions, and it has {len(neurons)} neurons, so nothing would "
            "be written; lower it, or raise neuron_threshold"
        )
    whole = right.double()
    return (whole - alpha * (whole @ V) @ V.T).float().contiguous()
