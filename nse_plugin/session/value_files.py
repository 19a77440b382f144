"""Values found in the untouched model, in files that several runs of this model share.

In a comparison, methods that differ only in how they write need the same values.  Values are shared
by whole rounds: a value depends, by rounding, on the requests that were optimised with it.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nse_plugin.files import write_whole
from nse_plugin.locate.values import Values
from nse_plugin.marks import mark
from nse_plugin.version import __version__

log = logging.getLogger(__name__)

_SECONDS = "seconds"


class ValueFiles:
    """A folder with a file per round of values.

    Args:
        folder: made with its first file.
        made_by: the untouched model, and what else of a run decides the last bits of its results.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self._folder = folder
        self._made_by = (__version__, torch.__version__, made_by)

    def read(self, key: Hashable, device: torch.device) -> tuple[Values, float] | None:
        """The values under a key and the seconds that their search took, or None."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Values(**found), float(file.metadata()[_SECONDS])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read (%s); its values are searched again", path, error)
            return None

    def write(self, key: Hashable, values: Values, seconds: float) -> None:
        """Keep values; a disk that is full costs no more than a warning."""
        tensors = {name: tensor.contiguous() for name, tensor in vars(values).items()}
        about = {_SECONDS: repr(seconds)}
        try:
            write_whole(self._path(key), lambda part: save_file(tensors, part, about))
        except OSError as error:
            log.warning("values are not kept for other runs (%s)", error)

    def _path(self, key: Hashable) -> Path:
        """The file of a key, whose ``repr`` has to hold all of it."""
        return self._folder / f"{mark(*self._made_by, repr(key)).hex()}.safetensors"
