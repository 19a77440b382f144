"""Second-moment statistics on disk: our own files, EasyEdit's, and unfinished passes.

All are in ``{stats_dir}/{model}/{source}_stats/``:

- ``{module}_{dtype}_mom2_{n}.safetensors``: ours, the mean, with its origin as metadata;
- ``{module}_{dtype}_mom2_{n}.npz``: EasyEdit's and ROME's, the sum and the number of tokens;
- ``layers-..._{dtype}_mom2_{n}.partial.npz``: sums of a pass that was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nse_plugin.errors import StatisticsError
from nse_plugin.files import cache_dir, write_whole
from nse_plugin.hparams import LocateHparams
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.weights import all_finite, fingerprint
from nse_plugin.statistics.text_sources import source_slug

log = logging.getLogger(__name__)

SCHEMA = "1"
"""Version of our own files and of unfinished passes."""
_UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, EOFError,
    zipfile.BadZipFile, zlib.error, SafetensorError,
)  # fmt: skip
_OTHER = {
    "schema": "another version of this package",
    "fingerprint": "another model",
    "module": "another model",
    "d_ff": "another model",
    "dtype": "other settings",
    "n_samples": "other settings",
    "digest": "another version of the text",
}  # by metadata key: what a file with another value belongs to
_AGAIN = "delete it, and run `nse stats` to make it again"


def stats_folder(named: str | None = None) -> Path:
    """The folder of the statistics: the one named, or the default.

    The default is EasyEdit's ``./data/stats`` if it exists, and else ``stats`` in the cache, for
    all working folders.  A named ``./data/stats``, as in EasyEdit's YAMLs, means the default too.
    """
    usual = LocateHparams.stats_dir
    if named not in (None, usual) or Path(usual).is_dir():
        return Path(named or usual)
    return cache_dir() / "stats"


@dataclass(frozen=True)
class SecondMoment:
    """E[k k^T] of the keys of one layer."""

    mean: torch.Tensor
    """[d_ff, d_ff], float32, on the CPU."""
    count: int
    """Number of tokens."""
    n_samples: int
    """Number of texts used."""
    source: str
    """Name of the source of text."""


@dataclass(frozen=True)
class StatisticsFiles:
    """The files of one model, one source of text and one choice of settings."""

    layout: DecoderLayout
    stats_dir: Path
    source: str
    n_samples: int
    """Requested number of texts; part of the file names."""
    dtype: str = "float32"
    digest: str | None = None
    """Hash of the text, if the source is a file or a named text."""
    fingerprint: str = ""
    """Fingerprint of the model's original weights: :func:`model_fingerprint`."""

    @property
    def folder(self) -> Path:
        """Folder of the files of this model and source."""
        return self.stats_dir / model_basename(self.layout) / f"{source_slug(self.source)}_stats"

    def path(self, layer: int) -> Path:
        """Our own file for a layer."""
        return self._file(self.layout.down_path(layer), "safetensors")

    def npz_path(self, layer: int) -> Path:
        """EasyEdit's file for a layer."""
        return self._file(self.layout.down_path(layer), "npz")

    def partial_path(self, layers: Iterable[int | str]) -> Path:
        """The file of an unfinished pass over some layers."""
        return self._file(f"layers-{'-'.join(map(str, layers))}", "partial.npz")

    def _file(self, what: str, ending: str) -> Path:
        return self.folder / f"{what}_{self.dtype}_mom2_{self.n_samples}.{ending}"

    def read(self, layer: int) -> SecondMoment | None:
        """Read a layer's statistics, our own file first; None if there is no file.

        Raises:
            StatisticsError: the file is damaged or of another model, text or choice of settings.
        """
        if (path := self.path(layer)).exists():
            log.info("layer %d: statistics from %s", layer, path)
            return self._read_own(path, layer)
        if (path := self.npz_path(layer)).exists():
            log.info("layer %d: statistics from %s", layer, path)
            return self._read_npz(path)
        return None

    def write(self, layer: int, moment: SecondMoment) -> Path:
        """Write our own file for a layer, in full or not at all."""
        metadata = self._expected(layer) | {
            "model": model_basename(self.layout),
            "source": moment.source,
            "count": str(moment.count),
            "n_samples_used": str(moment.n_samples),
        }
        path = self.path(layer)
        tensors = {"mean": moment.mean.contiguous()}
        write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))
        return path

    def _expected(self, layer: int) -> dict[str, str]:
        """The metadata that must agree for a file to be used."""
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "module": self.layout.down_path(layer),
            "d_ff": str(self.layout.d_ff),
            "dtype": self.dtype,
            "n_samples": str(self.n_samples),
            "digest": self.digest or "",
        }

    def _read_own(self, path: Path, layer: int) -> SecondMoment:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                mean = file.get_tensor("mean")
            count, n_used = int(metadata["count"]), int(metadata["n_samples_used"])
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
        for name, expected in self._expected(layer).items():
            found = metadata.get(name, "")
            agrees = same_model(found, expected) if name == "fingerprint" else found == expected
            unknown = name == "digest" and not expected  # the text file is no longer there
            if not agrees and not unknown:
                raise StatisticsError(
                    f"{path} holds statistics of {_OTHER[name]}: its {name} is "
                    f"{found!r}, not {expected!r}; give another stats_dir, or {_AGAIN}"
                )
        return self._checked(path, mean, count, n_used)

    def _read_npz(self, path: Path) -> SecondMoment:
        try:
            with np.load(path, allow_pickle=False) as file:
                count, n_samples = int(file["mom2.count"]), int(file["sample_size"])
                total = torch.from_numpy(file["mom2.mom2"])
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
        if n_samples != self.n_samples:
            raise StatisticsError(
                f"{path} is over {n_samples} texts (sample_size), not {self.n_samples} as its "
                "name says; rename it, and set mom2_n_samples to that number"
            )
        mean = total.div_(count).float() if count > 0 and total.is_floating_point() else total
        return self._checked(path, mean, count, n_samples)

    def _checked(self, path: Path, mean: torch.Tensor, count: int, n_used: int) -> SecondMoment:
        d_ff = self.layout.d_ff
        if tuple(mean.shape) != (d_ff, d_ff):
            raise StatisticsError(
                f"{path} holds statistics of another model: {list(mean.shape)} where this one "
                f"needs [{d_ff}, {d_ff}]; give another stats_dir, or {_AGAIN}"
            )
        if count < 1:
            raise _damaged(path, f"its number of tokens is {count}")
        if mean.dtype != torch.float32:
            raise _damaged(path, f"it holds {mean.dtype}")
        if not all_finite(mean):
            raise _damaged(path, "it holds NaN or infinity")
        if not _is_symmetric(mean):
            raise _damaged(path, "it is not symmetric, as a second moment is")
        return SecondMoment(mean, count, n_used, self.source)


