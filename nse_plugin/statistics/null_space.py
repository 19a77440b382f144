"""Directions that general text uses, which AlphaEdit leaves alone (arXiv 2410.02355, section 3.2).

Their eigendecomposition takes minutes per layer where d_ff is large (cost d_ff^3), so it is then
kept in a file beside the statistics.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nse_plugin.errors import StatisticsError
from nse_plugin.files import write_whole
from nse_plugin.model.weights import fingerprint

log = logging.getLogger(__name__)

KEEP_FROM = 4096
"""Smallest d_ff whose directions are kept in a file; below, they take seconds."""


def busy_directions(covariance: torch.Tensor, threshold: float) -> torch.Tensor:
    """Directions that general text uses: eigenvectors of C whose eigenvalue reaches a threshold.

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


def kept_busy_directions(
    covariance: torch.Tensor, threshold: float, statistics: Path
) -> torch.Tensor:
    """:func:`busy_directions`, for a large d_ff read from a file, or computed and written to it.

    The file holds those of one threshold; another one replaces it.

    Args:
        statistics: the layer's statistics file; the file is beside it.
    """
    if len(covariance) < KEEP_FROM:
        return busy_directions(covariance, threshold)
    path = statistics.with_suffix(".busy.safetensors")
    made_from = {
        "covariance": str(fingerprint(covariance)),
        "threshold": repr(threshold),
    }
    try:
        with safe_open(path, framework="pt", device=str(covariance.device)) as file:
            if file.metadata() == made_from:
                return file.get_tensor("directions")
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read (%s); it is made again", path, error)
    directions = busy_directions(covariance, threshold)
    try:
        write_whole(path, lambda part: save_file({"directions": directions}, part, made_from))
    except OSError as error:
        log.warning("the eigenvectors are not kept for the next process (%s)", error)
    return directions
