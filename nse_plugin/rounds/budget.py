"""Bounds of what a run takes on disk and in main memory, worked out before it starts.

Of a round of n edits with a method of ours, per layer and in float32: keys [d_ff, n], and for each
write pass left [d_model, n], right [n, d_ff] and d_ff neuron numbers of 8 bytes.  That is on disk,
and the ledger reads it from there when it is needed.  Memory takes each edited matrix's original
and its float32 change (three times while one is written), each layer's covariance [d_ff, d_ff] in
float32, and P [d_ff, d_ff] in float64 where it is kept (d_ff up to 4096, or more edits than d_ff;
else the keys of all edits, twice while some are added), and a solve takes four such matrices in
float64.  With a method of the host, a round is as large as the matrices it changes, which is known
after the first one only; until then one down-projection per layer is assumed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nse_plugin.errors import DataError, ModelError
from nse_plugin.model.arch import DecoderLayout

_LINE = 2500  # bytes of log, request and frozen answers per request, about
_SPARE = 1 << 20


@dataclass(frozen=True)
class Budget:
    """Upper bounds in bytes."""

    rounds: int
    """Rounds that are known of; a stream counts as one, and disk is looked at before each."""
    disk_per_round: int
    disk: int
    """Of all rounds, log and frozen answers included."""
    memory_ledger: int
    """Factors and previous keys of all rounds; they stay on disk, so not counted in ``memory``."""
    memory_originals: int
    """Originals and changes of the edited matrices."""
    memory_solve: int
    """Covariances, previous keys and the solve."""

    @property
    def memory(self) -> int:
        """Beside model and activations."""
        return self.memory_originals + self.memory_solve

    def to_dict(self) -> dict[str, int]:
        """For the manifest."""
        return asdict(self)

    def text(self) -> str:
        """One line for people."""
        return (
            f"at most {_size(self.disk)} on disk ({_size(self.disk_per_round)} a round), "
            f"{_size(self.memory)} of memory beside the model (originals and changes "
            f"{_size(self.memory_originals)}, solve {_size(self.memory_solve)}; "
            f"ledger {_size(self.memory_ledger)}, read from disk)"
        )

    def check(self, folder: Path) -> None:
        """Raise :class:`DataError` where disk or memory is less than the bounds."""
        check_disk(folder, self.disk)
        free = free_memory()
        if free is not None and self.memory > free:
            raise DataError(
                f"the run needs up to {_size(self.memory)} of memory beside the model and "
                f"{_size(free)} are free; edit fewer layers or requests, or use a larger machine. "
                f"It takes {self.text()}"
            )


def estimate(
    model: Any, hparams: Any, round_size: int, n_requests: int | None, ours: bool
) -> Budget:
    """Bounds for a model and a method.

    Args:
        n_requests: None where the stream is not known in advance.
    """
    layers = len(getattr(hparams, "layers", None) or [0])
    try:
        layout = DecoderLayout(model)
        d_model, d_ff = layout.d_model, layout.d_ff
    except ModelError:  # a model whose parts we do not know, edited by the host
        d_model = d_ff = max(max(p.shape) for p in model.parameters() if p.dim() == 2)
    n_all = n_requests if n_requests is not None else round_size
    n = min(round_size, n_all)
    rounds = max(1, -(-n_all // round_size))
    if ours:
        passes = int(getattr(hparams, "max_iterations", 1))
        per_edit = 4 * layers * (d_ff + passes * (d_model + d_ff))
        per_round = per_edit * n + layers * passes * d_ff * 8 + n * 1000 + 4096
        covariances = 4 * layers if getattr(hparams, "mom2_adjustment", False) else 0
        few = d_ff > 4096 and n_requests is not None  # a stream may become long
        previous = 8 * layers * d_ff * (min(n_all, d_ff) if few else d_ff)
        solve = d_ff * d_ff * (4 * 8 + covariances) + previous
        ledger = per_edit * n_all + rounds * layers * passes * d_ff * 8
    else:
        per_round = 4 * layers * d_ff * d_model + 4096
        solve = ledger = 0
    return Budget(
        rounds=rounds,
        disk_per_round=per_round + n * _LINE,
        disk=rounds * per_round + n_all * _LINE,
        memory_ledger=ledger,
        memory_originals=layers * d_model * d_ff * (4 + 3 * 4),
        memory_solve=solve,
    )


def check_disk(folder: Path, needed: int) -> None:
    """Raise :class:`DataError` where fewer bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise DataError(
            f"{folder} has {_size(free)} free and the run needs up to {_size(needed)} more; free "
            "space or give a folder elsewhere. The same command goes on from the last whole round"
        )


def free_memory() -> int | None:
    """Bytes of main memory that are free, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
