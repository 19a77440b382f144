"""Second moments C_l = E[k k^T] of the keys of general text (arXiv 2410.04045; ROME).

The keys of layer l are the inputs of its MLP down-projection.  :func:`second_moments` reads
statistics files, EasyEdit's included, and computes missing layers in one pass over the text, which
can be interrupted and resumed.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from nse_plugin.errors import StatisticsError
from nse_plugin.files import make_folder
from nse_plugin.model.hooks import quiet, visit_inputs
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch, micro_batches
from nse_plugin.statistics.files import (
    SCHEMA,
    SecondMoment,
    StatisticsFiles,
    model_fingerprint,
    read_partial,
    write_partial,
)
from nse_plugin.statistics.named_texts import check_text
from nse_plugin.statistics.text_sources import chunk_size, source_digest, token_chunks

log = logging.getLogger(__name__)
PROGRESS_LOG = logging.getLogger("nse_plugin.progress")
"""Logs the progress of a pass at level INFO."""

SAY_EVERY_S = 30.0
"""Seconds between two messages about the progress of a pass."""

_LONG_S = 3.0
"""Passes shorter than this many seconds are not announced."""

SAVE_EVERY_S = 30.0
"""Seconds between two writes of an unfinished pass; more if a write takes long."""
_LONGEST = 1024  # maximum tokens of a text


def second_moments(
    layout: DecoderLayout,
    tokenizer: Any,
    layers: Sequence[int],
    *,
    source: str,
    n_samples: int,
    stats_dir: str | Path,
    dtype: str = "float32",
    token_budget: int = 8192,
    recompute: bool = False,
) -> dict[int, SecondMoment]:
    """Read or compute the second moments of some layers' keys.

    Each layer is read from our own file, else from EasyEdit's ``.npz``, else computed and written
    to our own file.  The model must hold its original weights; edited MLPs are not detected when a
    file is read.

    Args:
        source: the text: ``self``, a named text, a text file, or a dataset; see
            :mod:`nse_plugin.statistics.text_sources`.
        n_samples: number of texts; all of them if the source has fewer.
        stats_dir: folder of all statistics files.
        dtype: EasyEdit's ``mom2_dtype``, ``float32`` or ``float64``: the dtype of k k^T, and part
            of the file names.  Sums are always float64.
        token_budget: tokens per batch, padding included.
        recompute: ignore existing files and overwrite ours.

    Returns:
        By layer, on the CPU.

    Raises:
        StatisticsError: a file is damaged or of another model, or the text is not available.
        ModelError: a layer does not exist.
    """
    layers = list(dict.fromkeys(layers))
    layout.check_layers(layers)
    check_text(source, tokenizer)
    files = StatisticsFiles(
        layout,
        Path(stats_dir),
        source,
        n_samples,
        dtype,
        source_digest(source),
        model_fingerprint(layout),
    )
    found = {} if recompute else {layer: files.read(layer) for layer in layers}
    moments = {layer: moment for layer, moment in found.items() if moment is not None}
    missing = [layer for layer in layers if layer not in moments]
    if missing:
        make_folder(files.folder, "the statistics")
        sums = _Sums(layout, missing, getattr(torch, dtype))
        _one_pass(files, tokenizer, sums, token_budget)
        with _interrupts_held():
            for layer in missing:
                moments[layer] = sums.moment(layer, source)
                files.write(layer, moments[layer])
            _remove_partials(files)
    return {layer: moments[layer] for layer in layers}


def _remove_partials(files: StatisticsFiles) -> None:
    """Remove the files of unfinished passes whose layers are all there now, however computed."""
    for path in files.folder.glob(files.partial_path(["*"]).name):
        layers = re.findall(r"\d+", path.name.partition("_")[0])
        if all(files.path(int(layer)).exists() for layer in layers):
            path.unlink(missing_ok=True)


class _Sums:
    """Float64 sums of k k^T by layer, and the progress of the pass over the text.

    Only the blocks on and above the diagonal are summed, as k k^T is symmetric.
    """

    def __init__(self, layout: DecoderLayout, layers: Sequence[int], dtype: torch.dtype) -> None:
        self.layout = layout
        self.dtype = dtype
        self.totals: dict[int, torch.Tensor] = {}
        for layer in layers:
            device = _home(layout.down(layer).weight.device, layout.d_ff)
            shape = (layout.d_ff, layout.d_ff)
            self.totals[layer] = torch.zeros(shape, dtype=torch.float64, device=device)
        self.count = 0  # tokens
        self.n_samples = 0  # texts
        self.position = (0, 0)  # chunk, and number of its batches in the sums
        self.whole = True  # False while a batch is in the sums of only some layers

    def add_batch(self, rows: Sequence[Sequence[int]]) -> None:
        """Run a batch of token rows and add the keys of all its tokens."""
        modules = {layer: self.layout.down(layer) for layer in self.totals}
        self.whole = False
        batch = TokenBatch.of(rows, self.layout.input_device)
        visit_inputs(self.layout, batch, modules, self._add)
        self.count += sum(len(row) for row in rows)
        self.n_samples += len(rows)
        self.position = (self.position[0], self.position[1] + 1)
        self.whole = True

    def _add(self, layer: int, keys: torch.Tensor) -> None:
        keys, total = keys.to(self.dtype), self.totals[layer]  # keys [tokens, d_ff]
        for block in _blocks(len(total)):
            product = keys[:, block].T @ keys[:, block.start :]
            if not bool(torch.isfinite(product.diagonal()).all()):
                raise StatisticsError(
                    f"the keys of layer {layer} hold NaN or infinity on ordinary text; load the "
                    "model in bfloat16 or float32"
                )
            total[block, block.start :] += product.to(total.device)

    def moment(self, layer: int, source: str) -> SecondMoment:
        """The mean, exactly symmetric; frees the layer's sum."""
        total = self.totals.pop(layer).cpu()
        for block in _blocks(len(total)):
            own = total[block, block]
            total[block, block] = (own + own.T) / 2
            total[block.stop :, block] = total[block, block.stop :].T
        mean = total.div_(self.count).float()
        return SecondMoment(mean, self.count, self.n_samples, source)

    def resume(self, path: Path, key: dict[str, Any]) -> None:
        """Resume from the file of an unfinished pass, if it belongs to the same pass."""
        header = read_partial(path, key, self.totals)
        if header is None:
            return
        self.count, self.n_samples = header["count"], header["n_samples"]
        self.position = tuple(header["position"])
        log.info("resuming after %d texts: %s", self.n_samples, path)

    def save(self, path: Path, key: dict[str, Any]) -> bool:
        """Write the unfinished pass, and return whether that worked.

        The file may need more room than the statistics, so a full disk does not end the pass.
        """
        header = {
            "key": key,
            "count": self.count,
            "n_samples": self.n_samples,
            "position": self.position,
        }
        try:
            write_partial(path, header, self.totals)
        except OSError as error:
            log.warning("the statistics so far are not saved (%s)", error)
            return False
        return True


