"""The null space of the keys of general text (AlphaEdit, arXiv 2410.02355, section 3.2).

A change that gives zero for every key of general text leaves the model as it is there.  Exact
zeros do not exist, so directions in which the covariance is below a threshold count as unused.
"""

from __future__ import annotations

import torch

from nse_plugin.errors import StatisticsError


def busy_directions(covariance: torch.Tensor, threshold: float) -> torch.Tensor:
    """Directions that general text uses: eigenvectors of C with an eigenvalue from a threshold on.

    With them as U, the projection onto the null space is P = I - U U^T.

    Args:
        covariance: C [d_ff, d_ff], the mean of k k^T over tokens.
        threshold: an eigenvalue below this counts as zero.

    Returns:
        U [d_ff, r] float64, orthonormal columns.

    Raises:
        StatisticsError: no direction is below the threshold, so nothing could be written.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    busy = values >= threshold
    if bool(busy.all()):
        raise StatisticsError(
            f"nullspace_threshold is {threshold:g}, and the smallest eigenvalue of the covariance "
            f"is {float(values[0]):.2g}: no direction is left to write in; raise it (the median "
            f"eigenvalue is {float(values.median()):.2g})"
        )
    return vectors[:, busy].contiguous()


def into_null_space(busy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """P x = x - U U^T x, for U [d_ff, r] and x [d_ff, n], both float64."""
    return x - busy @ (busy.T @ x)
