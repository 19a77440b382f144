"""Report on this machine: versions, devices, EasyEdit, the embedded models, free disk space."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil

import torch

from nse_plugin.data import atlas
from nse_plugin.easyedit.checkout import find
from nse_plugin.errors import NSEPluginError
from nse_plugin.host import host
from nse_plugin.model.families import FAMILIES
from nse_plugin.statistics.files import stats_folder
from nse_plugin.version import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "peft",
             "datasets")  # fmt: skip


def report(stats_dir: str | None = None) -> list[tuple[str, str]]:
    """The findings as (name, value) rows.

    Args:
        stats_dir: folder of the statistics; by default the usual place.
    """
    rows = [("nse_plugin", __version__), ("python", platform.python_version())]
    rows += [(name, version_of(name) or "not installed") for name in _PACKAGES]
    rows += [("devices", ", ".join(_devices())), ("threads", str(torch.get_num_threads()))]
    rows.append(("host", _host()))
    rows += [(f"atlas:{name}", _atlas(name)) for name in atlas.MODELS]
    rows.append(("model families", f"{', '.join(FAMILIES)}; others are probed"))
    kept = stats_folder(stats_dir)
    folder = kept.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    rows.append((
        "statistics",
        f"in {kept}, {free / 2**30:.1f} GiB free; those of one layer take 4 d_ff^2 bytes "
        "(0.16 GiB for GPT2-XL, 0.77 GiB for Llama-3-8B)",
    ))  # fmt: skip
    return rows


def version_of(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ["cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(cuda))]


def _host() -> str:
    try:
        found = find()
        return f"{host()} (EasyEdit: {found or 'not found'})"
    except NSEPluginError as error:
        return f"error: {error}"


def _atlas(name: str) -> str:
    try:
        folder = atlas.model_dir(name)
    except (NSEPluginError, OSError) as error:
        return f"error: {error}"
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{size / 1e6:.1f} MB at {folder}"
