"""Bounds on the disk space and main memory of a run, computed before it starts.

On disk, a round of n edits with a method of ours takes, in float32, values [d_model, n], and per
layer keys [d_ff, n] and for each write pass left [d_model, n], right [n, d_ff] and d_ff neuron
numbers of 8 bytes; the ledger reads them when they are needed.  A round that tests all earlier
edits (``repair_every``) may write all of them again, as a consolidation does.  Rounds that write
earlier edits of their subjects again (``merge_subjects``) are larger by these, which is not
counted.  In memory, each edited matrix takes its original and its float32 change (three times while
it is written), each layer its covariance [d_ff, d_ff] in float32 and the factor of it in float64,
the keys of all edits while they are at most d_ff / 2 (in float32, twice while some are added, and
solved in float64) and, if it is kept, P [d_ff, d_ff] in float64 (d_ff up to 4096, or more edits
than d_ff / 2), and a solve four such matrices in float64.

FT stores the matrices that a round changed, UltraEdit these or smaller factors.  LoRA's adapters
and GRACE's codebook are stored whole after each round, so a codebook is counted at its last size.
The rounds of a host's method are as large as the matrices it changes, which is known after the
first round; until then one down-projection per layer is assumed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from nse_plugin.errors import DataError, ModelError
from nse_plugin.hparams import (
    FTHparams,
    GRACEHparams,
    LocateHparams,
    LoRAHparams,
    NSEHparams,
    SpreadHparams,
    UltraEditHparams,
)
from nse_plugin.hparams.overtone import base_of
from nse_plugin.model.probe import layout_of
from nse_plugin.session.codebook import find_layer

_LINE = 2500  # bytes of log, request and frozen answers per request, about
_SPARE = 1 << 20
_RECORD = 1000  # bytes of a request in its round's file
_TARGET = 64  # tokens of a target, at most
_HELD = 4 + 3 * 4  # bytes per number of an edited matrix: original and change


@dataclass(frozen=True)
class Budget:
    """Upper bounds in bytes."""

    rounds: int
    """Known rounds; a stream counts as one, and the disk is checked before each."""
    disk_per_round: int
    disk: int
    """Disk space of all rounds, log and frozen answers included."""
    memory_originals: int
    """Originals and changes of the edited matrices."""
    memory_solve: int
    """Covariances, previous keys and the solve."""

    @property
    def memory(self) -> int:
        """All memory beside model and activations."""
        return self.memory_originals + self.memory_solve

    def text(self) -> str:
        """One line for people."""
        return (
            f"at most {_size(self.disk)} on disk ({_size(self.disk_per_round)} a round), "
            f"{_size(self.memory)} of memory beside the model (originals and changes "
            f"{_size(self.memory_originals)}, solve {_size(self.memory_solve)})"
        )

    def check(self, folder: Path) -> None:
        """Raise :class:`DataError` if disk or memory is less than the bounds."""
        check_disk(folder, self.disk)
        free = free_memory()
        if self.memory > free:
            raise DataError(
                f"the run needs up to {_size(self.memory)} of memory beside the model and "
                f"{_size(free)} are free; edit fewer layers or requests, or use a larger machine. "
                f"It takes {self.text()}"
            )


class _Sizes(NamedTuple):
    """The space that a method takes, in bytes."""

    per_round: int
    originals: int
    solve: int
    consolidation: int = 0  # one, of all edits
    consolidations: int = 0  # how many there are


def estimate(model: Any, hparams: Any, round_size: int, n_requests: int | None) -> Budget:
    """Bounds for a model and a method.

    Args:
        n_requests: None if the stream is not known in advance.
    """
    n_all = round_size if n_requests is None else n_requests
    n, rounds = min(round_size, n_all), max(1, -(-n_all // round_size))
    base = base_of(hparams)
    if isinstance(base, (GRACEHparams, LoRAHparams)):
        sizes = _attached(model, base, n, n_all)
    elif isinstance(base, (FTHparams, UltraEditHparams)):
        replayed = isinstance(base, FTHparams) and base.replay
        sizes = _trained(*_shape(model), base, n_all if replayed else n)
    elif isinstance(base, LocateHparams):
        sizes = _located(*_shape(model), base, n, n_all, rounds, is_stream=n_requests is None)
    else:
        d_model, d_ff = _shape(model)
        matrices = len(getattr(hparams, "layers", None) or [0]) * d_ff * d_model
        sizes = _Sizes(4 * matrices + 4096, matrices * _HELD, 0)
    many = sizes.consolidations  # evenly spaced, so that the k-th has k / many of all edits
    consolidated = sizes.consolidation * (many + 1) // 2 if many else 0
    return Budget(
        rounds=rounds,
        disk_per_round=sizes.per_round + sizes.consolidation + n * _LINE,
        disk=rounds * sizes.per_round + consolidated + n_all * _LINE,
        memory_originals=sizes.originals,
        memory_solve=sizes.solve,
    )


def _located(
    d_model: int, d_ff: int, hparams: LocateHparams, n: int, n_all: int, rounds: int,
    is_stream: bool,
) -> _Sizes:  # fmt: skip
    layers, passes, every = len(hparams.layers), 1, 0
    if isinstance(hparams, NSEHparams):
        passes = hparams.max_iterations
    if isinstance(hparams, SpreadHparams):
        passes += hparams.repair_rounds
        known = [hparams.repair_every * n, hparams.consolidate_every_edits]
        every = n if hparams.consolidate_below else min(filter(None, known), default=0)
    per_edit = 4 * (layers * (d_ff + passes * (d_model + d_ff)) + d_model)
    covariances = (4 + 8) * layers if hparams.needs_covariance else 0
    most = d_ff if is_stream else n_all  # a stream may become long
    previous = (4 * 2 + 8) * min(most, d_ff // 2)  # the keys while they are few
    if d_ff <= 4096 or 2 * most > d_ff:
        previous += 8 * d_ff  # P
    return _Sizes(
        per_round=per_edit * n + layers * passes * d_ff * 8 + n * _RECORD + 4096,
        consolidation=(per_edit + _RECORD) * n_all if every else 0,
        consolidations=min(rounds, -(-n_all // every)) if every else 0,
        originals=layers * d_model * d_ff * _HELD,
        solve=d_ff * d_ff * (4 * 8 + covariances) + layers * d_ff * previous,
    )


def _trained(d_model: int, d_ff: int, hparams: FTHparams | UltraEditHparams, n: int) -> _Sizes:
    layers = len(hparams.layers)
    factors = layers * (4 * d_model * d_ff + 8 * d_ff)
    if isinstance(hparams, UltraEditHparams):  # moments of the features
        factors += layers * 16 * (d_model + d_ff)
    return _Sizes(
        per_round=factors + n * _RECORD + 4096,
        originals=layers * d_model * d_ff * _HELD,
        solve=layers * d_model * d_ff * 4 * 5,  # start, copy, gradient and Adam's two
    )


def _attached(model: Any, hparams: GRACEHparams | LoRAHparams, n: int, n_all: int) -> _Sizes:
    if isinstance(hparams, GRACEHparams):  # key, value, radius and target of every edit so far
        layer = find_layer(model, hparams.inner_params[0])
        state = n_all * (4 * sum(layer.weight.shape) + 4 + 8 * _TARGET)
    else:
        ends = tuple(hparams.target_modules)
        chosen = [m for path, m in model.named_modules() if path.endswith(ends)]
        weights = [m.weight for m in chosen if getattr(m, "weight", None) is not None]
        state = sum(4 * hparams.rank * (sum(weight.shape) + 2) for weight in weights)
    per_round = state + n * _RECORD + 16384  # which has the names of all tensors
    return _Sizes(per_round, originals=2 * state, solve=4 * state)


def _shape(model: Any) -> tuple[int, int]:
    """d_model and d_ff; if the layout is not known, the longest side of any matrix for both."""
    try:
        layout = layout_of(model)
        return layout.d_model, layout.d_ff
    except ModelError:
        longest = max(max(p.shape) for p in model.parameters() if p.dim() == 2)
        return longest, longest


def check_disk(folder: Path, needed: int) -> None:
    """Raise :class:`DataError` if fewer bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise DataError(
            f"{folder} has {_size(free)} free, and up to {_size(needed)} more are needed; free "
            "space or give a folder elsewhere. Whole rounds are kept; the same command resumes"
        )


def free_memory() -> int:
    """Free main memory in bytes."""
    return int(psutil.virtual_memory().available)


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