def _blocks(size: int) -> Iterator[slice]:
    """Cut 0..size into at most eight slices."""
    step = -(-size // 8)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _one_pass(files: StatisticsFiles, tokenizer: Any, sums: _Sums, token_budget: int) -> None:
    """Sum over the text; an unfinished pass is saved to a file."""
    max_length = files.layout.at_most(_LONGEST)
    path = files.partial_path(sums.totals)
    key = {
        "schema": SCHEMA,
        "fingerprint": files.fingerprint,
        "source": files.source,
        "digest": files.digest,
        "n_samples": files.n_samples,
        "dtype": files.dtype,
        "token_budget": token_budget,
        "max_length": max_length,
        "chunk": chunk_size(files.source),
    }
    sums.resume(path, key)
    chunks = token_chunks(
        files.source,
        files.layout,
        tokenizer,
        n_samples=files.n_samples,
        max_length=max_length,
        first=sums.position[0],
    )
    next_save = time.monotonic() + SAVE_EVERY_S
    progress = _Progress(files, sums)
    with progress.bar, quiet(files.layout.model):
        try:
            for rows in chunks:
                rows = sorted(rows, key=len, reverse=True)
                runs = micro_batches([len(row) for row in rows], token_budget)
                for run in runs[sums.position[1] :]:
                    started = time.monotonic()
                    with _interrupts_held():
                        sums.add_batch(rows[run])
                    progress.tell(rows, rows[run], time.monotonic() - started)
                    if (started := time.monotonic()) >= next_save:
                        sums.save(path, key)
                        ended = time.monotonic()
                        next_save = ended + max(SAVE_EVERY_S, 10 * (ended - started))
                sums.position = (sums.position[0] + 1, 0)
        except BaseException:
            if sums.whole and sums.count and sums.save(path, key):
                log.warning("interrupted after %d texts; run again to resume", sums.n_samples)
            raise
    if not sums.count:
        raise StatisticsError(
            f"source {files.source!r} gave no tokens; name another, or mom2_dataset: self"
        )


class _Progress:
    """Shows progress by a bar on a terminal, elsewhere through :data:`PROGRESS_LOG`."""

    def __init__(self, files: StatisticsFiles, sums: _Sums) -> None:
        self._files, self._sums = files, sums
        self._what = f"statistics of layers {list(sums.totals)}"
        self._said, self._announced = time.monotonic(), False
        self.bar = tqdm(
            total=files.n_samples,
            initial=sums.n_samples,
            desc=self._what,
            unit="text",
            disable=None,
        )

    def tell(
        self, chunk: Sequence[Sequence[int]], batch: Sequence[Sequence[int]], seconds: float
    ) -> None:
        """Report that a batch of a chunk's rows was added in this time."""
        if not self._announced:  # the total time, estimated from the first batch
            self._announced = True
            seconds *= sum(map(len, chunk)) / sum(map(len, batch))
            seconds *= self._files.n_samples / len(chunk)
            if seconds > _LONG_S:
                PROGRESS_LOG.info(
                    "%s from %d texts of %s: about %.0f s; they are computed once and kept in %s",
                    self._what, self._files.n_samples, self._files.source, seconds,
                    self._files.folder,
                )  # fmt: skip
        self.bar.update(len(batch))
        if self.bar.disable and time.monotonic() >= self._said + SAY_EVERY_S:
            self._said = time.monotonic()
            PROGRESS_LOG.info(
                "%s: %d of %d texts, %d tokens",
                self._what, self._sums.n_samples, self._files.n_samples, self._sums.count,
            )  # fmt: skip


def _home(device: torch.device, d_ff: int) -> torch.device:
    """Device of a layer's sum: the layer's, if it is a GPU with enough memory, else the CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        needed = 8 * d_ff**2 + 2 * (4 * d_ff**2)  # this sum, and one product with its copy
        if free > 2 * needed:
            return device
    return torch.device("cpu")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay a first Ctrl-C until the end of the block; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if seen and before is not signal.SIG_IGN:
        raise KeyboardInterrupt
