"""How much of the key space the previous keys use."""

from __future__ import annotations

import torch


def key_share(keys: torch.Tensor, max_keys: int = 2048) -> float | None:
    """Share of the key space in use: effective dimension of keys [d_ff, n] over d_ff.

    The effective dimension is exp of the entropy of the normalised eigenvalues of K K^T.  Of more
    than ``max_keys`` keys, as many are taken at even distances.
    """
    d_ff, n = keys.shape
    if n > max_keys:
        keys = keys[:, torch.linspace(0, n - 1, max_keys, dtype=torch.float64).round().long()]
    k = keys.double()
    gram = k.T @ k if k.shape[1] < d_ff else k @ k.T  # both have the same eigenvalues above 0
    if not bool(torch.isfinite(gram).all()):
        return None
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = eigenvalues.sum()
    if float(total) == 0:
        return 0.0
    shares = eigenvalues / total
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(entropy.exp()) / d_ff