def write_npz(
    stats_dir: str | Path,
    layout: DecoderLayout,
    layer: int,
    moment: SecondMoment,
    *,
    dtype: str = "float32",
    n_samples: int | None = None,
) -> Path:
    """Write statistics in the place and form in which EasyEdit's ROME and MEMIT look for them.

    EasyEdit finds them with the same ``stats_dir``, ``mom2_dtype`` and ``mom2_n_samples``, and
    ``mom2_dataset`` set to :func:`~nse_plugin.statistics.text_sources.source_slug` of the source.

    Args:
        n_samples: the requested number of texts, if the source had fewer.
    """
    n_samples = moment.n_samples if n_samples is None else n_samples
    path = StatisticsFiles(layout, Path(stats_dir), moment.source, n_samples, dtype).npz_path(layer)
    total = moment.mean.double().mul_(moment.count)
    arrays: dict[str, Any] = {
        "mom2.constructor": np.array("easyeditor.util.runningstats.SecondMoment()"),
        "mom2.count": np.array(moment.count),
        "mom2.mom2": total if dtype == "float64" else total.float(),
        "sample_size": np.array(n_samples),
    }
    write_whole(path, lambda temporary: _save_arrays(temporary, arrays.items()))
    return path


def write_partial(path: Path, header: Mapping[str, Any], sums: Mapping[int, torch.Tensor]) -> None:
    """Write the sums of an unfinished pass, layer by layer, in full or not at all."""

    def arrays() -> Iterator[tuple[str, Any]]:
        yield "header", np.array(json.dumps(dict(header)))
        for layer, total in sums.items():
            yield f"sum.{layer}", total

    write_whole(path, lambda temporary: _save_arrays(temporary, arrays()))


