"""The accumulated change of a layer as two thin factors, exactly or with a bounded rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nse_plugin.export.folder import total_change
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.norms import Factors, stacked
from nse_plugin.session.session import EditSession

_ZERO = 1e-9
"""Singular values below this share of the largest one are left out of an exact factorisation."""


@dataclass(frozen=True)
class Fit:
    """The quality of two factors as an approximation of a layer's change."""

    layer: int
    rank: int
    full_rank: int
    """The rank of the whole change."""
    relative_error: float
    """||BA - change|| / ||change||, Frobenius, with the stored float32 factors."""


def factors_by_layer(ledger: Ledger) -> dict[int, list[Factors]]:
    """By layer, the factors of all writes of a ledger; reads each round once."""
    found: dict[int, list[Factors]] = {}
    for record in ledger:
        for write in record.writes:
            found.setdefault(write.layer, []).append(write.factors())
    return found


@torch.no_grad()
def factorise(
    session: EditSession, layer: int, factors: Sequence[Factors], rank: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, Fit]:
    """A [r, d_ff] and B [d_model, r], float32, whose product is a layer's change.

    The best approximation of that rank (Eckart-Young), with the root of each singular value in both
    factors.  Computed in float64 from the ledger's factors, or from the accumulated change if there
    are at least as many of them as its smaller side.

    Args:
        factors: the factors of the layer's writes (:func:`factors_by_layer`).
        rank: an upper bound; None for the whole change.
    """
    change = total_change(session, layer).double()  # [d_model, d_ff]
    if sum(left.shape[1] for _, left, _ in factors) < min(change.shape):
        left, right = (part.to(change) for part in stacked(factors, change.shape[1]))
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        u, s, vh = torch.linalg.svd(r_left @ r_right.T)
        u, vh = q_left @ u, vh @ q_right.T
    else:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    full = max(1, int((s > _ZERO * s[0]).sum()))
    r = full if rank is None else min(rank, full)
    root = s[:r].sqrt()
    b, a = (u[:, :r] * root).float(), (root[:, None] * vh[:r]).float()
    norm = float(change.norm())
    error = float((b.double() @ a.double() - change).norm()) / norm if norm else 0.0
    return a, b, Fit(layer, r, full, error)