def read_partial(
    path: Path, key: Mapping[str, Any], sums: Mapping[int, torch.Tensor]
) -> dict[str, Any] | None:
    """Fill the sums with those of an unfinished pass, layer by layer, and return its header.

    Without a readable file of the same pass it returns None, and the sums are zero.

    Args:
        key: of the pass, as in the header.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header.get("key") != key:
                log.warning("%s is of a pass with other settings; the pass starts afresh", path)
                return None
            for layer, total in sums.items():
                total.copy_(torch.from_numpy(file[f"sum.{layer}"]))
            return header
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        log.warning("%s cannot be read (%s); the pass starts afresh", path, error)
        for total in sums.values():
            total.zero_()
        return None


def model_basename(layout: DecoderLayout) -> str:
    """The last part of the name or path that the model was loaded from."""
    return layout.loaded_from.rstrip("/").rsplit("/")[-1] or layout.model_type


@torch.no_grad()
def model_fingerprint(layout: DecoderLayout) -> str:
    """Short hashes of parts of the model, which identify it; ``?`` for offloaded parts.

    The parts are a sample of the embedding and of every block's attention.  MLPs are left out,
    since editors write to them, and an edited model has the statistics of its original.  Weights
    are rounded to bfloat16 first, so the fingerprint is the same in float32 and bfloat16.
    """
    parts = [layout.model.get_input_embeddings().weight]
    parts += [_matrix_of_attention(layout, block) for block in layout.blocks]
    shape = f"{layout.model_type}-{layout.n_layers}-{layout.d_model}-{layout.d_ff}"
    return "-".join([shape, *map(_part_fingerprint, parts)])


def _matrix_of_attention(layout: DecoderLayout, block: nn.Module) -> torch.Tensor:
    """The first matrix of a block's attention, or of what replaces it."""
    family = layout.family
    matrices = [(name, p) for name, p in block.named_parameters() if p.dim() == 2]
    of_attention = [p for name, p in matrices if name.startswith(f"{family.attn}.")]
    elsewhere = [p for name, p in matrices if not name.startswith(f"{family.mlp}.")]
    return (of_attention or elsewhere or [matrices[0][1]])[0]


def _part_fingerprint(weight: torch.Tensor) -> str:
    if weight.is_meta:
        return "?"
    rows = weight[:: max(1, weight.shape[0] // 64)]
    number = fingerprint(rows.to(torch.bfloat16 if rows.is_floating_point() else torch.int16))
    return hashlib.sha256(str(number).encode()).hexdigest()[:4]


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints can be of one model: all parts known to both are equal.

    The embedding may differ if every block's attention is known and equal: its sample depends on
    the number of rows, and new tokens, as for padding, leave blocks and keys as they are.
    """
    a, b = one.split("-"), other.split("-")
    if len(a) != len(b):
        return False
    differ = [i for i, (x, y) in enumerate(zip(a, b)) if x != y and "?" not in (x, y)]
    if len(differ) != 1:
        return not differ
    (part,) = differ
    attention = a[part + 1 :]
    # the number of blocks stands three parts before the embedding
    is_embedding = a[part - 3] == str(len(attention))
    return is_embedding and "?" not in attention and attention == b[part + 1 :]


def _is_symmetric(matrix: torch.Tensor) -> bool:
    """Whether evenly spaced rows equal the columns."""
    step = max(1, len(matrix) // 256)
    tolerance = 1e-3 * float(matrix.diagonal().abs().max())
    return torch.allclose(matrix[::step], matrix[:, ::step].T, rtol=1e-3, atol=tolerance)


def _damaged(path: Path, why: object) -> StatisticsError:
    return StatisticsError(f"{path} is damaged ({why}); {_AGAIN}")


def _save_arrays(path: Path, arrays: Iterable[tuple[str, Any]]) -> None:
    """Write an .npz array by array, so that only one is in main memory at a time."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays:
            if isinstance(array, torch.Tensor):
                array = array.cpu().numpy()
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)
